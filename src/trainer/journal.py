"""Reading the numbers of a run off the device, and telling them to the logger and the hooks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from src.trainer.schedule import learning_rates

if TYPE_CHECKING:
    from src.trainer.trainer import Trainer


class Journal:
    """Keeps the record of `trainer`: what an interval of steps, an epoch and an evaluation gave."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def train_values(self) -> dict[str, float]:
        """Return the means over the epoch so far; nothing when it has not begun. Waits for the device.

        Raises:
            NumericsError: The loss is not finite.
        """
        trainer = self.trainer
        if trainer.meters.num_batches == 0:
            return {}
        values = {f"train/{name}": value for name, value in trainer.meters.compute().items()}
        trainer.guard.check(values["train/loss"])
        return values

    def log_step(self) -> None:
        """Log the mean loss since this was last called, with what made the newest step. Waits for the device.

        Raises:
            NumericsError: The loss is not finite.
        """
        trainer = self.trainer
        with trainer.account.logging:
            loss = trainer.meters.loss.lap()  # device sync
            trainer.guard.check(loss)
            rates = learning_rates(trainer.optimizers)
            values = {"step/loss": loss} | {f"step/{name}": rate for name, rate in rates.items()}
            if trainer.step.grad_norm is not None:
                values["step/grad_norm"] = float(trainer.step.grad_norm)  # device sync
            trainer.logger.scalars(values | trainer.account.report(), step=trainer.progress.step)
            trainer.tell("on_log", values)

    def log(self, values: Mapping[str, float], timing: Mapping[str, float] | None = None) -> None:
        """Log the values of an epoch or evaluation."""
        trainer = self.trainer
        with trainer.account.logging:
            shown = {**values, **learning_rates(trainer.optimizers), **(timing or {})}
            logged = shown | trainer.account.report()
            trainer.logger.scalars(logged, step=trainer.progress.step, epoch=trainer.progress.epoch)
            trainer.tell("on_log", shown, trainer.progress.epoch)
