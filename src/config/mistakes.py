"""Mistakes of a config: collected with their places, raised once, each with the nearest right spelling."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from src.utils.errors import ConfigError

KeyPath = tuple[str | int, ...]


class Mistakes:
    """Collects every mistake of a config, so that one run of the command shows them all.

    `places` says where each key path was written (`configs/x.yaml:12:3`, `command line #2`).
    """

    def __init__(self, places: Mapping[KeyPath, str] | None = None) -> None:
        self.places: Mapping[KeyPath, str] = places or {}
        self.lines: list[str] = []
        self._sections: set[str | int] = set()

    def add(self, path: KeyPath, what: str) -> None:
        """Notes what is wrong with the value at `path`."""
        self._sections.update(path[:1])
        self.add_at(self.at(path), what)

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
        return not self._sections.isdisjoint(sections)

    def stop_if_any(self) -> None:
        """Raises one `ConfigError` with all mistakes, one a line."""
        if self.lines:
            raise ConfigError("\n".join(self.lines))


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


def printable(text: str) -> str:
    """Escapes control characters, so that a config cannot write to the terminal."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Returns the known word that `word` most likely stands for, if any is close."""
    return next(iter(_close(word, known)), None)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Returns `; did you mean X?`, or the known words when none is close."""
    names = sorted(set(known))
    close = _close(word, names)
    if close:
        return f"; did you mean {' or '.join(f'`{each}`' for each in close)}?"
    return f"; known: {listed(names)}" if names else ""


def _close(word: str, known: Iterable[str]) -> list[str]:
    """Returns the nearest known word; all that are one edit away, when there are several."""
    lower = word.lower()
    scored = sorted(
        (_edits(lower, each.lower()), -difflib.SequenceMatcher(None, lower, each.lower()).ratio(), each)
        for each in known
        if each != word
    )
    by_one_edit = [each for edits, _, each in scored if edits <= 1 and edits == scored[0][0]]
    return by_one_edit or [each for _, ratio, each in scored[:1] if ratio <= -0.6]


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
