"""Watchers of a run. They log and may ask to stop (`trainer.stop(reason)`); what changes the result is in the trainer.

Write your own in any file of `src/trainer/` or `src/model/` and name it in the config: `hooks: [my_file.MyHook]`.
A hook with a memory offers `state_dict` and `load_state_dict`; both go through the checkpoint.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from src.logger.console import bar_text, progress_bar
from src.logger.epoch_lines import EpochLines
from src.logger.held_lines import HeldLines
from src.trainer.schedule import count_steps

if TYPE_CHECKING:
    from src.trainer.trainer import Trainer


log = logging.getLogger(__name__)
OF_BAR = ("train/loss", "lr", "time/samples_per_s")
"""What the bar shows of an epoch, until there are numbers of steps."""

BAR_EVERY_S = 0.1
"""What it shows is made no more often; it is drawn anew every 0.2 s."""


class Hook:
    """Does nothing at every event; override what you need."""

    def check(self, trainer: Trainer) -> None:
        """Once all is built, before anything is kept, and by `--check`: raise `ConfigError` for what cannot work."""

    def on_fit_start(self, trainer: Trainer) -> None:
        """Before the first step of this process, also after a resume."""

    def on_step_end(self, trainer: Trainer) -> None:
        """After an optimizer step. Called thousands of times: do not wait for the device here."""

    def on_log(self, trainer: Trainer, values: Mapping[str, float], epoch: int | None = None) -> None:
        """After numbers went to the logger: of a step (`epoch` is None), or of an epoch or evaluation."""

    def on_evaluation_end(self, trainer: Trainer, values: Mapping[str, float]) -> None:
        """After an evaluation; `values` holds `val/loss` and the like."""

    def on_epoch_end(self, trainer: Trainer, values: Mapping[str, float]) -> None:
        """After an epoch; `values` holds all that was logged for it."""

    def on_save(self, trainer: Trainer) -> None:
        """Before a checkpoint is written."""

    def on_fit_end(self, trainer: Trainer) -> None:
        """After the last step, also of a stopped run."""


def reactions(hooks: Sequence[Hook]) -> dict[str, list[Callable[..., None]]]:
    """Return what `hooks` do, by event; those that do nothing at it are left out, as an event may come at each step."""
    return {
        event: [
            getattr(hook, event) for hook in hooks if getattr(getattr(hook, event), "__func__", None) is not nothing
        ]
        for event, nothing in vars(Hook).items()
        if event.startswith("on_")
    }


class Console(Hook):
    """Shows a bar on a terminal, and a line for every epoch or evaluation.

    Args:
        has_bar: Switches the bar.
    """

    def __init__(self, has_bar: bool = True) -> None:
        self.has_bar = has_bar

    def on_fit_start(self, trainer: Trainer) -> None:
        _, total_steps = count_steps(trainer.train_loader, trainer.settings)
        num_epochs, done = trainer.settings.num_epochs, trainer.progress
        self.lines = EpochLines(int(num_epochs) if math.isfinite(num_epochs) else None, trainer.settings.monitor)
        self.held = HeldLines(log)
        has_bar = self.has_bar and trainer.ranks.is_main
        self.bar = progress_bar(int(total_steps) if math.isfinite(total_steps) else None, done.step, has_bar)
        self._seen = time.perf_counter(), done.samples
        if trainer.is_finished:
            log.info(
                "nothing is left to do after epoch %d, step %d: trainer.epochs=N makes it longer", done.epoch, done.step
            )
        elif done.step:
            log.info("going on after step %d (epoch %d, batch %d)", done.step, done.epoch + 1, done.batch)

    def on_step_end(self, trainer: Trainer) -> None:
        self.bar.update(1)
        if self.held.lines:
            self.held.tell_what_is_due()

    def on_log(self, trainer: Trainer, values: Mapping[str, float], epoch: int | None = None) -> None:
        if epoch is not None and log.isEnabledFor(logging.INFO):
            whole = None if trainer.progress.batch else epoch
            self.held.tell(partial(self.lines.line, values, trainer.progress.step, whole, trainer.is_best))
        now, seen = (time.perf_counter(), trainer.progress.samples), self._seen
        if not self.bar.disable and (now[0] - seen[0] > BAR_EVERY_S or not self.bar.postfix):
            if epoch is None:
                of_bar = {**values, "samples_per_s": (now[1] - seen[1]) / max(now[0] - seen[0], 1e-9)}
            else:
                of_bar = {name: value for name, value in values.items() if name.startswith(OF_BAR)}
            self.bar.set_postfix_str(bar_text(of_bar), refresh=False)
            self._seen = now

    def on_save(self, trainer: Trainer) -> None:
        self.held.flush()

    def on_fit_end(self, trainer: Trainer) -> None:
        self.held.close()
        self.bar.close()
