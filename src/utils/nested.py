"""Mappings within mappings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested mappings and lists as one level of dotted names: `{"a": {"b": [1]}}` is `{"a.b.0": 1}`."""
    if isinstance(values, Mapping):
        parts = values.items()
    elif isinstance(values, (list, tuple)):
        parts = enumerate(values)  # type: ignore[assignment]
    else:
        return {prefix: values}
    flat = {}
    for key, part in parts:
        flat |= flatten(part, f"{prefix}.{key}" if prefix else str(key))
    return flat
