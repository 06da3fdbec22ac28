"""Mistakes of a config: collected with their places, raised once, each with the nearest right spelling."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from src.utils.errors import CheckpointError, ConfigError, DataError

KeyPath = tuple[str | int, ...]


class Mistakes:
    """Collects every mistake of a config, so that one run of the command shows them all.

    `places` says where each key path was written (`configs/x.yaml:12:3`, `command line #2`).
    """

    def __init__(self, places: Mapping[KeyPath, str] | None = None) -> None:
        self.places: Mapping[KeyPath, str] = places or {}
        self.lines: list[str] = []
        self._paths: set[KeyPath] = set()
        self._unread: set[str] = set()

    def add(self, path: KeyPath, what: str) -> None:
        """Notes what is wrong with the value at `path`, unless its text was refused already."""
        self._paths.add(path)
        if self.places.get(path) not in self._unread:
            self.add_at(self.at(path), what)

    def refuse(self, place: str, what: str) -> None:
        """Notes what is wrong with the text of a value: no value came of it that could be right or wrong."""
        self._unread.add(place)
        self.add_at(place, what)

    def hand_on(self, place: str, key_place: str) -> None:
        """Takes the place of a key for that of its value: if the text at one was refused, so it was at the other."""
        if place in self._unread:
            self._unread.add(key_place)

    def at(self, path: KeyPath) -> str:
        """Returns where `path` was written, and what it is called."""
        return f"{self.place(path)} {dotted(path)}".strip()

    def place(self, path: KeyPath) -> str:
        """Returns where `path`, or else the closest section around it, was written."""
        lengths = range(len(path), -1, -1)
        return next((self.places[path[:length]] for length in lengths if path[:length] in self.places), "")

    def add_at(self, place: str, what: str) -> None:
        """Notes what is wrong at a place that has no key path."""
        line = printable(f"{place}: {what}")
        if line not in self.lines:
            self.lines.append(line)

    def touch(self, *sections: str) -> bool:
        """Says whether one of these sections has a mistake: what follows from it would only confuse."""
        return any(self.knows_below((section,)) for section in sections)

    def knows(self, path: KeyPath) -> bool:
        """Says whether something wrong with the value at `path` is noted already."""
        return path in self._paths

    def knows_below(self, path: KeyPath) -> bool:
        """Says whether something wrong with the value at `path`, or within it, is noted already."""
        return any(each[: len(path)] == path for each in self._paths)

    def stop_if_any(self) -> None:
        """Raises one `ConfigError` with all mistakes, one a line, in the order in which they were written."""
        if self.lines:
            raise ConfigError("\n".join(sorted(self.lines, key=_place_in_order)))


@contextmanager
def placed(places: Mapping[KeyPath, str]) -> Iterator[None]:
    """Puts the place where a key was written before the lines of an error that begin with the key alone.

    What is found out while objects are built is told by rooms that do not know the config.
    """
    try:
        yield
    except (ConfigError, DataError, CheckpointError) as error:
        lines = [with_place(line, places) for line in str(error).splitlines()]
        if lines == str(error).splitlines():
            raise
        raise type(error)("\n".join(lines)) from error


def with_place(line: str, places: Mapping[KeyPath, str]) -> str:
    """Puts the place where a key was written before a line that begins with the key, and not with the name of a file.

    A key of `trainer` and the like need not be written out: its section is where to do so.
    """
    key = re.match(r"([a-z_]+(\.\w+)*)( \([^)]*\))?: ", line)
    path = tuple(int(word) if word.isdecimal() else word for word in key[1].split(".")) if key else ()
    begins = any(each[: min(len(path), 2)] == path[:2] for each in places if each)
    is_key = begins or (path[:1] in places and path[0] in ("task", "trainer", "loader", "logger"))
    return f"{Mistakes(places).place(path)} {line}" if path and is_key else line


def _place_in_order(line: str) -> tuple[int, str, int, int]:
    """Returns what sorts `x.yaml:9:3 key` before `x.yaml:10:1 key`; then the command line, and what has no place."""
    place = re.match(r"(command line #|\S+?:)(\d+)(?::(\d+))?", line)
    return (int(place[3] is None), place[1], int(place[2]), int(place[3] or 0)) if place else (2, "", 0, 0)


def dotted(path: KeyPath) -> str:
    """`("metrics", 0, "args")` -> `metrics.0.args`."""
    return ".".join(str(key) for key in path)


def found(value: Any) -> str:
    """Describes a received value as its author wrote it, shortened."""
    if isinstance(value, Mapping):
        return "a mapping" if value else "an empty mapping"
    if isinstance(value, list | tuple):
        return "a list" if value else "an empty list"
    if value is None or isinstance(value, bool):
        return {None: "nothing (null)", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def unquoted(value: Any) -> str:
    """Says that a text would be a number without its quotes."""
    try:
        return "; leave out the quotes" if isinstance(value, str) and math.isfinite(float(value)) else ""
    except ValueError:
        return ""


def printable(text: str) -> str:
    """Escapes control characters, so that a config cannot write to the terminal."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Returns the known word that `word` most likely stands for, if any is close."""
    return next(iter(_close(word, known)), None)


def misspelt(word: str, known: Iterable[str]) -> str | None:
    """Returns the known word that `word` must be a slip for: nearer than words that only resemble each other."""
    close = nearest(word, known)
    if close is None or word.rstrip("0123456789_") == close:  # a second one of its kind
        return None
    return close if 3 * _edits(word.lower(), close.lower()) <= min(len(word), len(close)) else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Returns `; did you mean X?`, or the known words when none is close."""
    names = sorted(set(known))
    close = _close(word, names)
    if close:
        return f"; did you mean {' or '.join(f'`{each}`' for each in close)}?"
    return f"; known: {listed(names)}" if names else ""


def _close(word: str, known: Iterable[str]) -> list[str]:
    """Returns the nearest known word; all that are one edit away, when there are several."""
    lower, known = word.lower(), list(known)
    scored = sorted(
        (_edits(lower, each.lower()), -difflib.SequenceMatcher(None, lower, each.lower()).ratio(), each)
        for each in known
        if each != word
    )
    initials = "".join(part[:1] for part in lower.split("_"))
    if len(initials) > 1 and initials in known:
        return [initials]  # learning_rate: lr
    parts = _parts(word)
    by_one_edit = [each for edits, _, each in scored if edits <= 1 and edits == scored[0][0]]
    longer = [each for edits, _, each in scored if edits > 2 and set() < parts < _parts(each)]
    return by_one_edit or longer[:1] or [each for _, ratio, each in scored[:1] if ratio <= -0.6]


def _parts(name: str) -> set[str]:
    """Returns the words that a class's name is made of: those of `CosineLR` are among those of `CosineAnnealingLR`."""
    return set(re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name))


def listed(names: Iterable[str], limit: int = 30) -> str:
    """Joins names with commas, and says how many are left out of a long list."""
    every = list(names)
    shown = ", ".join(every[:limit])
    return shown if len(every) <= limit else f"{shown} and {len(every) - limit} more"


def _edits(left: str, right: str) -> int:
    """Counts insertions, deletions, replacements and swaps of neighbours between two words (capped at 3)."""
    if abs(len(left) - len(right)) > 2:
        return 3
    before: list[int] = []
    row = list(range(len(right) + 1))
    for i, a in enumerate(left, start=1):
        before, previous, row = row, before, [i]
        for j, b in enumerate(right, start=1):
            cost = min(row[j - 1] + 1, before[j] + 1, before[j - 1] + (a != b))
            if i > 1 and j > 1 and a == right[j - 2] and left[i - 2] == b:
                cost = min(cost, previous[j - 2] + 1)
            row.append(cost)
    return min(row[-1], 3)
