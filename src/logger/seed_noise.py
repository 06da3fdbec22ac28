"""What runs that differ in their seed alone say together: means with intervals, and whether two configs differ."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from src.logger.console import number
from src.logger.leaderboard import NOT_COMPARED
from src.logger.run_index import RunRecord, list_runs, read_run
from src.utils.errors import ConfigError

LEVEL = 0.95
FEWEST = 3
"""Pairs below which no verdict is given: with two, the interval is wider than the noise by a factor of nine."""
Values = dict[str, float]


@dataclass(frozen=True)
class Estimate:
    """A mean over `count` seeds, and how far it can be trusted."""

    mean: float
    std: float
    """Of one run, estimated from all: with `count - 1` in the denominator."""
    half: float
    """The 95 % interval is `mean - half` to `mean + half`; infinite for a single run."""
    count: int

    @property
    def p_value(self) -> float:
        """How often chance alone gives a mean as far from zero (two-sided t-test)."""
        from scipy.stats import t

        if self.count < 2 or self.mean == 0:
            return 1.0
        if self.std == 0:
            return 0.0
        return float(2 * t.sf(abs(self.mean) / (self.std / math.sqrt(self.count)), self.count - 1))


def estimate(values: Sequence[float]) -> Estimate:
    """Return mean, standard deviation and the interval by Student's t, for which the runs are taken as normal."""
    from scipy.stats import t

    count, mean = len(values), float(np.mean(values))
    if count < 2:
        return Estimate(mean, math.nan, math.inf, count)
    std = float(np.std(values, ddof=1))
    return Estimate(mean, std, float(t.ppf((1 + LEVEL) / 2, count - 1)) * std / math.sqrt(count), count)


def values_at_best(path: Path, record: RunRecord) -> Values:
    """Return what a run measured where its monitored value was best: what its `best.pt` is worth."""
    try:
        with (path / "metrics.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except OSError:
        return {}
    mode, _, name = record.monitor.partition(" ")
    measured = [row for row in rows if row.get(name)] or rows[-1:]
    if not measured:
        return {}
    better = min if mode == "min" else max
    best = better(measured, key=lambda row: float(row[name])) if name and measured[0].get(name) else measured[-1]
    return {key: float(cell) for key, cell in best.items() if cell and key.startswith(("train/", "val"))}


def summarise(runs: Sequence[Values]) -> dict[str, Estimate]:
    """Return the estimate of every metric that all runs have."""
    names = [name for name in (runs[0] if runs else {}) if all(name in run for run in runs)]
    return {name: estimate([run[name] for run in runs]) for name in names}


def summary_lines(summary: Mapping[str, Estimate]) -> list[str]:
    """Return a summary as aligned lines for people."""
    width = max(map(len, ("metric", *summary)))
    lines = [f"  {'metric':<{width}}  {'mean':>9}  {'std':>9}  95 % interval of the mean"]
    for name, each in summary.items():
        ends = f"{each.mean - each.half:.4g} to {each.mean + each.half:.4g}" if math.isfinite(each.half) else "unknown"
        lines.append(f"  {name:<{width}}  {each.mean:>9.4g}  {each.std:>9.2g}  {ends}")
    return lines


@dataclass(frozen=True)
class Repeats:
    """Finished runs of one config, by seed."""

    folder: Path
    config: Mapping[str, Any]
    """Of one of them; the others differ in `seed`."""
    monitor: str
    runs: Mapping[int, Values]
    left_out: int
    """Runs that have not finished."""


def find_repeats(folder: Path) -> Repeats:
    """Read all runs of a folder, or the one run that it is.

    Raises:
        ConfigError: There are none, or they differ in more than the seed.
    """
    is_run = (folder / "run.lock").exists()
    found = {".": (read_run(folder), False)} if is_run else list_runs(folder)
    done = {name: record for name, (record, running) in found.items() if not running and record.end == "finished"}
    if not done:
        raise ConfigError(f"{folder}: no finished run there; make some with train.py -c CONFIG --seeds 5")
    first = next(iter(done.values()))
    for record in done.values():
        other = [key for key, *_ in differing(first.config, record.config)]
        if other:
            named = ", ".join(other[:5])
            raise ConfigError(f"{folder}: its runs differ in {named}; name a folder of one config's seeds")
    runs = {int(record.config.get("seed", 0)): values_at_best(folder / name, record) for name, record in done.items()}
    return Repeats(folder, first.config, first.monitor, dict(sorted(runs.items())), len(found) - len(done))


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return (key, here, there) of all that differs but the seed and where runs are kept."""
    keys = [key for key in dict.fromkeys([*one, *other]) if key not in (*NOT_COMPARED, "seed")]
    return [(key, one.get(key), other.get(key)) for key in keys if one.get(key) != other.get(key)]


def compare_lines(a: Repeats, b: Repeats) -> list[str]:
    """Return what two configs differ in, and whether their results differ by more than seeds make them differ."""
    lines = []
    for letter, each in (("A", a), ("B", b)):
        left_out = f"; {each.left_out} not finished" if each.left_out else ""
        lines.append(f"{letter}        {each.folder}: seeds {' '.join(map(str, each.runs))}{left_out}")
    changed = [
        f"{key}: {'-' if old is None else old} -> {'-' if new is None else new}"
        for key, old, new in differing(a.config, b.config)
    ]
    lines += [f"differs  {line}" for line in changed or ["in nothing but seeds"]]
    seeds = [seed for seed in a.runs if seed in b.runs]
    if not seeds:
        return [*lines, "verdict  no seed in common, so nothing can be paired; train both with --seeds 5"]
    pairs = [(a.runs[seed], b.runs[seed]) for seed in seeds]
    names = [name for name in pairs[0][0] if all(name in one and name in other for one, other in pairs)]
    differences = {name: estimate([other[name] - one[name] for one, other in pairs]) for name in names}
    width = max(map(len, ("metric", *names)))
    lines.append(f"{'metric':<{width}}  {'A':>9}  {'B':>9}  {'B - A':>10}  95 % interval")
    for name, found in differences.items():
        means = [float(np.mean([pair[side][name] for pair in pairs])) for side in (0, 1)]
        ends = f"{found.mean - found.half:+.4g} to {found.mean + found.half:+.4g}" if found.count > 1 else "unknown"
        lines.append(f"{name:<{width}}  {means[0]:>9.4g}  {means[1]:>9.4g}  {found.mean:>+10.4g}  {ends}")
    return [*lines, f"verdict  {_verdict(a, b, differences)}"]


def _verdict(a: Repeats, b: Repeats, differences: Mapping[str, Estimate]) -> str:
    mode, _, name = a.monitor.partition(" ")
    if a.monitor != b.monitor or name not in differences:
        watched = f"A watches {a.monitor or 'nothing'}, B {b.monitor or 'nothing'}"
        return f"none: {watched}; give both the same trainer.monitor"
    each = differences[name]
    if each.count < FEWEST:
        seeds = "1 seed in common is" if each.count == 1 else f"{each.count} seeds in common are"
        return f"none: {seeds} too few to tell a difference from noise; 5 are a beginning"
    test = f"paired t-test over {each.count} seeds, p = {each.p_value:.2g}"
    if each.p_value >= 1 - LEVEL:
        unseen = f"; one below {number(each.half)} would not be seen" if each.half else ""
        return f"{name}: no more than seed noise ({test}){unseen}"
    better = "B" if (each.mean < 0) == (mode == "min") else "A"
    return f"{name}: {better} is better by {number(abs(each.mean))}, more than seed noise ({test})"
