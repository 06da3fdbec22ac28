"""Whether an optimizer or a schedule can go on with what a checkpoint gave it: it is tried, and leaves no trace."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from src.utils.alike import Unlike, check_alike


def check_settings(optimizer: Optimizer) -> None:
    """Let the constructor of one of torch's optimizers look at the settings of each group; rates are the schedule's.

    Raises:
        Unlike: Names the group and says what is wrong.
    """
    kind = type(optimizer)
    known = inspect.signature(kind).parameters.keys() - {"lr", "params"}
    for number, group in enumerate(optimizer.param_groups if kind.__module__.startswith("torch.") else []):
        try:
            kind(group["params"], **{key: value for key, value in group.items() if key in known})
        except Exception as error:
            raise Unlike(f"param_groups[{number}]: {error}") from error


def check_moments(optimizer: Optimizer) -> None:
    """Try the state of each parameter on a copy of it, one at a time, with a gradient of zeros.

    Where that fails without any state as well (sparse gradients are wanted, say), nothing can be found out this way.

    Raises:
        Unlike: Names the parameter by its number and says what is wrong.
    """
    number = -1
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            number += 1
            state = optimizer.state.get(parameter)
            if state is None or type(parameter.data) is not Tensor or "closure" in group:
                continue
            check_alike({}, state, f"state.{number}")
            if group.get("fused"):
                _lay_out(state, parameter, _step(optimizer, group, parameter, {}), f"state.{number}")
            try:
                _step(optimizer, group, parameter, state)
            except Exception as error:
                fresh: dict[str, Any] | None = None
                with suppress(Exception):
                    fresh = _step(optimizer, group, parameter, {})
                if fresh is not None:
                    check_alike(fresh, state, f"state.{number}")
                    raise Unlike(f"state.{number} makes no step: {error}".partition("\n")[0]) from error


def _lay_out(state: dict[str, Any], parameter: Tensor, fresh: Mapping[str, Any], where: str) -> None:
    """Have moments lie in memory as the parameter does: one kernel for all does not look at shapes and strides."""
    check_alike(fresh, state, where)
    for key, value in state.items():
        if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
            state[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _step(
    optimizer: Optimizer, group: Mapping[str, Any], parameter: Tensor, state: Mapping[str, Any]
) -> dict[str, Any]:
    """Make a step of one parameter and return the state it leaves."""
    copied = parameter.detach().clone().requires_grad_()
    copied.grad = torch.zeros_like(copied)
    trial = copy.copy(optimizer)  # without its hooks
    trial.param_groups = [{**group, "params": [copied]}]
    trial.state = defaultdict(dict, {copied: copy.deepcopy(dict(state))} if state else {})
    trial.step()
    return dict(trial.state[copied])


def check_next_move(scheduler: LRScheduler, optimizer: Optimizer) -> None:
    """Try the next move of one of torch's schedulers; those of others may do anything in theirs.

    Raises:
        Unlike: There is none.
    """
    total = getattr(scheduler, "total_steps", None)
    if not type(scheduler).__module__.startswith("torch.") or (total is not None and scheduler.last_epoch >= total):
        return
    before = copy.deepcopy(scheduler.state_dict())
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the optimizer has made no step, in this process
            scheduler.step(*([0.0] if isinstance(scheduler, ReduceLROnPlateau) else []))  # type: ignore[arg-type]
    except Exception as error:
        raise Unlike(f"cannot move on: {error}") from error
    scheduler.load_state_dict(before)
    for group, kept in zip(optimizer.param_groups, groups, strict=True):
        group.update(kept)
