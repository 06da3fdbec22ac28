"""Training a model of which every process holds a part: what that changes in the trainer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from src.data.loading.share import SharedBatch
from src.trainer.checkpoints.memory import OptimizerMemory, Stateful
from src.trainer.checkpoints.resume import load_weights
from src.trainer.checkpoints.shard_saving import take_apart
from src.trainer.criterion import Weight, terms_of
from src.trainer.ema import AveragedWeights
from src.trainer.faults.nonfinite import FiniteGradients
from src.trainer.optimizers import has_gradients
from src.trainer.parallel.processes import OneProcess, Replicas
from src.trainer.parallel.replica import Told
from src.trainer.parallel.shards import adopt, cut, find_units, shard_optimizer, shard_weights, whole
from src.trainer.parallel.shared_step import SharedStep
from src.trainer.rehearsal.rehearse import uses_uncalled
from src.trainer.settings import TrainerSettings
from src.trainer.step import Step
from src.trainer.task import StepOutput, Task
from src.trainer.views import Graph
from src.utils.errors import ConfigError
from src.utils.processes.ranks import Ranks

if TYPE_CHECKING:
    from src.trainer.trainer import Trainer

Take = Callable[[StepOutput, Any], None]
Gather = Callable[[dict[str, Any]], dict[str, Any]]


class Unsharded(OneProcess):
    """One process with a config for several: it holds everything, and refuses what several would refuse."""

    def place(self, model: nn.Module, device: torch.device) -> nn.Module:
        check_settings(self.settings)
        find_units(model, self.settings.parallel_settings.shard)
        return super().place(model, device)

    def make_step(self, trainer: Trainer, take: Take, wants_to_stop: Callable[[], bool]) -> Step:
        check_trainer(trainer)
        return super().make_step(trainer, take, wants_to_stop)


class Sharded(Replicas):
    """Trains a model of which every process holds a shard of each weight, gradient and optimizer state."""

    _leaves_shards = False

    def place(self, model: nn.Module, device: torch.device) -> nn.Module:
        check_settings(self.settings)
        model = self._arranged(model, device)
        patterns, before = self.settings.parallel_settings.shard, dict(model.named_parameters())
        mesh = init_device_mesh(device.type, (self.ranks.world_size,))
        self._average = None
        if self.settings.ema_decay is not None:
            self._average = copy.deepcopy(model, {id(each): each for each in before.values()})  # cutting copies them
            cut(self._average, find_units(self._average, patterns), mesh, self.settings, self.ranks)
            self._average.requires_grad_(False)
        cut(model, find_units(model, patterns), mesh, self.settings, self.ranks)
        self._moved: dict[Tensor, nn.Parameter] = {before[name]: each for name, each in model.named_parameters()}
        return model

    def make_step(self, trainer: Trainer, take: Take, wants_to_stop: Callable[[], bool]) -> Step:
        check_trainer(trainer)
        for optimizer in trainer.optimizers.values():
            adopt(optimizer, self._moved, self.ranks)
        self._moved = {}
        return super().make_step(trainer, take, wants_to_stop)

    def _kind_of_step(self) -> type[SharedStep]:
        return ShardedStep

    def average(self, model: nn.Module) -> AveragedWeights | None:
        decay = self.settings.ema_decay
        return None if decay is None else AveragedWeights(model, decay, self._average)

    def finite_gradients(self, device: torch.device) -> FiniteGradients:
        return FiniteShards(device, self.ranks)

    def gather(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return a state with whole tensors, on rank 0, or with its shards where each process saves its own."""
        gathered: dict[str, Any] = state if self._leaves_shards else whole(state, self.ranks.is_main)
        return gathered

    def bring(self, state: Callable[[], Mapping[str, Any]]) -> tuple[Mapping[str, Any], Mapping[str, DTensor]]:
        if not self.settings.parallel_settings.save_shards:
            return super().bring(state)
        self._leaves_shards = True
        try:
            return take_apart(state())
        finally:
            self._leaves_shards = False

    def alone(self, model: nn.Module) -> nn.Module | None:
        return None  # a shard of it makes no step

    def as_whole(self, stateful: Mapping[str, Stateful]) -> dict[str, Stateful]:
        return {name: self._as_whole(owner) for name, owner in stateful.items()}

    def _as_whole(self, owner: Any) -> Stateful:
        if isinstance(owner, nn.Module):
            return WholeModel(owner, self.gather)
        if isinstance(owner, AveragedWeights):
            return WholeAverage(owner, self.gather)
        return WholeOptimizer(owner, self.gather) if isinstance(owner, OptimizerMemory) else owner


class ShardedStep(SharedStep):
    """Makes optimizer updates of shards: gradients are added up and cut while they are computed."""

    def _renew_replica(self) -> None:
        self._replica = ShardedTask(self.task, self.forward)

    def _fitting_gradients(self, batches: Sequence[SharedBatch]) -> tuple[Weight, Tensor]:
        made = super()._fitting_gradients(batches)
        if not any(map(has_gradients, self.optimizers.values())):  # else nothing would be trained, without a word
            raise ConfigError(
                "trainer.parallel: fsdp follows gradients through the tensors that the model returns, and "
                f"{type(self.model).__name__} returns an object that hides them; let it return "
                "tensors, or dataclasses, tuples, lists or dicts of them, or use ddp"
            )
        return made


class ShardedTask:
    """A task's step of a model that gathers and cuts by itself, after every micro-batch: whole gradients never stay."""

    def __init__(self, task: Task, forward: Callable[..., Any]) -> None:
        self._task, self._forward = task, forward

    def __call__(self, batch: Any) -> tuple[Tensor, StepOutput]:
        try:
            output = self._task.step(self._forward, batch)
        except RuntimeError as error:
            if (mistake := uses_uncalled(error)) is not None:
                raise mistake from error
            raise
        return output.loss, output

    def backward(self, loss: Tensor, seed: Tensor, told: Told | None) -> None:
        """Make the gradients of `seed` times `loss`; `told` does not travel with them."""
        loss.backward(seed)  # type: ignore[no-untyped-call]

    def no_sync(self) -> AbstractContextManager[None]:
        """Do nothing: see above."""
        return nullcontext()


class FiniteShards(FiniteGradients):
    """Says whether all gradients are finite, those of the other processes included."""

    def __init__(self, device: torch.device, ranks: Ranks) -> None:
        super().__init__(device)
        self._ranks = ranks

    def hold(self, gradients: Sequence[Tensor | None]) -> bool:
        own = [getattr(gradient, "to_local", lambda each=gradient: each)() for gradient in gradients]
        return not self._ranks.largest(not super().hold(own))


class WholeModel:
    """A model's state as one process would save it; rank 0 gets it."""

    def __init__(self, model: nn.Module, gather: Gather) -> None:
        self.model, self._gather = model, gather

    def state_dict(self) -> dict[str, Any]:
        return self._gather(self.model.state_dict())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        load_weights(self.model, shard_weights(self.model, state), "weights")


class WholeAverage(WholeModel):
    """The same of a moving average."""

    def __init__(self, average: AveragedWeights, gather: Gather) -> None:
        super().__init__(average.model, gather)

    def state_dict(self) -> dict[str, Any]:
        return {"model": super().state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state["model"])


class WholeOptimizer:
    """An optimizer's state as one process would save it; rank 0 gets it."""

    def __init__(self, memory: OptimizerMemory, gather: Gather) -> None:
        self._memory, self._gather = memory, gather

    @property
    def optimizer(self) -> Optimizer:
        """Whose state it is."""
        return self._memory.optimizer

    def state_dict(self) -> dict[str, Any]:
        return self._gather(self._memory.state_dict())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._memory.load_state_dict({**state, "state": shard_optimizer(self.optimizer, state["state"])})


def check_settings(settings: TrainerSettings) -> None:
    """Refuse what does not go with shards.

    Raises:
        ConfigError: It names the key and what to do.
    """
    for key in ("compile", "channels_last"):
        if getattr(settings, key):
            raise ConfigError(f"trainer.{key}: does not go with trainer.parallel: fsdp; leave one of them out")
    if "rollback" in (settings.nonfinite, settings.loss_spikes):
        key = "nonfinite" if settings.nonfinite == "rollback" else "loss_spikes"
        raise ConfigError(f"trainer.{key}: rollback does not go with trainer.parallel: fsdp; use skip or stop")


def check_trainer(trainer: Trainer) -> None:
    """Refuse what does not go with shards.

    Raises:
        ConfigError: It names the key and what to do.
    """
    task = trainer.task
    if hasattr(task, "update"):
        raise ConfigError(
            "task: makes its updates itself, which does not go with trainer.parallel: fsdp; use ddp, or a task with a "
            "`step`"
        )
    for each in (term.criterion for term in terms_of(task.criterion)):
        if isinstance(each, nn.Module) and any(weight.requires_grad for weight in each.parameters()):
            raise ConfigError(
                f"loss: {type(each).__name__} has weights of its own, and trainer.parallel: fsdp trains those of the "
                "model alone; use ddp, or let the model hold them"
            )
    if any(isinstance(hook, Graph) for hook in trainer.hooks):
        raise ConfigError("hooks: views.Graph cannot trace a model under trainer.parallel: fsdp; leave it out")
    if trainer.freezing.has_phases:
        raise ConfigError(
            "parameters.freeze: freezing for some epochs does not go with trainer.parallel: fsdp; freeze for the whole "
            "run (a pattern alone), or use ddp"
        )
