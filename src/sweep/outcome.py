"""What a sweep found: the table of its trials, a page with pictures, and the config of the best."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from src.config.tune import RANGES, Distribution
from src.logger.console import number
from src.logger.report.chart import Series, chart
from src.logger.report.html import Html, element, section, table
from src.logger.report.page import write_page
from src.logger.run_index import read_run
from src.run.closing import next_commands, same_run_command
from src.sweep.ray_tune import Sweep, shown
from src.sweep.record import CRASHED, Trial
from src.sweep.space import num_trials, plain_name
from src.utils.paths import shown_path
from src.utils.whole_file import write_file

MARK = "# Best of "
"""How a config that a sweep wrote begins; another file of its name is left alone."""
MAX_SHOWN = 20


def tell_outcome(sweep: Sweep, config_file: Path) -> Iterator[str]:
    """Write `trials.csv`, `trials.html` and `<name>_best.yaml`, and yield what a user reads in the end."""
    trials = sweep.folder.trials()
    frame = trials_table(sweep, trials)
    folder = sweep.folder.path
    write_file(folder / "trials.csv", frame.to_csv(index=False))
    _write_page(sweep, trials, frame)
    yield ""
    yield table_text(sweep, frame.head(MAX_SHOWN))
    if len(frame) > MAX_SHOWN:
        yield f"... {len(frame) - MAX_SHOWN} more in {shown_path(folder / 'trials.csv')}"
    counts = ", ".join(f"{count} {outcome}" for outcome, count in frame["outcome"].value_counts().items())
    yield f"trials   {len(frame)} of {num_trials(sweep.tune)}: {counts}"
    yield f"table    {shown_path(folder / 'trials.csv')}"
    yield f"pictures {shown_path(folder / 'trials.html')}"
    if frame.loc[frame["outcome"] != CRASHED, sweep.metric].notna().any():
        yield from _tell_best(sweep, trials, frame, config_file)
    else:
        yield f"best     none: no trial that did not crash has measured {sweep.metric}"


def trials_table(sweep: Sweep, trials: list[Trial]) -> pd.DataFrame:
    """Return one row per trial, the best first and crashed ones last: how it ended, its best value and when."""
    rows = []
    for trial in trials:
        record, values = read_run(trial.path), trial.measured(sweep.metric)
        choose = min if sweep.mode == "min" else max
        epoch, best = choose(values, key=lambda each: each[1]) if values else (None, math.nan)
        found = {sweep.metric: best, "at_epoch": epoch, "evaluations": len(values), "time_s": record.time_s}
        rows.append({"trial": trial.name, "outcome": trial.outcome or "stopped", **found, **trial.values})
    columns = ["trial", "outcome", sweep.metric, "at_epoch", "evaluations", "time_s", *sweep.tune.space]
    frame = pd.DataFrame(rows, columns=columns)
    for column in ("at_epoch", "evaluations"):
        frame[column] = frame[column].astype("Int64")
    ranked = frame.sort_values(sweep.metric, ascending=sweep.mode == "min", kind="stable")
    return ranked.sort_values("outcome", key=lambda outcomes: outcomes == CRASHED, kind="stable", ignore_index=True)


def table_text(sweep: Sweep, frame: pd.DataFrame) -> str:
    """Return the table as aligned lines."""
    short = frame.rename(columns={key: plain_name(key, sweep.tune.space) for key in sweep.tune.space})
    cells = short.drop(columns="time_s").astype(object)
    text: str = cells.map(lambda cell: "-" if cell is pd.NA or cell != cell else shown(cell)).to_string(index=False)
    return text


def _tell_best(sweep: Sweep, trials: list[Trial], frame: pd.DataFrame, config_file: Path) -> Iterator[str]:
    first = frame.iloc[0]
    best = next(trial for trial in trials if trial.name == first["trial"])
    run = shown_path(best.path)
    what = f"{sweep.metric} {number(first[sweep.metric])}"
    yield f"best     {best.name}: {what} after epoch {first['at_epoch']}"
    for line in (*next_commands(best.path, sweep.config, sweep.parts), same_run_command(best.path)):
        yield f"         {line}"
    target = config_file.with_name(f"{sweep.config.name}_best.yaml")
    head = f"{MARK}{len(frame)} trials of {config_file.name} by {sweep.mode} {sweep.metric}: {what} in {run}"
    if target.exists() and not target.read_text(encoding="utf-8").startswith(MARK):
        yield f"config   {shown_path(target)} is a file of yours and stays as it is; copy {run}/config.yaml"
        return
    config = yaml.safe_load((best.path / "config.yaml").read_text(encoding="utf-8"))
    searched = yaml.safe_load((sweep.folder.path / "sweep.yaml").read_text(encoding="utf-8"))
    for key in ("threads", "device"):  # what a trial was given of this machine
        config["trainer"][key] = searched["trainer"][key]
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=120)
    values = yaml.safe_dump(best.values, default_flow_style=True, width=10**6)
    write_file(target, f"{head}\n# Its values: {values}{text}")
    yield f"config   {shown_path(target)}"


def _write_page(sweep: Sweep, trials: list[Trial], frame: pd.DataFrame) -> None:
    subtitle = f"{len(frame)} trials; {sweep.mode} {sweep.metric} is best"
    cells: Any = frame.astype(object).where(frame.notna(), "-").to_numpy().tolist()
    pictures = [_scatter(sweep, key, each, frame) for key, each in sweep.tune.space.items()]
    sections = [
        section(f"{sweep.metric} by value", *pictures),
        section(f"{sweep.metric} over time", _curves(sweep, trials, frame)),
        section("Trials", table(list(frame.columns), cells)),
    ]
    write_page(sweep.folder.path / "trials.html", f"Sweep {sweep.config.name}", subtitle, sections)


def _scatter(sweep: Sweep, key: str, distribution: Distribution, frame: pd.DataFrame) -> Html:
    """Draw the metric against the values of one key; each outcome has its colour."""
    known = frame[frame[sweep.metric].notna()]
    place, ticks, ends = _places(distribution, list(known[key]))
    at = pd.Series(place, index=known.index, dtype=float)
    series = [
        Series(
            str(outcome),
            at[group.index].to_numpy(),
            group[sweep.metric].to_numpy(),
            "points",
            [f"{row.trial}: {shown(value)}" for row, value in zip(group.itertuples(), group[key], strict=True)],
        )
        for outcome, group in known.groupby("outcome")
    ]
    return chart(plain_name(key, sweep.tune.space), key, sweep.metric, series, x_range=ends, x_ticks=ticks)


def _places(
    distribution: Distribution, values: Sequence[Any]
) -> tuple[list[float], list[tuple[float, str]], tuple[float, float]]:
    """Return where values stand on an axis, what is written below it, and the ends of it: all that was searched."""
    if distribution.kind not in RANGES:
        given = distribution.values
        room = max(6, 50 // len(given))
        texts = [text if len(text) <= room else f"{text[: room - 1]}…" for text in map(shown, given)]
        return [float(given.index(value)) for value in values], list(enumerate(texts)), (-0.5, len(given) - 0.5)
    low, high = distribution.values
    if distribution.kind != "loguniform":
        return [float(value) for value in values], [], (low, high)
    low, high = math.log10(low), math.log10(high)
    digits = (1,) if high - low > 2 else (1, 2, 5)
    marks = [digit * 10.0**power for power in range(math.floor(low), math.floor(high) + 1) for digit in digits]
    ticks = [(math.log10(mark), f"{mark:g}") for mark in marks if low - 1e-9 <= math.log10(mark) <= high + 1e-9]
    return [math.log10(value) for value in values], ticks, (low, high)


def _curves(sweep: Sweep, trials: list[Trial], frame: pd.DataFrame) -> Html:
    """Draw the metric of each trial over its evaluations; those that end early were pruned."""
    order = {name: place for place, name in enumerate(frame["trial"])}
    series = []
    for trial in sorted(trials, key=lambda trial: order[trial.name])[:MAX_SHOWN]:
        values = [value for _, value in trial.measured(sweep.metric)]
        if values:
            series.append(Series(trial.name, list(range(1, len(values) + 1)), values))
    return chart(sweep.metric, "evaluations", sweep.metric, series) if series else element("p", "Nothing was measured.")
