"""Activations that are computed again in the backward pass instead of being kept."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from src.utils.errors import ConfigError


def recompute(model: nn.Module, patterns: Sequence[str]) -> None:
    """Let the modules whose names match forget what they have computed; the backward pass computes it again.

    Random streams and mixed precision are those of the first time, so gradients are the same to the bit. Names of
    parameters stay as they are.

    Raises:
        ConfigError: A pattern matches nothing, or a batch norm, which would count each batch twice.
    """
    for pattern in patterns:
        for name, module in matching_modules(model, pattern, "trainer.recompute").items():
            norms = [inner for inner, each in module.named_modules(prefix=name) if isinstance(each, _BatchNorm)]
            if norms:
                raise ConfigError(
                    f"trainer.recompute: {pattern!r} holds the batch norm {norms[0]}, whose running mean would count "
                    "each batch twice; name modules without one"
                )
            module.forward = functools.partial(checkpoint, module.forward, use_reentrant=False)


def matching_modules(model: nn.Module, pattern: str, where: str) -> dict[str, nn.Module]:
    """Return the modules whose names match and that lie in no other that does: of `blocks.*` the blocks themselves.

    Raises:
        ConfigError: There is none; names near ones.
    """
    named = {name: module for name, module in model.named_modules() if name and has_forward(module)}
    found = outermost({name: each for name, each in named.items() if fnmatchcase(name, pattern)})
    if not found:
        known = [*named, *(f"{name.rpartition('.')[0]}.*" for name in named if "." in name)]
        near = get_close_matches(pattern, known, 1, 0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(list(named)[:6]) or 'none'}"
        raise ConfigError(f"{where}: {pattern!r} matches no module of the model; {hint}")
    return found


def outermost(modules: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """Return those that lie in no other."""
    return {
        name: module
        for name, module in modules.items()
        if not any(name.startswith(f"{other}.") for other in modules if other != name)
    }


def has_forward(module: nn.Module) -> bool:
    """Return whether a module can be called, and is no mere container."""
    return type(module).forward is not nn.Module.forward
