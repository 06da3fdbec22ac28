"""Evaluating the val parts while a run trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from src.trainer.evaluate import back_if_stopped, evaluate
from src.trainer.faults.out_of_memory import Pieces
from src.trainer.meters import Meters

if TYPE_CHECKING:
    from src.trainer.trainer import Trainer


class Validation:
    """The val parts of `trainer`.

    Args:
        trainer: Whose task and model are evaluated.
        meters: Of evaluations alone.
        stop: Asked before every batch whether to leave at once.
    """

    def __init__(self, trainer: Trainer, meters: Meters, stop: Callable[[], bool]) -> None:
        self.trainer, self.meters, self.stop = trainer, meters, stop
        self._pieces = Pieces(trainer.device, trainer.progress, trainer.task)

    def measure(self) -> dict[str, float]:
        """Return the values of all val parts with those of training so far.

        Raises:
            Stopped: A signal came. Nothing has changed; a resumed run measures again.
        """
        trainer = self.trainer
        values = trainer.journal.train_values()
        if not trainer.val_loaders:
            return values
        model = trainer.ema.model if trainer.ema else trainer.model
        forward = model if trainer.ema else trainer.forward
        trainer.parallel.before_evaluation(model)
        with trainer.account.evaluation, back_if_stopped():
            for name, loader in trainer.val_loaders.items():
                result = evaluate(
                    trainer.task, model, loader, self.meters, forward=forward, amp=trainer.step.amp, stop=self.stop,
                    epoch=trainer.progress.epoch, meet=trainer.parallel.meet, pieces=self._pieces,
                )  # fmt: skip
                values |= {f"{name}/{key}": value for key, value in result.items()}
                trainer.figures |= {f"{name}/{key}": seen for key, seen in self.meters.figures().items()}
        return values
