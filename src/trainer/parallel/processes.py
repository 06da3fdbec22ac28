"""How many processes train one model, and what that changes in the trainer: nothing, unless there are several."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from src.data.loading.share import SharedBatch
from src.model.metric import MetricSet
from src.trainer.checkpoints.memory import Stateful
from src.trainer.compiled import CompiledStep
from src.trainer.ema import AveragedWeights
from src.trainer.faults.nonfinite import FiniteGradients
from src.trainer.meters import Meters
from src.trainer.recompute import recompute
from src.trainer.settings import TrainerSettings
from src.trainer.step import Step
from src.trainer.task import StepOutput
from src.utils.processes.ranks import Ranks

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

    from src.trainer.parallel.shared_step import SharedStep
    from src.trainer.trainer import Trainer


class OneProcess:
    """Trains the model in this process alone.

    Args:
        settings: Of the trainer.
        ranks: The processes of this run.
    """

    meet: Callable[[StepOutput, SharedBatch], StepOutput] | None = None
    """Makes what a share of a batch gave into what the whole batch gave; None where each batch is whole."""

    def __init__(self, settings: TrainerSettings, ranks: Ranks) -> None:
        self.settings, self.ranks = settings, ranks

    def place(self, model: nn.Module, device: torch.device) -> nn.Module:
        """Return `model` where it is trained."""
        return self._arranged(model, device).to(device)

    def _arranged(self, model: nn.Module, device: torch.device) -> nn.Module:
        """Return `model` as it is trained on `device`."""
        recompute(model, self.settings.recompute)
        if self.settings.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # activations follow
        return model

    def average(self, model: nn.Module) -> AveragedWeights | None:
        """Return the moving average of the weights of `model`, as placed, if one is kept."""
        decay = self.settings.ema_decay
        return None if decay is None else AveragedWeights(model, decay)

    def finite_gradients(self, device: torch.device) -> FiniteGradients:
        """Return what says whether gradients are finite."""
        return FiniteGradients(device)

    def as_whole(self, stateful: Mapping[str, Stateful]) -> dict[str, Stateful]:
        """Return all that has a memory such that rank 0 saves it as one process would."""
        return dict(stateful)

    def make_meters(self, metrics: MetricSet, device: torch.device) -> Meters:
        """Return meters of a pass over all rows."""
        return Meters(metrics, device)

    def make_step(
        self, trainer: Trainer, take: Callable[[StepOutput, Any], None], wants_to_stop: Callable[[], bool]
    ) -> Step:
        """Return what makes one optimizer update.

        Args:
            trainer: Its model, task and optimizers are used.
            take: Called with what each batch gave.
            wants_to_stop: Whether this process wants the run to stop.
        """
        args = (
            trainer.task, trainer.forward, trainer.optimizers, self.settings, trainer.device, take, trainer.progress
        )  # fmt: skip
        return CompiledStep(trainer.train_loader, *args) if self.settings.compile else Step(*args)

    def bring(self, state: Callable[[], Mapping[str, Any]]) -> tuple[Mapping[str, Any], Mapping[str, DTensor]]:
        """Return what rank 0 saves of the state of a run, and by name what every process saves a shard of.

        Args:
            state: Makes it; all processes must call this.
        """
        return state(), {}

    def own(self, batches: Sequence[Any]) -> Sequence[Any]:
        """Return what this process has read of `batches`."""
        return batches

    def alone(self, model: nn.Module) -> nn.Module | None:
        """Return `model` such that this process can do a forward and backward pass by itself; None if it cannot."""
        return model

    def before_evaluation(self, model: nn.Module) -> None:
        """Make all processes evaluate the same model."""


class Replicas(OneProcess):
    """Trains a model that every process holds whole, each on its share of every batch."""

    def _arranged(self, model: nn.Module, device: torch.device) -> nn.Module:
        from src.trainer.parallel.replica import with_shared_batch_norm

        model = super()._arranged(model, device)
        return with_shared_batch_norm(model, device) if self.settings.parallel_settings.sync_batch_norm else model

    def make_meters(self, metrics: MetricSet, device: torch.device) -> Meters:
        from src.trainer.parallel.shared_meters import SharedMeters

        return SharedMeters(metrics, device, self.ranks)

    def make_step(
        self, trainer: Trainer, take: Callable[[StepOutput, Any], None], wants_to_stop: Callable[[], bool]
    ) -> Step:
        step = self._kind_of_step()(
            trainer.task,
            trainer.model,
            trainer.forward,
            trainer.optimizers,
            self.settings,
            trainer.device,
            take,
            self.ranks,
            wants_to_stop,
        )
        self.meet = step.meet
        return step

    def _kind_of_step(self) -> type[SharedStep]:
        from src.trainer.parallel.shared_step import SharedStep

        return SharedStep

    def own(self, batches: Sequence[Any]) -> Sequence[Any]:
        return [each.batch for each in batches]

    def alone(self, model: nn.Module) -> nn.Module | None:
        """Return a copy: the gradients of `model` itself are sent to the others."""
        return None if self.settings.parallel_settings.sync_batch_norm else copy.deepcopy(model)

    def before_evaluation(self, model: nn.Module) -> None:
        self.ranks.copy_from_main(list(model.buffers()))  # running means are those of each process's own rows
