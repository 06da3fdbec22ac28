"""Text of a config -> `Node` tree: plain values that remember where they were written.

PyYAML only splits the text into events. What a scalar means is decided here (YAML 1.2: `1e-3` is a number,
`on` is text, a date is text), and so are the limits that keep a hostile file from exhausting the machine.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from src.config.mistakes import Mistakes, found, nearest
from src.utils.errors import ConfigError

MAX_BYTES = 1_000_000
MAX_DEPTH = 50
MAX_NODES = 10_000

Scalar = str | int | float | bool | None
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_CONSTANTS: dict[str, Scalar] = {"": None, "~": None}
_CONSTANTS |= dict.fromkeys(("null", "Null", "NULL"))
_CONSTANTS |= dict.fromkeys(("true", "True", "TRUE"), True)
_CONSTANTS |= dict.fromkeys(("false", "False", "FALSE"), False)
_CONSTANTS |= {sign + dot: float(sign + "inf") for sign in ("", "+", "-") for dot in (".inf", ".Inf", ".INF")}
_CONSTANTS |= dict.fromkeys((".nan", ".NaN", ".NAN"), math.nan)
_INT = re.compile(r"[-+]?(0|[1-9][0-9]{0,99})")
_BASED_INT = re.compile(r"0x[0-9a-fA-F]{1,64}|0o[0-7]{1,64}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))([eE][-+]?[0-9]{1,9})?")
_LEADING_ZERO = re.compile(r"[-+]?0+[0-9]+")
_SURROGATES = re.compile(r"(?<!\\)\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}")
_UNDERSCORES = re.compile(r"[-+]?[0-9]+(_[0-9]+)+")


@dataclass(frozen=True, slots=True)
class Node:
    """A value and the place of its key in the file."""

    value: Any
    """A scalar, `list[Node]`, or `dict[str | int, Node]`."""
    place: str


def read_file(path: Path, mistakes: Mistakes) -> Node:
    """Reads a `.yaml` or `.json` file into a mapping node.

    Raises:
        ConfigError: When nothing can be read: no such file, not text, broken syntax, over a limit.
    """
    name = str(path)
    if path.is_dir():
        raise ConfigError(f"{name}: is a folder, a file is needed{_configs_in(path)}")
    if not path.exists():
        close = nearest(path.name, [each.name for each in path.parent.glob("*.[yj]*")] if path.parent.is_dir() else [])
        hint = f"; did you mean {path.parent / close}?" if close else _configs_in(path.parent)
        raise ConfigError(f"{name}: no such file{hint}")
    if not path.is_file():
        raise ConfigError(f"{name}: not a plain file")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{name}: can't be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name}: not UTF-8 text (byte 0x{data[error.start]:02x} at {error.start})") from None
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{name}: larger than 1 MB; a config holds settings, not data")
    if path.suffix == ".json":
        _check_json(text, name)
        text = _SURROGATES.sub(lambda pair: str(json.loads(f'"{pair[0]}"')), text)  # the one escape YAML lacks
    node = read_text(text, name, mistakes)
    if node is None:
        raise ConfigError(f"{name}: is empty")
    if not isinstance(node.value, dict):
        raise ConfigError(f"{node.place}: a mapping is needed, found {found(plain(node))}")
    return Node(node.value, name)


def read_text(text: str, name: str, mistakes: Mistakes, positions: bool = True) -> Node | None:
    """Reads YAML text; `None` when there is nothing in it.

    Args:
        text: The YAML text.
        name: What messages call it: a file name, or `command line #2`.
        mistakes: Receives duplicate keys and refused scalars; reading goes on after them.
        positions: Add line and column to each place.

    Raises:
        ConfigError: The syntax is broken, or the text is over a limit.
    """
    try:
        return _Reader(text, name, mistakes, positions).document()
    except yaml.YAMLError as error:
        raise ConfigError("\n".join([*mistakes.lines, _syntax_mistake(error, text, name, positions)])) from None


def plain(node: Node) -> Any:
    """Returns the values alone, freshly copied."""
    if isinstance(node.value, dict):
        return {key: plain(child) for key, child in node.value.items()}
    if isinstance(node.value, list):
        return [plain(child) for child in node.value]
    return node.value


def places(node: Node, path: tuple[str | int, ...] = ()) -> dict[tuple[str | int, ...], str]:
    """Returns the place of every key path."""
    table = {path: node.place}
    children: Iterator[tuple[Any, Node]] = iter(())
    if isinstance(node.value, dict):
        children = iter(node.value.items())
    elif isinstance(node.value, list):
        children = enumerate(node.value)
    for key, child in children:
        table |= places(child, (*path, key))
    return table


class _Reader:
    """Builds nodes from the parser's events; counts them, and follows aliases, as it goes."""

    def __init__(self, text: str, name: str, mistakes: Mistakes, positions: bool) -> None:
        self.events: Iterator[Any] = yaml.parse(text, Loader=_Loader)
        self.name = name
        self.mistakes = mistakes
        self.positions = positions
        self.anchors: dict[str, tuple[Node, int] | None] = {}
        self.nodes = 0

    def document(self) -> Node | None:
        next(self.events)  # start of the stream
        if isinstance(next(self.events), yaml.StreamEndEvent):
            return None
        first = next(self.events)
        if isinstance(first, yaml.ScalarEvent) and first.value == "" and first.implicit[0] and self.positions:
            return None
        node = self._node(first, depth=1)
        next(self.events)  # end of the document
        after = next(self.events)
        if not isinstance(after, yaml.StreamEndEvent):
            raise ConfigError(f"{self._place(after)}: a second document starts here; one config is one document")
        return node

    def _node(self, event: Any, depth: int) -> Node:
        place = self._place(event)
        if depth > MAX_DEPTH:
            raise ConfigError(f"{place}: nested deeper than {MAX_DEPTH}")
        if isinstance(event, yaml.AliasEvent):
            return self._alias(str(event.anchor), place)
        if event.tag is not None:
            self.mistakes.refuse(place, f"tag {event.tag} is not allowed; only plain values are read, nothing runs")
        start = self.nodes
        self._count(1, place)
        if event.anchor is not None:
            self.anchors[event.anchor] = None
        value: Any
        if isinstance(event, yaml.MappingStartEvent):
            value = self._mapping(depth)
        elif isinstance(event, yaml.SequenceStartEvent):
            value = []
            while not isinstance(child := next(self.events), yaml.SequenceEndEvent):
                value.append(self._node(child, depth + 1))
        else:
            value = self._scalar(event, place)
        node = Node(value, place)
        if event.anchor is not None:
            self.anchors[event.anchor] = (node, self.nodes - start)
        return node

    def _mapping(self, depth: int) -> dict[str | int, Node]:
        entries: dict[str | int, Node] = {}
        merged: list[Node] = []
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            key_node = self._node(event, depth + 1)
            value_node = self._node(next(self.events), depth + 1)
            key = key_node.value
            if key == "<<" and event.implicit[0]:
                merged += value_node.value if isinstance(value_node.value, list) else [value_node]
            elif isinstance(key, bool) or not isinstance(key, str | int):
                self.mistakes.add_at(key_node.place, f"a key must be text, found {found(plain(key_node))}; quote it")
            elif key in entries:
                self.mistakes.add_at(key_node.place, f"`{key}` given twice (first at {entries[key].place})")
            else:
                entries[key] = Node(value_node.value, key_node.place)
                self.mistakes.hand_on(value_node.place, key_node.place)
        for node in merged:
            if isinstance(node.value, dict):
                entries = {**node.value, **entries}
            else:
                self.mistakes.add_at(node.place, "`<<` needs a mapping to take keys from")
        return entries

    def _alias(self, anchor: str, place: str) -> Node:
        if anchor not in self.anchors:
            raise ConfigError(f"{place}: *{anchor} refers to nothing; write &{anchor} before it")
        target = self.anchors[anchor]
        if target is None:
            raise ConfigError(f"{place}: *{anchor} refers to itself")
        self._count(target[1], place)
        return Node(target[0].value, place)

    def _count(self, more: int, place: str) -> None:
        self.nodes += more
        if self.nodes > MAX_NODES:
            raise ConfigError(f"{place}: more than {MAX_NODES:,} values (aliases counted); a config holds settings")

    def _scalar(self, event: Any, place: str) -> Scalar:
        text: str = event.value
        if not event.implicit[0]:
            return text
        value = scalar(text)
        if value == text and _LEADING_ZERO.fullmatch(text):
            self.mistakes.refuse(place, f"{text} has a leading zero; write {text.lstrip('+-0') or 0}, or quote it")
        elif value == text and _UNDERSCORES.fullmatch(text):
            self.mistakes.refuse(place, f"{text} is not a number in YAML; write {text.replace('_', '')}, or quote it")
        return value

    def _place(self, event: Any) -> str:
        mark = event.start_mark
        return f"{self.name}:{mark.line + 1}:{mark.column + 1}" if self.positions else self.name


def scalar(text: str) -> Scalar:
    """Reads an unquoted scalar by the YAML 1.2 core rules: null, true/false, whole numbers, numbers, else text."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _INT.fullmatch(text):
        return int(text)
    if _BASED_INT.fullmatch(text):
        return int(text, 0)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text


def _syntax_mistake(error: yaml.YAMLError, text: str, name: str, positions: bool) -> str:
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return f"{name}: {getattr(error, 'reason', str(error).splitlines()[0])}"
    lines = text.splitlines()
    line = lines[mark.line] if mark.line < len(lines) else ""
    place = f"{name}:{mark.line + 1}:{mark.column + 1}" if positions else name
    if "\t" in line[: len(line) - len(line.lstrip())]:
        return f"{place}: tab used for indentation; use spaces"
    what = getattr(error, "problem", None) or "broken YAML"
    return f"{place}: {what}" + (f": `{line.strip()[:80]}`" if line.strip() else "")


def _check_json(text: str, name: str) -> None:
    """Holds a `.json` file to JSON's own syntax; it is then read as the YAML that JSON is part of."""

    def refuse(constant: str) -> None:
        raise ConfigError(f"{name}: {constant} is not JSON; a finite number is needed")

    try:
        json.loads(text, parse_constant=refuse)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{name}:{error.lineno}:{error.colno}: {error.msg}") from None
    except RecursionError:
        raise ConfigError(f"{name}: nested deeper than {MAX_DEPTH}") from None


def _configs_in(folder: Path) -> str:
    """Returns a hint with a few of the configs in a folder."""
    names = sorted(str(each) for each in folder.glob("*.yaml"))[:4] if folder.is_dir() else []
    return f"; there are {', '.join(names)}" if names else ""
