"""What is known of all runs under a folder, read from what they left behind.

Reading thousands of configs takes seconds, so what was read is kept in `.runs.json` in that folder. An entry counts
only while size and time of each file it was read from are the same; a damaged or missing index is made anew. Whether
a run is running is never kept: its lock tells.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from src.utils.locks import is_held
from src.utils.whole_file import write_file

INDEX_NAME = ".runs.json"
FORMAT = 3
FILES = ("config.yaml", "metrics.csv", "log.txt")
"""What a record is made of."""
THEIR_FILES = ("config.json", "metrics.csv", "status.json")
"""The same of a run of a project of pytorch-template, which keeps its log elsewhere."""
MAX_DEPTH = 4
_SECTION_START = re.compile(r"^(?=[^\s#-])", re.MULTILINE)
"""Where a key stands at the begin of a line; the items of its list may stand there too."""
SETTLED_S = 2.0
"""A file younger than this may change again within the same tick of its clock: what it says is not kept."""


@dataclass
class RunRecord:
    """One run, at a glance."""

    config: dict[str, Any]
    """Value by dotted key."""
    end: str
    """`finished`, `pruned` (by a sweep), `stopped` (by a signal) or `crashed`; of a run that is running, what it would
    be if it died now; `unknown` of a run of pytorch-template that left no word of it."""
    monitor: str
    """`min val/loss`; empty when nothing is watched."""
    best: float | None
    best_epoch: int | None
    epochs: int
    """Epochs finished."""
    time_s: float | None
    """How long it ran, all its starts together."""


def list_runs(folder: Path) -> dict[str, tuple[RunRecord, bool]]:
    """Return (record, whether it is running now) of every run below `folder`, by its path relative to it."""
    index_path = folder / INDEX_NAME
    known, now_s = _read_index(index_path), time.time()
    runs, kept, has_changed = {}, {}, False
    for path in sorted(_find_runs(str(folder), MAX_DEPTH)):
        name = os.path.relpath(path, folder)
        files = FILES if os.path.lexists(f"{path}/config.yaml") else THEIR_FILES
        prints = [_fingerprint(f"{path}/{file}") for file in files]
        entry = known.get(name)
        if entry is not None and entry[0] == prints:
            record = RunRecord(**entry[1])
        else:
            has_changed = True
            record = read_run(Path(path))
            entry = [prints, vars(record)]
        runs[name] = (record, is_running(path))
        if max(mtime_ns for mtime_ns, _ in prints) / 1e9 < now_s - SETTLED_S:
            kept[name] = entry
    if has_changed or len(kept) != len(known):
        with contextlib.suppress(OSError):  # a folder of somebody else
            write_file(index_path, json.dumps({"format": FORMAT, "runs": kept}, separators=(",", ":")))
    return runs


def _read_index(path: Path) -> dict[str, Any]:
    try:
        index = json.loads(path.read_bytes())
        return dict(index["runs"]) if index["format"] == FORMAT else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _find_runs(folder: str, depth: int) -> Iterator[str]:
    """Yield the folders that hold a run: all that `RunDir` made have a lock file."""
    with contextlib.suppress(PermissionError), os.scandir(folder) as found:
        entries = list(found)
        if any(entry.name == "run.lock" for entry in entries):
            yield folder
        elif depth:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    yield from _find_runs(entry.path, depth - 1)


def _fingerprint(path: str) -> list[int]:
    try:
        found = os.stat(path)  # noqa: PTH116 (making 30,000 paths takes longer than asking)
    except OSError:
        return [0, -1]
    return [found.st_mtime_ns, found.st_size]


def is_running(run: str | Path) -> bool:
    """Return whether a process holds the lock of a run; a crashed one holds none."""
    return is_held(f"{run}/run.lock")


def read_run(path: Path) -> RunRecord:
    """Read what a run left behind; whatever is missing or damaged is left out."""
    if not (path / "config.yaml").exists() and (path / "config.json").exists():
        return _read_theirs(path)
    flat = _flat_config(_text(path / "config.yaml"))
    rows = list(csv.DictReader(io.StringIO(_text(path / "metrics.csv"))))
    monitor = str(flat.get("trainer.monitor") or _default_monitor(rows))
    best, best_epoch = _best(rows, monitor)
    epochs = max((int(_number(row.get("epoch")) or 0) for row in rows), default=0)
    step = max((int(_number(row.get("step")) or 0) for row in rows), default=0)
    end, time_s = _end_and_time(_text(path / "log.txt"), _is_complete(flat, epochs, step))
    return RunRecord(flat, end, monitor, best, best_epoch, epochs, time_s)


def _flat_config(text: str) -> dict[str, Any]:
    """Return value by dotted key. Sections are read apart, as runs have most of them in common: five times as fast."""
    try:
        return dict(pair for section in _SECTION_START.split(text) for pair in _flat(section))
    except yaml.YAMLError:
        pass  # sections that need each other: an alias and its anchor
    try:
        return dict(_flat(text))
    except yaml.YAMLError:
        return {}


@lru_cache(maxsize=4096)
def _flat(text: str) -> tuple[tuple[str, Any], ...]:
    config = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(text).get_single_data()
    return tuple(flattened(config)) if isinstance(config, dict) else ()


def _read_theirs(path: Path) -> RunRecord:
    """Read a run of a project of pytorch-template: its numbers have our names, its monitor theirs, `min val_loss`."""
    config, status = _json(path / "config.json"), _json(path / "status.json")
    flat = dict(flattened(config))
    rows = list(csv.DictReader(io.StringIO(_text(path / "metrics.csv"))))
    mode, _, name = str(flat.get("trainer.monitor", "")).partition(" ")
    ours = name.replace("val_", "val/", 1) if name.startswith("val_") else f"train/{name}"
    monitor = f"{mode} {ours}" if name else ""
    best, best_epoch = _best(rows, monitor)
    epochs = max((int(_number(row.get("epoch")) or 0) for row in rows), default=0)
    end = {"done": "finished", "stopped": "stopped"}.get(str(status.get("state")), "crashed" if status else "unknown")
    return RunRecord(flat, end, monitor, best, best_epoch, epochs, seconds_of(path))


def seconds_of(path: Path) -> float | None:
    """Return how long a run of pytorch-template ran, all its starts together, from its `status.json`."""
    seconds = _json(path / "status.json").get("seconds")
    return float(seconds) if isinstance(seconds, int | float) else None


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_text(path))
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def flattened(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value); lists become text, those of components without arguments their names."""
    for key, child in value.items():
        if isinstance(child, Mapping):
            yield from flattened(child, f"{prefix}{key}.")
        elif child is None or isinstance(child, (bool, int, float, str)):
            yield f"{prefix}{key}", child
        elif child and all(isinstance(each, Mapping) and "type" in each and not each.get("args") for each in child):
            yield f"{prefix}{key}", ", ".join(str(each["type"]) for each in child)
        else:
            yield f"{prefix}{key}", json.dumps(child, ensure_ascii=False, default=str)


def _default_monitor(rows: list[dict[str, Any]]) -> str:
    names = [name for name in (rows[0] if rows else {}) if name and name.startswith("val") and name.endswith("/loss")]
    return f"min {names[0]}" if names else ""


def _best(rows: list[dict[str, Any]], monitor: str) -> tuple[float | None, int | None]:
    """Return the best value and the epoch it is of; a tie is no improvement."""
    mode, _, name = monitor.partition(" ")
    best: tuple[float | None, int | None] = None, None
    for row in rows:
        value = _number(row.get(name))
        if value is not None and (best[0] is None or (value < best[0] if mode == "min" else value > best[0])):
            epoch = _number(row.get("epoch"))
            best = value, None if epoch is None else int(epoch)
    return best


def _number(cell: str | None) -> float | None:
    try:
        value = float(cell or "nan")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _is_complete(config: Mapping[str, Any], epochs: int, step: int) -> bool:
    max_epochs, max_steps = config.get("trainer.epochs"), config.get("trainer.max_steps")
    if max_epochs is None and max_steps is None:
        max_epochs = 10  # the default
    return bool((max_epochs and epochs >= max_epochs) or (max_steps and step >= max_steps))


def _end_and_time(log: str, is_complete: bool) -> tuple[str, float | None]:
    """Return how the last start of a run ended, and how long all starts took."""
    end, seconds, first, last, is_pruned = "crashed", 0.0, None, None, False
    for line in log.splitlines():
        try:
            at = datetime.fromisoformat(line[:23].replace(",", "."))
        except ValueError:
            continue  # goes on with the line above
        message = line[24:].partition(" ")[2].lstrip()
        if message.startswith("run  ") or first is None:
            seconds += (last - first).total_seconds() if first and last else 0.0
            first, end, is_pruned = at, "crashed", False
        last = at
        if message.startswith("stopping:"):
            is_complete = True  # by patience, or a hook: as the config had it
            is_pruned = message.startswith("stopping: pruned")
        elif message.startswith(("done in ", "stopped after ")):
            end = "pruned" if is_pruned else "finished" if is_complete else "stopped"
    return end, None if first is None or last is None else seconds + (last - first).total_seconds()
