"""`--print-config`: the resolved config as YAML, with where each value came from as a comment."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from src.config.mistakes import KeyPath, printable
from src.config.settings import Config

DEFAULT = "default"
_COMMENT_COLUMN = 44


def printed(config: Config) -> str:
    """Returns the config as YAML that reads back to an equal one."""
    lines = list(_lines(config.as_dict(), (), config.places))
    return "".join(f"{text:<{_COMMENT_COLUMN}}  # {place}\n" if place else f"{text}\n" for text, place in lines)


def place_of(path: KeyPath, places: Mapping[KeyPath, str]) -> str:
    """Returns where the value at a key path was written; `default` for one that was not.

    The short forms `loss: mse` and `metrics: [accuracy]` write the `type` and the `name` with the section itself.
    """
    written_with = path[:-1] if path[-1:] in (("type",), ("name",)) else path
    is_short_form = written_with in places and not any(key[:-1] == written_with for key in places)
    return printable(places.get(path) or (places[written_with] if is_short_form and written_with else DEFAULT))


def _lines(value: Any, path: KeyPath, places: Mapping[KeyPath, str]) -> Iterator[tuple[str, str]]:
    """Yields (line, place) of a mapping or a list of mappings; sections have no place of their own."""
    indent = "  " * (len(path))
    for key, child in value.items() if isinstance(value, Mapping) else enumerate(value):
        lead = f"{indent}{_flow(key)}:" if isinstance(value, Mapping) else f"{indent}-"
        if not _is_block(child):
            yield f"{lead} {_flow(child)}", place_of((*path, key), places)
            continue
        inner = list(_lines(child, (*path, key), places))
        if isinstance(value, Mapping):
            yield lead, ""
        else:  # the first key of an item stands behind its dash
            text, place = inner[0]
            inner[0] = f"{lead} {text.lstrip()}", place
        yield from inner


def _is_block(value: Any) -> bool:
    """Says whether a value is a section with lines of its own; lists of plain values stay on one line."""
    if isinstance(value, Mapping):
        return bool(value)
    return isinstance(value, list) and bool(value) and all(isinstance(item, Mapping) and item for item in value)


def _flow(value: Any) -> str:
    """Writes a value on one line, as both YAML 1.1 and 1.2 read it."""
    if isinstance(value, list):
        return f"[{', '.join(map(_flow, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_flow(key)}: {_flow(item)}' for key, item in value.items())}}}"
    style = '"' if isinstance(value, str) and not value.isprintable() else None
    text: str = yaml.safe_dump(
        [value], default_flow_style=True, width=math.inf, allow_unicode=True, default_style=style
    )
    return text.strip()[1:-1]
