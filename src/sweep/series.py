"""Runs that belong together, one after the other below one folder: folds, seeds."""

from __future__ import annotations

import contextlib
import logging
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from src.config.changes import check_changes
from src.config.command_line import Arguments
from src.config.settings import Config
from src.logger.console import log_to_file
from src.logger.run_dir import check_run_name
from src.sweep.train_in import is_done, train_in
from src.trainer.checkpoints.resume import open_checkpoint
from src.utils.errors import CheckpointError
from src.utils.paths import PROJECT_ROOT, shown_path
from src.utils.secrets import masked_command

log = logging.getLogger(__name__)


def series_folder(saved: Path, resume: str | None, name: str, same: str, member: str) -> Path:
    """Return the folder of the series that `-r` means, or the name of a new one.

    Args:
        saved: Folder of all runs of the config.
        resume: What `-r` says: a folder, or `auto` for the newest one that has begun, if there is one.
        name: Of a new one; the time comes behind.
        same: Pattern of the folders that `auto` may go on with.
        member: Pattern of the runs in such a folder.

    Raises:
        CheckpointError: The folder is not one.
    """
    if resume not in (None, "auto"):
        folder = Path(str(resume))
        if not any(folder.glob(f"{member}/run.lock")):
            kind = name.partition("-")[0]
            raise CheckpointError(f"{folder}: no folder of {kind}: it has no {member}; give saved/NAME/{same}, or auto")
        return folder
    if resume == "auto":
        begun = {path.parents[1]: path.stat().st_ctime_ns for path in saved.glob(f"{same}/{member}/config.yaml")}
        if begun:
            return max(begun, key=lambda path: begun[path])
    check_run_name(saved.name)
    start = f"{name}_{time.strftime('%m%d_%H%M%S')}"
    names = (start if number == 1 else f"{start}-{number}" for number in range(1, 10_000))
    return next(saved / each for each in names if not (saved / each).exists())


def train_series(folder: Path, configs: Mapping[str, Config], arguments: Arguments, command: Sequence[str]) -> int:
    """Train every run that is not done yet, and return the exit code: 0, or that of the first that was stopped.

    Args:
        folder: Of the series; is made.
        configs: By the name of the run's folder.
        arguments: Of the command line.
        command: The command line, for the record.
    """
    for name, config in configs.items():
        path = folder / name
        if is_done(path):
            check_changes(open_checkpoint(path)[1]["config"], config, arguments.allowed, shown_path(path))
            continue
        try:
            code = train_in(path, config, command, allowed=arguments.allowed)
        except BaseException:
            with contextlib.suppress(OSError):  # what could not begin leaves no folder behind
                for empty in (path, folder, folder.parent):
                    empty.rmdir()
            raise
        if code:
            script, *words = masked_command(list(command))
            again = ["python", shown_path(PROJECT_ROOT / script), *words, *([] if arguments.resume else ["-r", "auto"])]
            log.warning("%s was stopped; go on with: %s", name, shlex.join(again))
            return code
    log_to_file(None)  # what follows is not for the log of the last run
    return 0
