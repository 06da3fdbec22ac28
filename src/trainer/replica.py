"""A model that every process holds whole."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

from src.trainer.criterion import terms_of
from src.trainer.parallel_settings import ParallelSettings
from src.trainer.task import StepOutput, Task
from src.utils.errors import ConfigError
from src.utils.ranks import Ranks


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
