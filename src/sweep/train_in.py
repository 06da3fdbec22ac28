"""A run in a folder that is given: begun there, or gone on with."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from src.config.settings import Config
from src.logger.run_index import is_running
from src.run.training import train
from src.trainer.checkpoints.resume import open_checkpoint
from src.trainer.hooks import Hook
from src.utils.paths import has_checkpoint

WAIT_S = 60.0
"""How long an earlier process may take to save and leave the folder."""


def is_done(path: Path) -> bool:
    """Return whether the run of a folder came to its end."""
    try:
        status = json.loads((path / "status.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(status.get("code") == 0)


def train_in(
    path: Path, config: Config, command: Sequence[str], allowed: Sequence[str] = (), watchers: Sequence[Hook] = ()
) -> int:
    """Train in a folder and return the exit code.

    Where there is a checkpoint the run goes on from it; where there is none it begins, and what an earlier start left
    is taken away.

    Args:
        path: The folder; is made if need be.
        config: Of the run.
        command: How a user would make the same run, for the record.
        allowed: Keys that may differ from the run that goes on, though they should not.
        watchers: Hooks besides those of the config.

    Raises:
        KeelError: As for `train`; a folder that another process still uses is waited for a minute.
    """
    deadline = time.monotonic() + WAIT_S
    while is_running(path) and time.monotonic() < deadline:
        time.sleep(0.2)
    state = None
    if has_checkpoint(path):
        state = open_checkpoint(path)[1]
    elif not is_running(path):
        for name in ("events", "checkpoints"):
            shutil.rmtree(path / name, ignore_errors=True)
        for name in ("metrics.csv", "log.txt", "status.json", "environment.json"):
            (path / name).unlink(missing_ok=True)
    path.mkdir(parents=True, exist_ok=True)
    return train(config, path, state, command, allowed, watchers=watchers, is_one_of_many=True)
