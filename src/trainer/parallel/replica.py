"""A model that every process holds whole."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

from src.trainer.criterion import terms_of
from src.trainer.parallel.settings import ParallelSettings
from src.trainer.task import StepOutput, Task
from src.utils.errors import ConfigError
from src.utils.processes.ranks import Ranks

NUM_SLOTS = 16
"""How many numbers may travel with gradients."""


class TaskModule(nn.Module):
    """A task's step as a module, so that the task may use the model as it likes and the loss's parameters count too."""

    def __init__(self, task: Task, model: nn.Module, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.model = model
        criteria = [term.criterion for term in terms_of(task.criterion)]
        self.criteria = nn.ModuleList([each for each in criteria if isinstance(each, nn.Module)])
        self._task_and_model = (task, forward)

    def forward(self, batch: Any) -> tuple[Tensor, StepOutput]:
        task, model = self._task_and_model
        output = task.step(model, batch)
        return output.loss, output


class Replica:
    """A module whose gradients are averaged over all processes, with which a few numbers may travel.

    A message of their own would be one more to wait for, so they are the gradient of a parameter that nobody trains.
    """

    def __init__(self, module: nn.Module, settings: ParallelSettings, ranks: Ranks) -> None:
        dtypes = {parameter.dtype for parameter in module.parameters() if parameter.requires_grad}
        is_plain = settings.compress is None and not settings.find_unused and ranks.gradient_hook is None
        self._slots: nn.Parameter | None = None
        if is_plain and dtypes == {torch.float32}:  # else the numbers would not be in the same message, or be rounded
            device = next(module.parameters()).device
            self._slots = module.slots = nn.Parameter(torch.zeros(NUM_SLOTS, device=device))
        self._ddp = replicate(module, settings, ranks)
        self._world_size, self._num_carried = ranks.world_size, 0

    def __call__(self, batch: Any) -> tuple[Tensor, StepOutput]:
        made: tuple[Tensor, StepOutput] = self._ddp(batch)
        return made

    def no_sync(self) -> AbstractContextManager[None]:
        """Return the context in which gradients are only added up here."""
        context: AbstractContextManager[None] = self._ddp.no_sync()
        return context

    def carry(self, loss: Tensor, told: Tensor | None) -> Tensor:
        """Return `loss` such that its backward pass adds up `told` over the processes, if it can."""
        self._num_carried = 0
        if self._slots is None:
            return loss
        numbers = torch.zeros_like(self._slots)
        if told is not None and len(told) <= NUM_SLOTS:
            self._num_carried = len(told)
            numbers[: len(told)] = told * self._world_size  # DDP takes the mean
        self._slots.grad = None
        carried: Tensor = _Carry.apply(loss, self._slots, numbers)  # type: ignore[no-untyped-call]
        return carried

    def arrived(self) -> Tensor | None:
        """Return the sum of what was carried; None where nothing was."""
        if self._slots is None or self._slots.grad is None or not self._num_carried:
            return None
        return self._slots.grad[: self._num_carried].double()


class _Carry(torch.autograd.Function):
    """Returns a loss as it is, and gives a parameter the gradient that it is told to."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, slots: Tensor, numbers: Tensor) -> Tensor:
        ctx.numbers = numbers
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        return gradient, ctx.numbers, None


def replicate(module: nn.Module, settings: ParallelSettings, ranks: Ranks) -> Any:
    """Return `module` such that its gradients are averaged over all processes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # newer torch has another name for `broadcast_buffers`
        replica = DistributedDataParallel(
            module,
            broadcast_buffers=False,  # the step does that itself, where a wait for others is watched
            gradient_as_bucket_view=True,
            find_unused_parameters=settings.find_unused,
            static_graph=settings.static_graph,
        )
    hooks = {"fp16": default_hooks.fp16_compress_hook, "bf16": default_hooks.bf16_compress_hook}
    if ranks.gradient_hook is not None:
        replica.register_comm_hook(None, lambda state, bucket: ranks.gradient_hook(bucket))
    elif settings.compress is not None:
        replica.register_comm_hook(None, hooks[settings.compress])
    return replica


def with_shared_batch_norm(model: nn.Module, device: torch.device) -> nn.Module:
    """Return `model` with batch norms that take mean and variance over the rows of all processes.

    Raises:
        ConfigError: On a CPU, for which torch has none.
    """
    if device.type == "cpu":
        raise ConfigError("trainer.parallel.sync_batch_norm: torch has it for GPUs alone; leave it out on a CPU")
    shared: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    return shared
