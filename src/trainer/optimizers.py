"""What each step asks of optimizers, at half of torch's price and with the same bits."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim import optimizer as torch_optimizer

from src.utils.command import shortage
from src.utils.errors import ConfigError, KeelError, first_line
from src.utils.own_line import own_line

WAYS = ("foreach", "fused", "capturable", "differentiable")
"""Arguments that say by which of torch's ways an optimizer computes: config and device decide, no checkpoint."""


def known_way(kind: Any, parameters: Iterable[nn.Parameter], given: Collection[str] = ()) -> dict[str, bool]:
    """Return the argument that tells an optimizer of torch on a CPU what it would find out anew at each step.

    None where one of `WAYS` is among the arguments `given`.

    That is to update one parameter after the other. One kernel for all (`fused`) must be asked for: on a CPU it takes
    it on trust that weights, gradients and moments lie in memory alike, and gives wrong numbers where they do not.
    """
    is_open = kind.__module__.startswith("torch.optim.") and not any(way in given for way in WAYS)
    is_on_cpu = all(parameter.device.type == "cpu" for parameter in parameters)
    return {"foreach": False} if is_open and is_on_cpu else {}


def check_fused(optimizer: Optimizer, named: Mapping[str, nn.Parameter]) -> None:
    """Refuse to update weights with gaps in memory by torch's kernel for the CPU, which would write into the gaps.

    Raises:
        ConfigError: Names the parameter.
    """
    fused = {each for group in optimizer.param_groups if group.get("fused") for each in group["params"]}
    for name, parameter in named.items():
        if parameter in fused and parameter.is_cpu and torch.empty_like(parameter).stride() != parameter.stride():
            raise ConfigError(
                f"optimizer.args.fused: {name} {list(parameter.shape)} does not lie in memory in one piece; torch's "
                "kernel for the CPU would give it wrong values; leave fused out, or make the parameter of a copy"
            )


def parameters_of(optimizer: Optimizer) -> list[nn.Parameter]:
    """Return what an optimizer trains, group after group."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def drop_gradients(optimizers: Mapping[str, Optimizer]) -> None:
    """Do what `zero_grad` does, without the profiler's record that makes it ten times as dear."""
    for optimizer in optimizers.values():
        if type(optimizer).zero_grad is not Optimizer.zero_grad:
            optimizer.zero_grad()
            continue
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None


def apply_gradients(optimizer: Optimizer) -> None:
    """Do what `step` does, without the profiler's record and the marks for the compiler around it.

    These take as long as the update of a small model. Torch puts record and hooks around the `step` of every class, and
    most of its own turn gradients off inside, with marks for a compiler that is not at work here. Where nobody watches,
    what is inside is called.
    """
    step = type(optimizer).step
    if (
        getattr(step, "__code__", None) is not _AROUND_STEP
        or "step" in optimizer.__dict__  # a scheduler or a user has put something around it
        or optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
        or torch_optimizer._global_optimizer_pre_hooks
        or torch_optimizer._global_optimizer_post_hooks
        or torch.autograd.profiler._is_profiler_enabled
    ):
        optimizer.step()
        return
    update: Any = step.__wrapped__  # type: ignore[attr-defined]
    if getattr(update, "__code__", None) is not _WITHOUT_GRADIENTS or optimizer.defaults["differentiable"]:
        update(optimizer)
        return
    was_on = torch.is_grad_enabled()
    torch._C._set_grad_enabled(False)  # what `torch.no_grad` does, in a tenth of the time
    try:
        update.__wrapped__(optimizer)
    finally:
        torch._C._set_grad_enabled(was_on)


def failed_update(optimizer: Optimizer, error: Exception) -> Exception:
    """Return what a user is told when the `step` of an optimizer has failed."""
    if isinstance(error, KeelError) or shortage(error):
        return error
    reason = f"{type(error).__name__}: {first_line(error)}{own_line(error, ('src/trainer/optimizers.py',))}"
    return ConfigError(f"optimizer: {type(optimizer).__name__} cannot make a step: {reason}")


def has_gradients(optimizer: Optimizer) -> bool:
    """Say whether any parameter has one: in a phase that freezes all of an optimizer's, none has."""
    return any(parameter.grad is not None for group in optimizer.param_groups for parameter in group["params"])


_AROUND_STEP = Optimizer.profile_hook_step(lambda optimizer: None).__code__
_WITHOUT_GRADIENTS = torch_optimizer._use_grad_for_differentiable(lambda optimizer: None).__code__
