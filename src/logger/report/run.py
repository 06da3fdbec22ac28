"""What a run says of itself: results with their uncertainty, how training went, its config and environment."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from src.logger.report.chart import Series, chart
from src.logger.report.html import Html, element, readable, section, table

MAX_CHARTS = 8
Interval = tuple[float, float]


def results(values: Mapping[str, float], intervals: Mapping[str, Interval], num_resamples: int) -> Html:
    """Return the metrics of the whole part, each with the range in which another such sample would put it."""
    rows = []
    for name, value in values.items():
        low_high = intervals.get(name)
        shown = f"{readable(low_high[0])} to {readable(low_high[1])}" if low_high else "-"
        rows.append([name, value, shown])
    words = f"Bootstrap of {num_resamples} resamples of the rows; it knows nothing of other data than these."
    note = element("p", words if intervals else "No intervals: outputs are not one row per sample.", class_="soft")
    return section("Results", table(["metric", "value", "95 % interval"], rows), note)


def curves(metrics_csv: Path) -> Iterator[Html]:
    """Yield the learning curves, one chart per metric with all parts in it."""
    try:
        frame = pd.read_csv(metrics_csv)
    except (OSError, ValueError):
        return
    by_metric: dict[str, list[str]] = {}
    for column in frame.columns:
        if column not in ("epoch", "step") and pd.api.types.is_numeric_dtype(frame[column]):
            by_metric.setdefault(column.partition("/")[2] or column, []).append(column)
    x = "epoch" if frame["epoch"].notna().all() and frame["epoch"].is_unique else "step"
    charts = []
    for name, columns in list(by_metric.items())[:MAX_CHARTS]:
        series = []
        for column in columns:
            known = frame[[x, column]].dropna()
            series.append(Series(column.partition("/")[0], known[x].tolist(), known[column].tolist()))
        if len(series) > 1 or len(set(series[0].y)) > 1:  # a constant learning rate says nothing
            charts.append(chart(name, x, name, series))
    if charts and len(frame) > 1:
        yield section("Learning curves", *charts)


def about(run: Path) -> Iterator[Html]:
    """Yield the run's config and environment, folded up."""
    parts = []
    for title, name in (("Config", "config.yaml"), ("Environment", "environment.json")):
        path = run / name
        if not path.exists():
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        if name.endswith(".json"):
            parts.append(_environment(text))
        parts.append(element("details", element("summary", f"{title} ({name})"), element("pre", text)))
    if parts:
        yield section("Config and environment", *parts)


def _environment(text: str) -> Html:
    try:
        known: dict[str, Any] = json.loads(text)
    except ValueError:
        return Html()
    versions, git = known.get("versions") or {}, known.get("git") or {}
    commit = f"{git.get('commit', '-')}{', changed since' if git.get('dirty') else ''}" if git else "-"
    rows = {
        "command": " ".join(map(str, known.get("command", []))),
        "started": known.get("time"),
        "seed": str(known.get("seed")),
        "python": known.get("python"),
        "torch": versions.get("torch"),
        "platform": known.get("platform"),
        "commit": commit,
    }
    return table(["", ""], list(rows.items()), class_="facts")
