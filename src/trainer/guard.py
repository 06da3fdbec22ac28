"""What is done about numbers that are no longer numbers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from src.trainer.nonfinite import explain_nonfinite, watch_gradients
from src.trainer.schedule import learning_rates
from src.utils.errors import NumericsError

if TYPE_CHECKING:
    from src.trainer.trainer import Trainer


class Guard:
    """Watches over the losses and gradients of `trainer`.

    On the CPU, where reading a number costs nothing, each is looked at before it is applied. On other devices reading
    one would wait for the device, so they are looked at when the loss is read anyway.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.is_careful = trainer.device.type == "cpu"
        """Whether each step is looked at before it is applied."""
        if self.is_careful:
            watch_gradients(trainer.model, trainer.optimizers, trainer.progress)

    def take(self, loss: Any, batch: Any) -> None:
        """Look at the loss of a batch, where that costs nothing."""
        if self.is_careful:
            self.check(loss.item(), batch)

    def check(self, loss: float, batch: Any = None) -> None:
        """Refuse a loss that is nan or inf.

        Args:
            loss: Of a batch, or a mean over several.
            batch: What it came from, if that is known.

        Raises:
            NumericsError: It is not finite.
        """
        if not math.isfinite(loss):
            trainer = self.trainer
            rates = learning_rates(trainer.optimizers)
            raise NumericsError(explain_nonfinite(loss, trainer.progress.step + 1, rates, batch))
