"""Numbers that are no longer numbers: saying where they came from and what helps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

ADVICE = "scale the inputs and targets, lower the rate (--lr), or set trainer.max_grad_norm"
"""What helps when numbers explode."""


def explain_nonfinite(loss: float, step: int, rates: Mapping[str, float], batch: Any) -> str:
    """Return a message for a loss that is nan or inf.

    Args:
        loss: The value.
        step: The step in which it was noticed, counted from 1.
        rates: Learning rates by name.
        batch: What the model got, where it is known, else None.
    """
    for tensor in tensors_in(batch):
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():  # device sync
            row = int((~torch.isfinite(tensor)).nonzero()[0][0]) if tensor.dim() else 0
            return f"step {step}: the loss is {loss} because the batch itself holds nan or inf, first in its row {row}"
    at = ", ".join(f"{name} {rate:.3g}" for name, rate in rates.items())
    return f"step {step}: the loss is {loss} at {at or 'no rate'}; {ADVICE}"


def tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors anywhere inside dicts, lists and tuples."""
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for part in parts for tensor in tensors_in(part)]
