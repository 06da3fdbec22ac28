"""Runs side by side: the leaderboard of each experiment, and the curves of its first runs in one chart."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from src.logger.leaderboard import comparable_groups, shown_columns
from src.logger.report.chart import COLORS, Series, chart
from src.logger.report.html import Html, element, section, table
from src.logger.report.page import write_page

MAX_RUNS = 500
"""More rows of a table nobody reads; `--csv` writes them all."""
MAX_CURVES = 6


def write_comparison(path: Path, folder: Path, runs: pd.DataFrame, is_by_result: bool = True) -> None:
    """Write the runs of a table, in its order, as one page that loads nothing; groups are those of the console."""
    groups = comparable_groups(runs, is_by_result)
    sections = [_experiment(f"{name or folder.name}{by}", folder, group) for name, by, group in groups]
    write_page(path, f"Runs in {folder}", f"{len(runs)} runs", sections)


def _experiment(name: str, folder: Path, group: pd.DataFrame) -> Html:
    columns = shown_columns(group.head(MAX_RUNS))
    note = element("p", f"The first {MAX_RUNS} of {len(group)}.") if len(group) > MAX_RUNS else ""
    return section(
        name, table(list(columns), zip(*columns.values(), strict=True)), note, *_curves(folder, group.head(len(COLORS)))
    )


def _curves(folder: Path, group: pd.DataFrame) -> Iterator[Html]:
    """Yield a chart for each metric of the val parts, or of training, with a line for each run."""
    lines: dict[str, list[Series]] = {}
    for name in group["run"]:
        try:
            frame = pd.read_csv(folder / name / "metrics.csv")
        except (OSError, ValueError):
            continue
        for column in frame.columns:
            if column.startswith(("val", "train")) and pd.api.types.is_numeric_dtype(frame[column]):
                known = frame[["epoch", column]].dropna()
                line = Series(name.rpartition("/")[2], known["epoch"].to_numpy(), known[column].to_numpy())
                lines.setdefault(column, []).append(line)
    for column, series in sorted(lines.items(), key=lambda each: not each[0].startswith("val"))[:MAX_CURVES]:
        yield chart(column, "epoch", column, series)
