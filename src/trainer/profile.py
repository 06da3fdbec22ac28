"""A record of everything that a few steps do, for a person to look at."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.profiler import ProfilerActivity

from src.trainer.hooks import Hook
from src.trainer.settings import ProfileSettings
from src.utils.paths import shown_path

if TYPE_CHECKING:
    from src.trainer.trainer import Trainer

log = logging.getLogger(__name__)


class StepTrace(Hook):
    """Writes a trace of torch's profiler, which TensorBoard's profiler plugin, Perfetto and Chrome open.

    Args:
        first: Step with which the trace begins, counted from 1 over the whole run.
        last: Step with which it ends.
        folder: Where the file goes; made if it is not there.
    """

    def __init__(self, first: int, last: int, folder: Path) -> None:
        self.first, self.last, self.folder = first, last, folder
        self._profile: torch.profiler.profile | None = None

    def on_fit_start(self, trainer: Trainer) -> None:
        if self.first <= trainer.progress.step + 1 <= self.last:
            self._start()

    def on_step_end(self, trainer: Trainer) -> None:
        if trainer.progress.step == self.last:
            self._stop()
        elif trainer.progress.step == self.first - 1:
            self._start()

    def on_fit_end(self, trainer: Trainer) -> None:
        self._stop()

    def _start(self) -> None:
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it would tell on the console that it begins and ends
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
        self._profile = torch.profiler.profile(activities=activities)
        self._profile.start()

    def _stop(self) -> None:
        profile, self._profile = self._profile, None
        if profile is None:
            return
        profile.stop()  # device sync
        path = self.folder / f"steps-{self.first}-{self.last}.pt.trace.json"
        try:
            self.folder.mkdir(exist_ok=True)
            profile.export_chrome_trace(str(path))
        except (OSError, RuntimeError) as error:
            log.warning("%s: the trace cannot be written: %s; training goes on", shown_path(path), error)
        else:
            log.info("trace  %s; https://ui.perfetto.dev shows it", shown_path(path))


def standard_traces(settings: ProfileSettings | None, run_path: Path) -> list[Hook]:
    """Return the hook that `trainer.profile` asks for, if it does."""
    if settings is None:
        return []
    first, last = settings.steps
    return [StepTrace(first, last, run_path / "profile")]
