"""Which parameters have a rate or a decay of their own, by patterns of their names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.optim import Optimizer

from src.trainer.settings import ParameterSettings
from src.utils.errors import ConfigError

FACTOR = "lr_factor"
"""Key of a parameter group: how much of its rate it has been left."""


def check_groups(model: nn.Module, settings: ParameterSettings) -> None:
    """Find patterns that match nothing.

    Raises:
        ConfigError: There is one; names near ones.
    """
    for group in settings.groups:
        matched(model, group.match, "parameters.groups")


def parameter_groups(parameters: Mapping[str, nn.Parameter], settings: ParameterSettings) -> list[Any]:
    """Return what an optimizer is given: the parameters, or groups of them where rates or decays differ.

    Frozen parameters are left out, unless nothing else is left to give. `scale_rates` then applies `layer_decay`.

    Raises:
        ConfigError: There are none.
    """
    if not parameters:
        raise ConfigError(
            "optimizer: the model has no weights to train; torch does not look into lists and dicts for layers: keep "
            "them in nn.ModuleList or nn.ModuleDict. Where nothing is to be trained by it, leave `optimizer` out"
        )
    trained = {name: value for name, value in parameters.items() if value.requires_grad}
    if not settings.groups and not settings.no_decay_on_norms_and_biases and settings.layer_decay == 1.0:
        return list(trained.values() or parameters.values())
    depths = layer_depths(parameters)
    top = max(depths.values(), default=0)
    groups: dict[tuple[tuple[str, float], ...], list[nn.Parameter]] = {}
    for name, parameter in trained.items():
        options: dict[str, float] = {}
        own = next((group for group in settings.groups if fnmatchcase(name, group.match)), None)
        if own is not None:
            given = {"lr": own.lr, "weight_decay": own.weight_decay}
            options = {key: value for key, value in given.items() if value is not None}
        if settings.no_decay_on_norms_and_biases and parameter.dim() < 2:
            options["weight_decay"] = 0.0
        if settings.layer_decay != 1.0:
            options[FACTOR] = settings.layer_decay ** (top - depths[name])
        groups.setdefault(tuple(options.items()), []).append(parameter)
    return [{"params": members, **dict(options)} for options, members in groups.items()]


def scale_rates(optimizer: Optimizer) -> None:
    """Multiply each rate by what `layer_decay` leaves of it. Before any schedule is made, which keeps the ratios."""
    for group in optimizer.param_groups:
        group["lr"] *= group.get(FACTOR, 1.0)


def layer_depths(names: Iterable[str]) -> dict[str, int]:
    """Return how high each parameter stands, the lowest at 0.

    A layer is an element of a numbered list, `encoder.layer.3`; names without a number in a row make one layer.
    Names are in the order in which the model holds them.
    """
    depths: dict[str, int] = {}
    depth, before = -1, None
    for name in names:
        numbered = re.match(r"(?:.*?\.)??\d+(?=\.)", name)
        layer = numbered[0] if numbered else ""
        depth += layer != before
        depths[name], before = depth, layer
    return depths


def matched(model: nn.Module, pattern: str, where: str) -> list[nn.Parameter]:
    """Return the parameters whose names match.

    Raises:
        ConfigError: There is none; names near ones.
    """
    named = dict(model.named_parameters())
    found = [parameter for name, parameter in named.items() if fnmatchcase(name, pattern)]
    if not found:
        starts = {".".join(name.split(".")[:depth]) for name in named for depth in range(1, name.count(".") + 1)}
        known = [*named, *(f"{start}.*" for start in sorted(starts))]
        near = get_close_matches(pattern, known, 1, 0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(list(named)[:6])}, ..."
        raise ConfigError(f"{where}: {pattern!r} matches no parameter of the model; {hint}")
    return found
