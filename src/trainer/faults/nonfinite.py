"""Numbers that are no longer numbers: finding them, and saying what helps."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from src.utils.nested import parts_of

ADVICE = "scale the inputs and targets, lower the rate (--lr), or set trainer.max_grad_norm"
"""What helps when numbers explode."""


def explain_nonfinite(
    loss: float, step: int, rates: Mapping[str, float], batch: Any, rows: Sequence[int] | None = None
) -> str:
    """Return a message for a loss that is nan or inf.

    Args:
        loss: The value.
        step: The step in which it was noticed, counted from 1.
        rates: Learning rates by name.
        batch: What the model got, where it is known, else None.
        rows: Rows of the dataset that make `batch`, if known.
    """
    for tensor in tensors_in(batch):
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():  # device sync
            row = int((~torch.isfinite(tensor)).nonzero()[0][0]) if tensor.dim() else 0
            which = f"row {rows[row]} of the dataset" if rows and row < len(rows) else f"its row {row}"
            return f"step {step}: the loss is {loss} because the batch itself holds nan or inf, first in {which}"
    return f"step {step}: the loss is {loss} at {shown_rates(rates)}; {ADVICE}"


def shown_rates(rates: Mapping[str, float]) -> str:
    """Return learning rates as text."""
    return ", ".join(f"{name} {rate:.3g}" for name, rate in rates.items()) or "no rate"


class SpikeRule:
    """Calls a loss a spike when it is more than `SIGMAS` standard deviations above the mean of the last `WINDOW`.

    The rule and its numbers are those of OLMo 2 (https://arxiv.org/abs/2501.00656, "skip step"), which waits for half
    a window of losses. A spike does not enter the window.
    """

    WINDOW, SIGMAS = 128, 6.0

    def __init__(self) -> None:
        self.losses: deque[float] = deque(maxlen=self.WINDOW)

    def limit(self) -> float:
        """Return the largest loss that is no spike."""
        count = len(self.losses)
        if count < self.WINDOW // 2:
            return math.inf
        mean = sum(self.losses) / count
        variance = sum((loss - mean) ** 2 for loss in self.losses) / (count - 1)
        return mean + self.SIGMAS * math.sqrt(variance)


class FiniteGradients:
    """Says whether all gradients are finite, in one call for all small ones: 2 us for a small model.

    torch's own check for mixed precision does it; it also multiplies each gradient, here by one, which changes no bit.
    Large ones on the CPU are summed, which only reads them and takes half as long: nan and inf stay in a sum. A sum may
    also overflow by itself, so that gradient is then looked at as the small ones are.
    """

    LARGE = 1 << 14
    """Numbers in a gradient, from which on it is summed."""

    def __init__(self, device: torch.device) -> None:
        self._found, self._one = torch.zeros(1, device=device), torch.ones(1, device=device)
        self._large = self.LARGE if device.type == "cpu" else math.inf  # elsewhere each sum would be waited for

    def hold(self, gradients: Sequence[Tensor | None]) -> bool:
        """Return whether all there are are finite. Waits for the device."""
        large = self._large
        try:
            doubted = []
            for each in gradients:
                if each is not None and (each.numel() < large or not math.isfinite(each.sum())):  # device sync
                    doubted.append(each)
            if not doubted:
                return True
            torch._amp_foreach_non_finite_check_and_unscale_(doubted, self._found, self._one)
        except (RuntimeError, NotImplementedError):  # sparse or complex ones
            self._found.zero_()
            return all_finite(gradients)
        if self._found.item() == 0.0:  # device sync
            return True
        self._found.zero_()
        return False


def all_finite(values: Any) -> bool:
    """Return whether all tensors in `values` are free of nan and inf. Waits for the device."""
    dense = [tensor._values() if tensor.is_sparse else tensor for tensor in tensors_in(values)]
    return all(bool(torch.isfinite(tensor).all()) for tensor in dense)  # device sync


def tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors anywhere inside dicts, lists, tuples and dataclasses."""
    return [value] if isinstance(value, Tensor) else [tensor for part in parts_of(value) for tensor in tensors_in(part)]
