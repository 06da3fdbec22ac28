"""Evaluate a trained model: `python test.py -r saved/<name>/<run>`. The run knows its own config.

Prints a table, writes `test_metrics.json` into the run directory, and with `--predict FILE` one CSV row per row.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from src.config.command_line import Parser, add_common_options, collect_overrides
from src.utils.command import run_command
from src.utils.errors import ConfigError


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser("test.py", "test.py -r RUN [--split PART] [KEY=VALUE ...]", __doc__)
    parser.add_argument("-r", "--resume", dest="run", required=True, metavar="RUN", help="run directory or checkpoint")
    parser.add_argument("--split", metavar="PART", help="which part to evaluate: test (default), val, train, test_...")
    parser.add_argument("--checkpoint", default="best", metavar="WHICH", help="best (default), last, or a file name")
    parser.add_argument("--predict", metavar="FILE", help="write predictions as CSV; rows need no labels")
    add_common_options(parser)
    return parser.parse_intermixed_args(argv)


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    options = parse(argv)

    from src.config.load import config_from_dict
    from src.config.registry import trust, use_recorded_folder
    from src.config.signatures import check_components
    from src.experiment import build_experiment, evaluation_loader
    from src.trainer.evaluate import autocast, evaluate, predict
    from src.trainer.meters import Meters
    from src.trainer.predictions import write_predictions
    from src.trainer.rehearse import describe_length
    from src.trainer.resume import best_weights, load_weights, open_checkpoint
    from src.utils.device import find_device
    from src.utils.paths import shown_path
    from src.utils.seed import seed_everything

    run_dir, state = open_checkpoint(Path(options.run), options.checkpoint)
    trust(options.trust)
    use_recorded_folder(state.get("config_folder"))
    config = config_from_dict(state["config"], collect_overrides(options), f"checkpoint of {shown_path(run_dir)}")
    check_components(config)
    device = find_device(config.trainer.device)
    seed_everything(config.seed)
    experiment = build_experiment(config, device, state["data"])
    load_weights(experiment.model, best_weights(state), shown_path(run_dir))
    amp = autocast(config.trainer.amp_dtype, device)
    name = choose_part(options.split, experiment.parts)
    loader = evaluation_loader(config, experiment.parts[name], device)

    if options.predict:
        outputs = predict(experiment.task, experiment.model, loader, device, amp)
        count = write_predictions(Path(options.predict), loader.part, outputs, experiment.task.criterion)
        print(f"{count} predictions of {name} written to {options.predict}")
        return 0
    values = evaluate(experiment.task, experiment.model, loader, Meters(experiment.metrics, device), amp=amp)
    progress = state["progress"]
    at = f"epoch {progress['epoch']}, step {progress['step']}"
    print(f"{name} of {shown_path(run_dir)}, {at}: {describe_length(loader.part)} rows")
    for key, value in values.items():
        print(f"  {key:<{max(map(len, values))}}  {value:.6g}")
    write_metrics(run_dir / "test_metrics.json", name, values, progress)
    return 0


def choose_part(wanted: str | None, parts: Mapping[str, object]) -> str:
    """Return the part to evaluate: the one asked for, else `test`.

    Raises:
        ConfigError: There is no such part.
    """
    name = wanted or "test"
    if name not in parts:
        hint = "choose one with --split" if wanted is None else "there are no others"
        raise ConfigError(f"--split {name}: this run has the parts {', '.join(parts)}; {hint}")
    return name


def write_metrics(path: Path, part: str, values: Mapping[str, float], progress: Mapping[str, int]) -> None:
    """Add the values of a part to the JSON file at `path`."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    plain = {key: value if math.isfinite(value) else None for key, value in values.items()}  # JSON has no nan
    known[part] = {"epoch": progress["epoch"], "step": progress["step"], **plain}
    partial = path.with_name(f".{path.name}.part")
    partial.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
