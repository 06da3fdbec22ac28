"""Small tools that their files import."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import repeat
from pathlib import Path
from typing import Any


def ensure_dir(dirname: str | Path) -> None:
    """Make a folder unless it is there."""
    Path(dirname).mkdir(parents=True, exist_ok=True)


def read_json(fname: str | Path) -> Any:
    """Return the content of a JSON file."""
    return json.loads(Path(fname).read_text(encoding="utf-8"))


def write_json(content: Any, fname: str | Path) -> None:
    """Write plain data as JSON."""
    Path(fname).write_text(json.dumps(content, indent=4), encoding="utf-8")


def inf_loop(data_loader: Iterable[Any]) -> Iterator[Any]:
    """Yield the batches of a loader again and again."""
    for loader in repeat(data_loader):
        yield from loader
