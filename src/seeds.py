"""`--seeds N`: the same run with N seeds, and how much of a result is luck.

saved/NAME/seeds-5_1121_072233/seed-0 ... seed-4      each a run like any other
                               summary.json           mean, standard deviation and 95 % interval of every metric
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from src.config.changes import check_changes
from src.config.command_line import Arguments
from src.config.settings import Config
from src.logger.console import log_to_file
from src.logger.run_dir import check_run_name, write_file
from src.logger.run_index import read_run
from src.logger.seed_noise import summarise, summary_lines, values_at_best
from src.sweep.train_in import is_done, train_in
from src.trainer.resume import open_checkpoint
from src.utils.errors import CheckpointError
from src.utils.paths import project_path, shown_path

log = logging.getLogger(__name__)


def train_seeds(config: Config, arguments: Arguments, command: Sequence[str]) -> int:
    """Train with every seed that is not done yet, print what comes out, and return the exit code.

    Args:
        config: Of the first run; the others have the seeds after its own. The split keeps its seed.
        arguments: With `seeds`. `resume` is a folder of seeds, `auto` the newest one.
        command: The command line, for the record.
    """
    saved = project_path(config.trainer.save_dir) / config.name
    folder = _folder_to_resume(saved, arguments) or _new_folder(saved, arguments.seeds)
    paths = []
    for seed in range(config.seed, config.seed + arguments.seeds):
        own, path = replace(config, seed=seed), folder / f"seed-{seed}"
        paths.append(path)
        if is_done(path):
            check_changes(open_checkpoint(path)[1]["config"], own, arguments.allowed, shown_path(path))
            continue
        code = train_in(path, own, command, allowed=arguments.allowed)
        if code:
            log.warning("seed %d was stopped; go on with: --seeds %d -r auto", seed, arguments.seeds)
            return code
    log_to_file(None)  # what follows is not for the log of the last run
    summary = summarise([values_at_best(path, read_run(path)) for path in paths])
    plain = {
        name: {"mean": each.mean, "std": each.std, "low": each.mean - each.half, "high": each.mean + each.half}
        for name, each in summary.items()
        if math.isfinite(each.half)
    }
    write_file(folder / "summary.json", json.dumps({"seeds": arguments.seeds, "metrics": plain}, indent=2) + "\n")
    log.info("%d seeds, each where it was best: %s", arguments.seeds, shown_path(folder))
    for line in summary_lines(summary):
        log.info("%s", line)
    return 0


def _new_folder(saved: Path, num_seeds: int) -> Path:
    check_run_name(saved.name)
    start = f"seeds-{num_seeds}_{time.strftime('%m%d_%H%M%S')}"
    names = (start if number == 1 else f"{start}-{number}" for number in range(1, 10_000))
    return next(saved / name for name in names if not (saved / name).exists())


def _folder_to_resume(saved: Path, arguments: Arguments) -> Path | None:
    """Return the folder that `-r` means; None when there is nothing to go on with."""
    if arguments.resume is None:
        return None
    if arguments.resume != "auto":
        folder = Path(arguments.resume)
        if not any(folder.glob("seed-*/run.lock")):
            raise CheckpointError(f"{folder}: no folder of seeds; it has no seed-0. Give saved/NAME/seeds-..., or auto")
        return folder
    begun = {path.parents[1]: path.stat().st_ctime_ns for path in saved.glob("seeds-*/seed-*/config.yaml")}
    return max(begun, key=lambda path: begun[path], default=None)
