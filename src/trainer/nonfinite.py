"""Numbers that are no longer numbers: saying where they came from and what helps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from src.utils.errors import NumericsError
from src.utils.nested import parts_of

ADVICE = "scale the inputs and targets, lower the rate (--lr), or set trainer.max_grad_norm"
"""What helps when numbers explode."""


class Counting(Protocol):
    """What knows the step."""

    step: int


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


def watch_gradients(model: nn.Module, optimizers: Mapping[str, Optimizer], progress: Counting) -> None:
    """Let no optimizer apply a gradient that is nan or inf, which it would write into every weight without a word.

    Costs one sum over each gradient, about 1 % of a step. For the CPU: elsewhere each step would wait for the device.

    Raises:
        NumericsError: Later, in the step of an optimizer; names the first such parameter.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}

    def check(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        trained = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        gradients = [p.grad._values() if p.grad.is_sparse else p.grad for p in trained]
        if math.isfinite(sum(gradient.sum().item() for gradient in gradients)):  # the cheapest look at all of them
            return
        for parameter, gradient in zip(trained, gradients, strict=True):
            if not torch.isfinite(gradient).all():
                name = names.get(parameter, "a parameter of the loss")
                raise NumericsError(
                    f"step {progress.step + 1}: the loss is finite, but the gradient of {name} is not; nothing was "
                    f"applied; {ADVICE}"
                )

    for optimizer in optimizers.values():
        optimizer.register_step_pre_hook(check)


def tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors anywhere inside dicts, lists, tuples and dataclasses."""
    return [value] if isinstance(value, Tensor) else [tensor for part in parts_of(value) for tensor in tensors_in(part)]
