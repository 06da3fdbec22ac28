"""What a run of theirs leaves behind, under the names that they know: checkpoints, charts, lines of the log."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from src.logger.sink import Sink
from src.logger.tensorboard import TensorBoard
from src.trainer.checkpoints.memory import collect_state
from src.trainer.hooks import Hook
from src.utils.whole_file import whole_file

if TYPE_CHECKING:
    from src.trainer.trainer import Trainer

log = logging.getLogger(__name__)

NUM_IMAGES = 8
"""Validation inputs that are shown, as many as of the training inputs."""
LARGE = ("model", "optimizer")
"""States that their checkpoints hold under names of their own."""


class TheirCheckpoints(Hook):
    """Writes `checkpoint-epoch<N>.pth` every so many epochs, and `model_best.pth` whenever there is a new best.

    They hold plain data only, and besides their keys all that an exact resume needs, under `keel`.

    Args:
        folder: Of the run.
        save_period: Epochs between two checkpoints; every one is kept.
        config: The sections.
    """

    def __init__(self, folder: Path, save_period: int, config: Mapping[str, Any]) -> None:
        self.folder, self.save_period, self.config = folder, save_period, dict(config)

    def on_epoch_end(self, trainer: Trainer, values: Mapping[str, float]) -> None:
        epoch, is_due = trainer.progress.epoch, trainer.progress.epoch % self.save_period == 0
        if not (is_due or trainer.is_best):
            return
        state = {name: owner for name, owner in trainer.stateful.items() if name not in LARGE}
        content = {
            "arch": type(trainer.model).__name__,
            "epoch": epoch,
            "state_dict": trainer.model.state_dict(),
            "optimizer": trainer.optimizers["optimizer"].state_dict(),
            "monitor_best": trainer.monitor.best if trainer.monitor.best is not None else math.inf,
            "config": self.config,
            "keel": collect_state(state),
        }
        if is_due:
            self._write(content, f"checkpoint-epoch{epoch}.pth")
        if trainer.is_best:
            self._write(content, "model_best.pth")

    def _write(self, content: Mapping[str, Any], name: str) -> None:
        try:
            with whole_file(self.folder / name, "wb") as file:
                torch.save(dict(content), file)
        except (OSError, RuntimeError) as error:
            log.warning("%s: cannot be saved: %s; checkpoints/ holds the run as well", self.folder / name, error)


class ProgressLines(Hook):
    """Writes their line of progress to the log, seen with `verbosity` 2."""

    def on_log(self, trainer: Trainer, values: Mapping[str, float], epoch: int | None = None) -> None:
        if epoch is None:
            total = len(trainer.train_loader)
            done = trainer.progress.batch
            log.debug(
                "Train Epoch: %d [%d/%d (%.0f%%)] Loss: %.6f",
                trainer.progress.epoch + 1, done, total, 100 * done / total, values["step/loss"],
            )  # fmt: skip


class TheirExtras(Hook):
    """Logs what only they log: `steps_per_sec` of training and validation, and the first inputs of validation."""

    def on_fit_start(self, trainer: Trainer) -> None:
        loader = trainer.val_loaders.get("val")
        if loader is None or trainer.progress.step > 0:
            return
        args, _, _ = trainer.task.open(loader.peek(NUM_IMAGES))
        if args and isinstance(args[0], torch.Tensor) and args[0].dim() == 4 and args[0].shape[1] in (1, 3):
            trainer.logger.images("val/inputs", args[0].float().numpy(), step=0)

    def on_epoch_end(self, trainer: Trainer, values: Mapping[str, float]) -> None:
        loaders = {"train": trainer.train_loader, **trainer.val_loaders}
        rates = {f"{name}/steps_per_sec": getattr(loader, "batches_per_s", None) for name, loader in loaders.items()}
        measured = {name: rate for name, rate in rates.items() if rate is not None}
        trainer.logger.scalars(measured, step=trainer.progress.step, epoch=trainer.progress.epoch)


class TheirCharts(Sink):
    """Writes event files whose charts have their names: `loss/train`, `accuracy/valid`, `input/train`, `conv1.weight`.

    Args:
        folder: Where the event files go.
    """

    def __init__(self, folder: Path) -> None:
        self._charts = TensorBoard(folder)
        self.state_dict = self._charts.state_dict  # type: ignore[method-assign]
        self.load_state_dict = self._charts.load_state_dict  # type: ignore[method-assign]
        self.text, self.flush, self.close = self._charts.text, self._charts.flush, self._charts.close  # type: ignore[method-assign]

    def scalars(self, values: Mapping[str, float], step: int, epoch: int | None) -> None:
        self._charts.scalars({their_tag(name): value for name, value in values.items()}, step, epoch)

    def images(self, tag: str, images: np.ndarray[Any, Any], step: int) -> None:
        self._charts.images({"train/inputs": "input/train", "val/inputs": "input/valid"}.get(tag, tag), images, step)

    def histogram(self, tag: str, values: np.ndarray[Any, Any], step: int) -> None:
        self._charts.histogram(tag.removeprefix("train/weights/"), values, step)


def their_tag(name: str) -> str:
    """`train/loss` is `loss/train`, `val/accuracy` is `accuracy/valid`; others keep their names."""
    part, _, rest = name.partition("/")
    return f"{rest}/{ {'train': 'train', 'val': 'valid'}[part] }" if part in ("train", "val") else name
