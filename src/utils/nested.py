"""What a batch is made of, whatever holds it together."""

from __future__ import annotations

import copy
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any


def parts_of(value: Any) -> Sequence[Any]:
    """Return what a dict, dataclass, list or tuple holds, in order; nothing for everything else."""
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, (list, tuple)):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, each.name) for each in fields(value)]
    return ()


def with_parts(value: Any, change: Callable[[Any], Any]) -> Any:
    """Return a dict, dataclass, list, tuple or named tuple with `change` made of each thing it holds; else `value`."""
    if isinstance(value, Mapping):
        entries = {key: change(part) for key, part in value.items()}
        kind: Any = type(value)
        if kind not in (OrderedDict, Counter):
            return entries
        kept = kind(entries)
        vars(kept).update(vars(value))  # torch keeps versions of modules there
        return kept
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(change, value))
    if isinstance(value, (list, tuple)):
        return type(value)(map(change, value))
    if is_dataclass(value) and not isinstance(value, type):
        changed = copy.copy(value)
        for each in fields(value):
            object.__setattr__(changed, each.name, change(getattr(value, each.name)))  # a frozen one, too
        return changed
    return value
