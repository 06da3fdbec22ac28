"""Watchers of a run. They log and may ask to stop (`trainer.stop(reason)`); what changes the result is in the trainer.

Write your own in any file of `src/trainer/` or `src/model/` and name it in the config: `hooks: [my_file.MyHook]`.
A hook with a memory offers `state_dict` and `load_state_dict`; both go through the checkpoint.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from src.logger.console import EpochLines, bar_text, progress_bar
from src.logger.settings import LoggerSettings
from src.trainer.schedule import count_steps

if TYPE_CHECKING:
    from src.trainer.trainer import Trainer


log = logging.getLogger(__name__)


class Hook:
    """Does nothing at every event; override what you need."""

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

    def on_fit_end(self, trainer: Trainer) -> None:
        """After the last step, also of a stopped run."""


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
        self.bar = progress_bar(int(total_steps) if math.isfinite(total_steps) else None, done.step, self.has_bar)
        if trainer.is_finished:
            log.info(
                "nothing is left to do after epoch %d, step %d: trainer.epochs=N makes it longer", done.epoch, done.step
            )
        elif done.step:
            log.info("going on after step %d (epoch %d, batch %d)", done.step, done.epoch + 1, done.batch)

    def on_step_end(self, trainer: Trainer) -> None:
        self.bar.update(1)

    def on_log(self, trainer: Trainer, values: Mapping[str, float], epoch: int | None = None) -> None:
        if epoch is None:
            self.bar.set_postfix_str(bar_text(values), refresh=False)
        else:
            whole = None if trainer.progress.batch else epoch
            log.info("%s", self.lines.line(values, trainer.progress.step, whole, trainer.is_best))

    def on_fit_end(self, trainer: Trainer) -> None:
        self.bar.close()


class InputImages(Hook):
    """Shows the first training inputs once, as the model gets them, when they look like images."""

    def __init__(self, num_images: int) -> None:
        self.num_images = num_images

    def on_fit_start(self, trainer: Trainer) -> None:
        if trainer.progress.step > 0:
            return
        args, _, _ = trainer.task.open(trainer.train_loader.peek(self.num_images))
        images = args[0] if args else None
        if isinstance(images, Tensor) and images.dim() == 4 and images.shape[1] in (1, 3):
            trainer.logger.images("train/inputs", images.float().numpy(), step=0)


class Histograms(Hook):
    """Writes histograms of weights and of their gradients' last values.

    Args:
        every_epochs: How often.
    """

    def __init__(self, every_epochs: int) -> None:
        self.every_epochs = every_epochs

    def on_epoch_end(self, trainer: Trainer, values: Mapping[str, float]) -> None:
        if trainer.progress.epoch % self.every_epochs == 0:
            for name, parameter in trainer.model.named_parameters():
                self._write(trainer, f"weights/{name}", parameter.detach())
                if parameter.grad is not None:
                    self._write(trainer, f"gradients/{name}", parameter.grad)

    def _write(self, trainer: Trainer, tag: str, values: Tensor) -> None:
        array: np.ndarray[Any, Any] = values.float().cpu().numpy()  # device sync
        trainer.logger.histogram(f"train/{tag}", array, step=trainer.progress.step)


def standard_hooks(settings: LoggerSettings) -> list[Hook]:
    """Return the hooks that the section `logger` asks for."""
    hooks: list[Hook] = [Console(settings.bar)]
    if settings.tensorboard and settings.num_images:
        hooks.append(InputImages(settings.num_images))
    if settings.tensorboard and settings.histograms_every_epochs:
        hooks.append(Histograms(settings.histograms_every_epochs))
    return hooks
