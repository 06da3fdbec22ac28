"""Evaluate a checkpoint of theirs on their test data: `python test.py -r saved/models/NAME/RUN/model_best.pth`."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from src.compat.build import build_loss, build_metrics, build_model
from src.compat.command_line import read_request
from src.compat.loader import TheirLoader
from src.compat.names import open_checked
from src.compat.project import Project
from src.compat.run import find_devices, with_paths_of
from src.compat.their_config import ConfigParser
from src.logger.console import setup_console
from src.trainer.checkpoints.resume import best_weights, load_weights, open_checkpoint
from src.trainer.evaluate import evaluate
from src.trainer.meters import Meters
from src.trainer.task import Task
from src.utils.errors import ConfigError
from src.utils.paths import shown_path
from src.utils.whole_file import write_file

TEST_ARGUMENTS = {
    "batch_size": 512, "shuffle": False, "validation_split": 0.0, "training": False, "num_workers": 2
}  # fmt: skip
"""With what their `test.py` calls the loader, besides the folder of the data."""


def test(argv: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    request = read_request(argv, "test.py", __doc__)
    if request.resume is None:
        raise ConfigError("say what to evaluate with -r CHECKPOINT")
    folder, project = open_checked(request)
    setup_console()
    config = ConfigParser(with_paths_of(folder, request.config), request.resume)
    if request.checkpoint is not None:
        weights, where = request.checkpoint["state_dict"], request.resume.parent
    else:
        where, state = open_checkpoint(request.resume, "best")
        weights = best_weights(state)
    device, _ = find_devices(config.get("n_gpu", 0))
    loader = TheirLoader("test", build_test_loader(config, project))
    model = build_model(config, project).to(device)
    load_weights(model, weights, shown_path(request.resume))
    meters = Meters(build_metrics(config, project), device)
    values = evaluate(Task(build_loss(config, project)), model, loader, meters)
    print(f"test of {shown_path(request.resume)}: {loader.num_rows} rows")
    for name, value in values.items():
        print(f"  {name:<{max(map(len, values))}}  {value:.6g}")
    plain = {name: value if math.isfinite(value) else None for name, value in values.items()}
    write_file(Path(where) / "test_metrics.json", json.dumps({"test": plain}, indent=2) + "\n")
    return 0


def build_test_loader(config: ConfigParser, project: Project) -> Any:
    """Call their loader class as their `test.py` does; arguments that it does not take are left out."""
    section = config["data_loader"]
    kind = project.find("data_loader", section["type"], [project.data])
    parameters = inspect.signature(kind).parameters
    takes_all = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())
    known: dict[str, Any] = {name: value for name, value in TEST_ARGUMENTS.items() if takes_all or name in parameters}
    first = [section["args"]["data_dir"]] if "data_dir" in section["args"] else []
    if "config" in parameters:
        known["config"] = config
    try:
        return kind(*first, **known)
    except TypeError as error:
        raise ConfigError(
            f"data_loader: {section['type']} cannot be called as for testing, with data_dir and "
            f"{', '.join(TEST_ARGUMENTS)}: {error}"
        ) from error
