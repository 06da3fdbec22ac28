"""Everything of a run that has a memory: how it is saved and how it is put back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from torch import nn
from torch.optim import Optimizer

from src.trainer.resume import load_weights
from src.utils.errors import CheckpointError
from src.utils.seed import rng_state, set_rng_state

YOUNGER = ("guard",)
"""Owners that older checkpoints do not hold; they start afresh."""


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

    @property
    def place(self) -> str:
        """What people call this moment: `epoch 3` where one has just ended, else `step 130`."""
        return f"step {self.step}" if self.batch else f"epoch {self.epoch}"

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
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
        self.optimizer.load_state_dict(state["state"])


class RandomStreams:
    """The global random streams that the model draws from."""

    def state_dict(self) -> dict[str, Any]:
        return rng_state()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        set_rng_state(state)


def name_memory(
    model: nn.Module,
    criterion: Any,
    ema: Stateful | None,
    optimizers: Mapping[str, Optimizer],
    schedules: Mapping[str, Stateful],
    hooks: Sequence[Any],
    others: Mapping[str, Stateful],
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
        "rng": RandomStreams(),
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
            owner.load_state_dict(state[name])
        except (KeyError, ValueError, TypeError, RuntimeError, CheckpointError) as error:
            raise CheckpointError(
                f"{where}: {name} does not fit this run: {error}. Resume with the config of the run, or start from its "
                f"weights only with trainer.init_from"
            ) from error
