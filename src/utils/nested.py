"""What a batch is made of, whatever holds it together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
