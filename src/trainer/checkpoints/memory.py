"""Everything of a run that has a memory: how it is saved and how it is put back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim import Optimizer

from src.data.loading.loader import Loader
from src.trainer.checkpoints.resume import load_weights
from src.trainer.checkpoints.trial import check_moments, check_settings
from src.trainer.optimizers import WAYS
from src.utils.alike import Unlike, check_alike
from src.utils.device import to_device
from src.utils.errors import CheckpointError, KeelError
from src.utils.processes.ranks import ALONE, Ranks
from src.utils.seed import mix_seed, rng_state, seed_everything, set_rng_state

YOUNGER = ("guard",)
"""Owners that older checkpoints do not hold; they start afresh."""
YOUNGER_KEYS = ("bad_steps", "micro_batches", "evaluation_pieces", "best_at")
"""The same of what owners hold."""
ENDS = ("initial_lr", "min_lr", "max_lr", "base_momentum", "max_momentum")
"""Where the curves of torch's schedules begin and end, which they write into groups of parameters: the config says."""
MAX_PIECES = 1 << 16
"""Of a batch: more than rows of any."""
COMPARED = ("progress", "monitor", "scaler")
"""Owners whose states are of one kind for good, counts among them."""


class Stateful(Protocol):
    """What can be saved and put back."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Any, /) -> Any: ...


@dataclass
class Progress:
    """How far a run has come. Only finished things are counted."""

    epoch: int = 0
    """Passes over the training data."""
    step: int = 0
    """Optimizer updates."""
    batch: int = 0
    """Batches of the unfinished epoch."""
    samples: int = 0
    """Rows trained on, repeats counted."""
    evaluated_step: int = 0
    """Step of the newest evaluation."""
    bad_steps: int = 0
    """Steps that were left out or rolled back, because their numbers had gone wrong."""
    micro_batches: int = 1
    """Pieces that each batch is computed in, since memory ran out."""
    evaluation_pieces: int = 1
    """The same for evaluations."""

    @property
    def place(self) -> str:
        """What people call this moment: `epoch 3` where one has just ended, else `step 130`."""
        return f"step {self.step}" if self.batch else f"epoch {self.epoch}"

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for key in ("micro_batches", "evaluation_pieces"):
            if not 1 <= state.get(key, 1) <= MAX_PIECES:
                raise ValueError(f"progress.{key} is {state[key]}, 1 to {MAX_PIECES} is needed")
        self.__dict__.update(state)


class OptimizerMemory:
    """An optimizer's state together with its kind: torch itself loads the state of another kind without a word."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.kind = type(optimizer).__name__

    def state_dict(self) -> dict[str, Any]:
        return {"type": self.kind, "state": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state["type"] != self.kind:
            raise CheckpointError(f"is of {state['type']} there, {self.kind} here")
        groups = [
            {key: value for key, value in group.items() if key not in ("params", *WAYS)}
            for group in self.optimizer.param_groups
        ]
        check_alike({"param_groups": groups}, state["state"], "state", is_counted=False)
        saved, owned = state["state"]["param_groups"], self.optimizer.param_groups
        if len(saved) != len(owned):
            raise Unlike(f"groups of parameters are {len(saved)} there, {len(owned)} here")
        ways, ends = ([{key: own[key] for key in keys if key in own} for own in owned] for keys in (WAYS, ENDS))
        groups = [group | way for group, way in zip(saved, ways, strict=True)]
        self.optimizer.load_state_dict({**state["state"], "param_groups": groups})
        for group, end in zip(self.optimizer.param_groups, ends, strict=True):
            group.update(end)
        check_settings(self.optimizer)
        check_moments(self.optimizer)


class RandomStreams:
    """The global random streams that the model draws from: each of several processes has its own."""

    def __init__(self, ranks: Ranks = ALONE) -> None:
        self.ranks = ranks

    def state_dict(self) -> dict[str, Any]:
        own, *others = self.ranks.gather(rng_state()) or [{}]
        return {**own, "others": others} if others else own

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the stream of this rank; where the run had fewer ranks, with one of its own."""
        rank, others = self.ranks.rank, state.get("others", [])
        own = others[rank - 1] if 0 < rank <= len(others) else state
        check_alike(rng_state(), own, "rng")
        if rank <= len(others):
            set_rng_state(own)
        else:
            seed_everything(mix_seed(rank, *state["torch"][:16].tolist()))


class TaskMemory:
    """What a task carries from batch to batch: each of several processes carries what its share of the rows left.

    A checkpoint is read on the host, so it is moved to the device.
    """

    def __init__(self, task: Any, device: torch.device, ranks: Ranks = ALONE) -> None:
        self.task, self.device, self.ranks = task, device, ranks

    def state_dict(self) -> dict[str, Any]:
        own: dict[str, Any] = self.task.state_dict()
        return {"of_ranks": self.ranks.gather(own)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with what this rank carried; a run of one process may go on in several.

        Raises:
            CheckpointError: There were several processes, and are more or fewer now.
        """
        states = state["of_ranks"]
        if len(states) not in (1, self.ranks.world_size):
            raise CheckpointError(f"carries a state of each of {len(states)} processes; go on with as many")
        self.task.load_state_dict(to_device(states[self.ranks.rank if len(states) > 1 else 0], self.device))


def name_memory(
    model: nn.Module,
    criterion: Any,
    ema: Stateful | None,
    optimizers: Mapping[str, Optimizer],
    schedules: Mapping[str, Stateful],
    hooks: Sequence[Any],
    others: Mapping[str, Stateful],
    ranks: Ranks,
    **own: Stateful,
) -> dict[str, Stateful]:
    """Return everything of a run that has a memory, by the name under which it is saved.

    The random streams come last: nothing may draw after they are restored.
    """
    return {
        "model": model,
        **({"criterion": criterion} if isinstance(criterion, nn.Module) else {}),
        **({"ema": ema} if ema else {}),
        **{name: OptimizerMemory(optimizer) for name, optimizer in optimizers.items()},
        **schedules,
        **own,
        **{f"hook_{index}": hook for index, hook in enumerate(hooks) if hasattr(hook, "state_dict")},
        **others,
        "rng": RandomStreams(ranks),
    }


def collect_state(stateful: Mapping[str, Stateful]) -> dict[str, Any]:
    """Return the states of all, by name."""
    return {name: owner.state_dict() for name, owner in stateful.items()}


def restore_state(stateful: Mapping[str, Stateful], state: Mapping[str, Any], where: str) -> None:
    """Put every state back to its owner, in order.

    Raises:
        CheckpointError: The names differ, or a state does not fit its owner.
    """
    missing = [name for name in stateful if name not in state and name not in YOUNGER]
    if missing:
        raise CheckpointError(
            f"{where}: holds no {', '.join(missing)}; it was saved by a run without. To start from its weights only, "
            f"use trainer.init_from"
        )
    for name, owner in stateful.items():
        if name not in state:
            continue
        if isinstance(owner, nn.Module):
            load_weights(owner, state[name], where)
            continue
        try:
            if name.split(".")[0] in COMPARED:
                check_alike(owner.state_dict(), state[name], name, YOUNGER_KEYS)
            owner.load_state_dict(state[name])
        except Exception as error:  # what is damaged may fail in any way
            if isinstance(error, KeelError) and not isinstance(error, CheckpointError):
                raise
            raise CheckpointError(
                f"{where}: {name} does not fit this run: {_reason(error)}. Resume with the config of the run, or start "
                f"from its weights only with trainer.init_from"
            ) from error


def _reason(error: Exception) -> str:
    return f"no {error}" if isinstance(error, KeyError) else str(error).partition("\n")[0]


def find_place(progress: Progress, loader: Loader, batch_size: int | None) -> None:
    """Go on after the same rows where batches have another size now, with other ranks for example.

    Args:
        progress: As saved: it counts batches of the old size.
        loader: Of the new batches.
        batch_size: Rows in a batch of the run so far, of all processes together; None if the checkpoint doesn't say.

    Raises:
        ConfigError: The data can only be entered between whole batches.
    """
    if batch_size is None or batch_size == loader.batch_size or loader.settings.batch_sampler is not None:
        return
    progress.batch, num_seen = divmod(progress.batch * batch_size, loader.batch_size)
    loader.skip_rows(progress.epoch, progress.batch, num_seen)
