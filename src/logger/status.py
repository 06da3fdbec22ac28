"""`status.json`: how a run stands, for whoever started it. Some launchers turn exit codes into others."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from src.utils.paths import shown_path
from src.utils.whole_file import write_file

log = logging.getLogger(__name__)
STATES = {None: "running", 0: "done", 130: "stopped", 143: "stopped"}


def write_status(run_path: Path, code: int | None, saved_step: int, seconds: float | None = None) -> None:
    """Write whether a run is running, done, stopped (on request, all saved) or failed.

    A run that was killed outright still says `running`, though its lock is free.

    Args:
        run_path: Its folder.
        code: Exit code; None while it runs.
        saved_step: Step of its newest checkpoint; below 0 when there is none.
        seconds: How long it ran, all its starts together, where no log of ours tells.
    """
    status: dict[str, Any] = {
        "state": STATES.get(code, "failed"),
        "code": code,
        "step": max(0, saved_step),
        "resumable": saved_step >= 0,
    }
    if seconds is not None:
        status["seconds"] = round(seconds, 3)
    path = run_path / "status.json"
    try:
        write_file(path, json.dumps(status) + "\n")
    except OSError as error:  # what went wrong with the run is told, not that nobody could write it down
        log.warning("%s: cannot be written: %s", shown_path(path), error.strerror or error)
