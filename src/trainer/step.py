"""How one optimizer update is made: forward, backward, clip, step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from src.trainer.evaluate import autocast
from src.trainer.settings import TrainerSettings
from src.trainer.task import StepOutput, Task
from src.utils.device import to_device
from src.utils.errors import ConfigError

Weight = float | Tensor


class Step:
    """Makes optimizer updates from batches.

    Args:
        task: Says what a batch means; its `update`, if it has one, makes the whole update itself.
        forward: The model, or its compiled form.
        optimizers: By name.
        settings: Of the trainer.
        device: Where batches go.
        take: Called with the output and the batch on the device, before the weights change.
    """

    def __init__(
        self,
        task: Task,
        forward: Callable[..., Any],
        optimizers: Mapping[str, Optimizer],
        settings: TrainerSettings,
        device: torch.device,
        take: Callable[[StepOutput, Any], None],
    ) -> None:
        self.task, self.forward, self.device, self.take = task, forward, device, take
        self.optimizers = optimizers
        self.max_grad_norm = settings.max_grad_norm
        self.amp = autocast(settings.amp_dtype, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=settings.amp_dtype == "fp16")
        self.grad_norm: Tensor | None = None
        """Norm of the last gradient before it was clipped, on the device; None without clipping."""
        self._parameters = [p for o in optimizers.values() for group in o.param_groups for p in group["params"]]
        self._named = {name.removeprefix("optimizer."): optimizer for name, optimizer in optimizers.items()}
        if hasattr(task, "update"):
            check_own_update(settings)
        is_plain = settings.accumulate_steps == 1 and settings.amp_dtype is None
        own = self._update_plainly if is_plain else self._update
        self.make: Callable[[Sequence[Any]], None] = self._update_by_task if hasattr(task, "update") else own
        """Make one update from the micro-batches given."""

    def _update_plainly(self, batches: Sequence[Any]) -> None:
        """Do what `_update` does, where one batch makes a step and nothing is scaled: half the cost of a tiny step."""
        drop_gradients(self.optimizers)
        batch = to_device(batches[0], self.device)
        output = self.task.step(self.forward, batch)
        self.take(output, batch)
        output.loss.backward()  # type: ignore[no-untyped-call]
        if self.max_grad_norm is not None:
            self.grad_norm = nn.utils.clip_grad_norm_(self._parameters, self.max_grad_norm)
        for optimizer in self.optimizers.values():
            optimizer.step()

    def _update(self, batches: Sequence[Any]) -> None:
        """Descend the gradient of the mean loss over all rows of `batches`."""
        drop_gradients(self.optimizers)
        weights: list[Weight] = []
        for host_batch in batches:
            batch = to_device(host_batch, self.device)
            with self.amp():
                output = self.task.step(self.forward, batch)
            self.take(output, batch)
            weights.append(output.weight)
            loss = output.loss if len(batches) == 1 else output.loss * share(weights, len(batches))
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        for optimizer in self.optimizers.values():
            self.scaler.unscale_(optimizer)
        if len(batches) > 1:
            correct_shares(self._parameters, weights)
        if self.max_grad_norm is not None:
            self.grad_norm = nn.utils.clip_grad_norm_(self._parameters, self.max_grad_norm)
        for optimizer in self.optimizers.values():
            self.scaler.step(optimizer)
        self.scaler.update()

    def _update_by_task(self, batches: Sequence[Any]) -> None:
        for host_batch in batches:
            batch = to_device(host_batch, self.device)
            with self.amp():
                output = self.task.update(self.forward, batch, self._named)  # type: ignore[attr-defined]
            self.take(output, batch)


def check_own_update(settings: TrainerSettings) -> None:
    """Refuse what a task that makes whole updates itself would silently leave out.

    Raises:
        ConfigError: Gradients are to be clipped, accumulated or scaled.
    """
    asked = {
        "accumulate_steps": settings.accumulate_steps > 1,
        "max_grad_norm": settings.max_grad_norm is not None,
        "amp_dtype": settings.amp_dtype == "fp16",
    }
    wrong = [name for name, is_asked in asked.items() if is_asked]
    if wrong:
        raise ConfigError(f"trainer.{', '.join(wrong)}: the task has an `update` of its own and must do that itself")


def drop_gradients(optimizers: Mapping[str, Optimizer]) -> None:
    """Do what `zero_grad` does, without the profiler's record that makes it ten times as dear."""
    for optimizer in optimizers.values():
        if type(optimizer).zero_grad is not Optimizer.zero_grad:
            optimizer.zero_grad()
            continue
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None


def share(weights: Sequence[Weight], num_batches: int) -> Weight:
    """Return the factor for the newest of `num_batches` losses, so that their sum is near the mean over all rows.

    Exact when all weights are equal; `correct_shares` makes it exact otherwise. Sums (weight 0) are just added.
    """
    first, newest = weights[0], weights[-1]
    if isinstance(first, float) and first == 0.0:
        return 1.0
    return newest / (first * num_batches)


def correct_shares(parameters: Sequence[Tensor], weights: Sequence[Weight]) -> None:
    """Rescale gradients made with `share`, so that every row counts alike when batches differ in size."""
    expected, total = weights[0] * len(weights), sum(weights[1:], start=weights[0])
    if isinstance(expected, float) and isinstance(total, float) and total in (0.0, expected):
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    torch._foreach_mul_(gradients, expected / total)
