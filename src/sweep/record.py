"""What a sweep leaves behind: `sweep.yaml`, and a folder for each trial with its `trial.json`."""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from src.config.changes import differences
from src.config.mistakes import dotted
from src.config.settings import Config
from src.logger.run_dir import new_folder
from src.utils.errors import ConfigError
from src.utils.locks import InUse, hold
from src.utils.paths import shown_path
from src.utils.secrets import masked
from src.utils.whole_file import write_file

FINISHED, PRUNED, CRASHED = "finished", "pruned", "crashed"
MAY_DIFFER = ("tune.samples", "tune.max_concurrent", "tune.resources_per_trial.gpu")
"""Keys that a sweep which goes on may have otherwise: more trials, or more at a time, and all made ones still count."""


@dataclass
class Trial:
    """One run of a sweep."""

    number: int
    values: dict[str, Any]
    """By key of the space."""
    path: Path
    outcome: str = ""
    """`finished`, `pruned` or `crashed`; empty before its end."""
    code: int | None = None
    """With which its process ended; below 0 the signal that killed it."""

    @property
    def name(self) -> str:
        """Name of its folder."""
        return self.path.name

    def end(self, outcome: str, code: int | None) -> None:
        """Put on record how it ended."""
        self.outcome, self.code = outcome, code
        self.write()

    def write(self) -> None:
        """Write `trial.json`."""
        record = {"number": self.number, "values": self.values, "outcome": self.outcome, "code": self.code}
        write_file(self.path / "trial.json", json.dumps(record) + "\n")

    def measured(self, metric: str) -> list[tuple[int, float]]:
        """Return (epochs finished, value) of every evaluation, from its `metrics.csv`."""
        return measured(self.path, metric)

    def last_words(self, count: int = 3) -> str:
        """Return the end of what its process wrote to standard error, to tell why it crashed."""
        try:
            text = (self.path / "output.txt").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""
        return "\n".join([line for line in text.splitlines() if line.strip()][-count:])


def measured(path: Path, metric: str) -> list[tuple[int, float]]:
    """Return (epochs finished, value) of every evaluation of a run; those that are no finite number are left out."""
    try:
        with (path / "metrics.csv").open(encoding="utf-8", newline="") as file:
            rows = [(row.get("epoch"), row.get(metric)) for row in csv.DictReader(file)]
    except OSError:
        return []
    found = [(int(epoch or 0), float(value)) for epoch, value in rows if value]
    return [(epoch, value) for epoch, value in found if math.isfinite(value)]


class SweepFolder:
    """The folder `<save_dir>/<name>/tune_MMDD_HHMMSS/`, locked while a sweep runs in it.

    Attributes:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._lock = hold(path / "sweep.lock")
        except InUse as owner:
            raise ConfigError(f"{shown_path(path)}: {owner} is running this sweep; stop it first") from None

    @classmethod
    def create(cls, parent: Path, config: Config) -> SweepFolder:
        """Make a new folder below `parent`."""
        parent.mkdir(parents=True, exist_ok=True)
        path = new_folder(parent, "tune_")
        folder = cls(path)
        write_file(path / "sweep.yaml", _text(config))
        return folder

    @classmethod
    def open(cls, path: Path, config: Config) -> SweepFolder:
        """Go on in a folder.

        Raises:
            ConfigError: It is no sweep's folder, another process uses it, or the config is another one.
        """
        try:
            before = yaml.safe_load((path / "sweep.yaml").read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError):
            raise ConfigError(
                f"--resume {shown_path(path)}: no sweep there; give a folder such as tune_1121_093000"
            ) from None
        now = yaml.safe_load(_text(config))
        changed = [each for each in differences(before, now, ()) if dotted(each.path) not in MAY_DIFFER]
        if changed:
            lines = [f"{shown_path(path)}: {each}: its trials would not be comparable" for each in changed]
            raise ConfigError("\n".join([*lines, "give the config as it was, or start a new sweep without --resume"]))
        return cls(path)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the lock here: Ray writes down a copy of what it is given."""
        return {"path": self.path}

    def discard(self) -> None:
        """Take the folder back, and those around it that hold nothing else."""
        self._lock.release()
        shutil.rmtree(self.path)
        with suppress(OSError):  # other runs are there
            self.path.parent.rmdir()
            self.path.parent.parent.rmdir()

    def trials(self) -> list[Trial]:
        """Return the trials that were begun, in order."""
        found = []
        for path in sorted(self.path.glob("trial_*/trial.json")):
            found.append(Trial(path=path.parent, **json.loads(path.read_text(encoding="utf-8"))))
        return found

    def begin(self, number: int, values: Mapping[str, Any]) -> Trial:
        """Make the folder of a trial."""
        trial = Trial(number, dict(values), self.path / f"trial_{number:03d}")
        trial.path.mkdir(exist_ok=True)
        trial.write()
        return trial


def newest_sweep(parent: Path) -> Path | None:
    """Return the newest folder of a sweep below `parent`, or None."""
    found = {path.parent: path.stat().st_mtime_ns for path in parent.glob("tune_*/sweep.yaml")}
    return max(found, key=lambda path: found[path], default=None)


def _text(config: Config) -> str:
    return yaml.safe_dump(masked(config.as_dict()), sort_keys=False, allow_unicode=True, width=120)
