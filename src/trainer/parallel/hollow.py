"""Models without values: built on torch's meta device, which knows shapes and types and takes no memory."""

from __future__ import annotations

import gc
import logging
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from src.trainer.parallel.choose import is_cut
from src.trainer.settings import TrainerSettings
from src.utils.errors import first_line
from src.utils.processes.ranks import Ranks
from src.utils.seed import forked_rng, rng_state, set_rng_state

log = logging.getLogger(__name__)


class NeedsValues(Exception):
    """A model that cannot be built without values, and why."""


def place_once(
    build: Callable[[], nn.Module], device: torch.device, settings: TrainerSettings, ranks: Ranks
) -> nn.Module:
    """Return the model that `build` makes, on `device`; one that is to be divided on the host, with values on rank 0.

    The others take the values from there when it is divided, and have the random streams of rank 0 from now on. A model
    that cannot be built without values has them on all ranks, which is said once. All ranks must call this.
    """
    if not is_cut(settings, ranks):
        return build().to(device)
    hollow, reason = None, ""
    try:
        hollow = build_hollow(build)
    except NeedsValues as error:
        reason = str(error)
    reason = ranks.broadcast(reason)
    if reason and ranks.is_main:
        log.warning("model  every rank builds all of it in its host's memory before it is cut: %s", reason)
    model = build() if reason or hollow is None or ranks.is_main else hollow
    set_rng_state(ranks.broadcast({**rng_state(), "cuda": []}))  # built on the host: no GPU's stream has moved
    return model


def build_hollow(build: Callable[[], nn.Module]) -> nn.Module:
    """Return the model that `build` makes with parameters and buffers that have no values.

    Raises:
        NeedsValues: Something else of the model would lack its values, or be another one than where there are values.
    """
    with forked_rng(), warnings.catch_warnings(action="ignore"), torch.device("meta"), _Made() as made:
        stream = torch.get_rng_state()
        try:
            model = build()
        except Exception as error:  # any of the user's model
            raise NeedsValues(first_line(error)) from error
        has_drawn = not torch.equal(torch.get_rng_state(), stream)
    if has_drawn:
        raise NeedsValues("it draws random numbers on a device of its own choice")
    held = [*model.parameters(), *model.buffers()]
    if any(map(is_lazy, held)):
        raise NeedsValues("its lazy layers take their sizes from a batch")
    if made.others(held):
        raise NeedsValues("it keeps a tensor that is neither a parameter nor a buffer; use register_buffer")
    return model


def is_hollow(model: nn.Module) -> bool:
    """Return whether a model has no values."""
    return any(parameter.is_meta for parameter in model.parameters())


class _Made(TorchFunctionMode):
    """Notes the tensors without values that are made."""

    def __init__(self) -> None:
        super().__init__()
        self._made: list[weakref.ref[Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.is_meta:
            self._made.append(weakref.ref(result))
        return result

    def others(self, held: list[Tensor]) -> bool:
        """Return whether any but `held` are left."""
        known = {id(tensor) for tensor in held}
        if not self._left(known):
            return False
        gc.collect()
        return self._left(known)

    def _left(self, known: set[int]) -> bool:
        return any(tensor is not None and id(tensor) not in known for tensor in (each() for each in self._made))
