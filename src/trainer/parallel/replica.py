"""A model that every process holds whole."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
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

Told = Sequence[float] | Tensor
"""A few numbers to add up over the processes: on the host, or on the device where reading them would wait for it."""
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

    __call__ = forward
    """Without hooks, which nobody can have put on it."""


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
        self._world_size = ranks.world_size

    def __call__(self, batch: Any) -> tuple[Tensor, StepOutput]:
        made: tuple[Tensor, StepOutput] = self._ddp(batch)
        return made

    def no_sync(self) -> AbstractContextManager[None]:
        """Return the context in which gradients are only added up here."""
        context: AbstractContextManager[None] = self._ddp.no_sync()
        return context

    def backward(self, loss: Tensor, seed: Tensor, told: Told | None) -> Tensor | None:
        """Add up the gradients of `seed` times `loss`, and return the sum of `told` if it could go with them."""
        if self._slots is None:
            loss.backward(seed)  # type: ignore[no-untyped-call]
            return None
        carried = [] if told is None or len(told) > NUM_SLOTS else told
        self._slots.grad = None
        torch.autograd.backward((loss, self._slots), (seed, self._as_gradient(carried, self._slots)))
        assert self._slots.grad is not None
        return self._slots.grad[: len(carried)] if len(carried) else None

    def _as_gradient(self, told: Told, slots: Tensor) -> Tensor:
        """Return the gradient of `slots` with which all get the sum of `told`: DDP takes the mean."""
        if isinstance(told, Tensor):
            gradient = torch.zeros_like(slots)
            gradient[: len(told)] = told * self._world_size
            return gradient
        numbers = [each * self._world_size for each in told] + [0.0] * (len(slots) - len(told))
        return torch.tensor(numbers, dtype=slots.dtype, device=slots.device)


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
        compress = hooks[settings.compress]  # called from a function of another name: by its own, torch refuses gloo
        replica.register_comm_hook(None, lambda state, bucket: compress(state, bucket))
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
