"""Comparing what was read with what would stand in its place: its kinds, not its values."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch

MAX_INT = 1 << 64


class Unlike(ValueError):
    """Something is of another kind; the text says where, what it is, and what it should be."""


def check_alike(own: Any, there: Any, where: str, younger: Collection[str] = (), is_counted: bool = True) -> None:
    """Compare two nested states.

    Numbers may have any value, but a count (a whole number that is not negative in `own`) is none below 0. Tensors
    have the same type and, unless there is none yet in `own`, shape. None in `own` may be anything. Keys may be added.

    Args:
        own: What would be there.
        there: What is there.
        where: Of both, as messages call it.
        younger: Keys that older states do not have. Names with an underscore in front are taken for such.
        is_counted: Whether whole numbers in `own` are counts and the like; else they are numbers as any other.

    Raises:
        Unlike: Names the first place.
    """
    if isinstance(own, Mapping):
        _check(isinstance(there, Mapping), where, there, "a mapping")
        for key, part in own.items():
            if key in there:
                check_alike(part, there[key], f"{where}.{key}", younger, is_counted)
            elif key not in younger and not str(key).startswith("_"):
                raise Unlike(f"{where}.{key} is missing")
    elif isinstance(own, (list, tuple)):
        _check(isinstance(there, (list, tuple)), where, there, "a list")
        for index, part in enumerate(there):
            if own:
                check_alike(own[min(index, len(own) - 1)], part, f"{where}[{index}]", younger, is_counted)
    elif isinstance(own, torch.Tensor):
        is_fitting = isinstance(there, torch.Tensor) and there.dtype == own.dtype
        _check(is_fitting and (there.shape == own.shape or not own.numel()), where, there, shown(own))
    elif isinstance(own, bool):
        _check(isinstance(there, bool), where, there, "true or false")
    elif isinstance(own, int) and is_counted:
        is_fitting = isinstance(there, int) and not isinstance(there, bool) and abs(there) < MAX_INT
        _check(is_fitting and (there >= 0 or own < 0), where, there, "a count" if own >= 0 else "a whole number")
    elif isinstance(own, (int, float)):
        _check(isinstance(there, (int, float)) and not isinstance(there, bool), where, there, "a number")
    elif isinstance(own, str):
        _check(isinstance(there, str), where, there, "text")


def check_tensor(value: Any) -> torch.Tensor:
    """Return `value` if it is a tensor.

    Raises:
        Unlike: It is none.
    """
    if not isinstance(value, torch.Tensor):
        raise Unlike(f"{shown(value)} is no tensor")
    return value


def _check(is_fitting: bool, where: str, there: Any, wanted: str) -> None:
    if not is_fitting:
        raise Unlike(f"{where} is {shown(there)}, {wanted} is needed")


def shown(value: Any) -> str:
    """Return a value as messages show it: small ones in full, of large ones their kind."""
    if isinstance(value, torch.Tensor):
        return f"a tensor {list(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, (list, tuple)):
        return "a list"
    return repr(value)[:60]
