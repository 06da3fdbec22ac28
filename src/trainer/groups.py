"""Which parameters are trained, and with which rate and decay, by patterns of their names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from src.trainer.settings import ParameterSettings
from src.utils.errors import ConfigError


def freeze(model: nn.Module, patterns: Iterable[str]) -> None:
    """Exclude parameters from training; batch norms without a trained parameter stay in evaluation mode.

    Raises:
        ConfigError: A pattern matches nothing; names near ones.
    """
    frozen = list(patterns)
    for pattern in frozen:
        for parameter in _matched(model, pattern, "parameters.freeze"):
            parameter.requires_grad_(False)
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and any(fnmatchcase(f"{name}.weight", pattern) for pattern in frozen):
            module.register_forward_pre_hook(_stay)


def _stay(module: nn.Module, inputs: Any) -> None:
    """Keep the statistics as they are, whatever `model.train()` says."""
    module.eval()


def check_groups(model: nn.Module, settings: ParameterSettings) -> None:
    """Find patterns that match nothing.

    Raises:
        ConfigError: There is one; names near ones.
    """
    for group in settings.groups:
        _matched(model, group.match, "parameters.groups")


def parameter_groups(parameters: Mapping[str, nn.Parameter], settings: ParameterSettings) -> list[Any]:
    """Return what an optimizer is given: the parameters, or groups of them where rates or decays differ.

    Frozen parameters are left out, unless nothing else is left to give.
    """
    trained = {name: value for name, value in parameters.items() if value.requires_grad}
    if not settings.groups and not settings.no_decay_on_norms_and_biases:
        return list(trained.values() or parameters.values())
    groups: dict[tuple[tuple[str, float], ...], list[nn.Parameter]] = {}
    for name, parameter in trained.items():
        options: dict[str, float] = {}
        own = next((group for group in settings.groups if fnmatchcase(name, group.match)), None)
        if own is not None:
            given = {"lr": own.lr, "weight_decay": own.weight_decay}
            options = {key: value for key, value in given.items() if value is not None}
        if settings.no_decay_on_norms_and_biases and parameter.dim() < 2:
            options["weight_decay"] = 0.0
        groups.setdefault(tuple(options.items()), []).append(parameter)
    return [{"params": members, **dict(options)} for options, members in groups.items()]


def _matched(model: nn.Module, pattern: str, where: str) -> list[nn.Parameter]:
    named = dict(model.named_parameters())
    found = [parameter for name, parameter in named.items() if fnmatchcase(name, pattern)]
    if not found:
        starts = {".".join(name.split(".")[:depth]) for name in named for depth in range(1, name.count(".") + 1)}
        known = [*named, *(f"{start}.*" for start in sorted(starts))]
        near = get_close_matches(pattern, known, 1, 0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(list(named)[:6])}, ..."
        raise ConfigError(f"{where}: {pattern!r} matches no parameter of the model; {hint}")
    return found
