"""Measure, print tables, and write `docs/performance.md`: `python -m benchmarks [--rounds 7] [--only WORD]`.

`--only others` compares with other trainers, as far as they are installed (`pip install -e ".[bench]"`), and writes
their table and picture only.
"""

from __future__ import annotations

import argparse
import gc
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from benchmarks import commands, growth, mnist, others, ranks, steps
from benchmarks.picture import picture
from benchmarks.timing import Row
from src.utils.host_memory import keep_freed_memory

PAGE = Path(__file__).resolve().parents[1] / "docs" / "performance.md"
PICTURE = PAGE.with_name("performance.svg")
START, END = "<!-- figures: written by `make bench` -->\n", "<!-- end of figures -->\n"
START_OTHERS, END_OTHERS = "<!-- others: written by `make bench` -->\n", "<!-- end of others -->\n"
GROUPS = (
    steps.tiny_rows,
    steps.tiny_compiled,
    steps.same_loader_rows,
    mnist.lenet_epoch,
    steps.tabular_epoch,
    steps.evaluation,
    ranks.two_ranks,
    commands.saving,
    commands.saving_in_background,
    commands.help_seconds,
    commands.structural_check,
    commands.start,
    growth.rows_of_data,
    growth.runs_beside,
)


def main() -> None:
    """Run the benchmark; the page is written when all rows were measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="rounds of each pair, one more does not count")
    parser.add_argument("--only", help="measure the groups whose name holds this, and write no table of them")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as train.py does, and the next line too; the loops by hand gain from both
    gc.freeze()
    rows: list[Row] = []
    for group in GROUPS:
        if options.only is None or options.only in group.__name__:
            for row in group(options.rounds):
                rows.append(row)
                print(line(row), flush=True)
            gc.collect()
    if options.only is None:
        write_between(START, END, table(rows))
    if options.only is None or options.only in "others":
        compare_with_others(min(options.rounds, 5))


def write_between(start: str, end: str, text: str) -> None:
    """Put a table into the page."""
    before, rest = PAGE.read_text(encoding="utf-8").split(start)
    PAGE.write_text(before + start + text + end + rest.split(end)[1], encoding="utf-8")


def compare_with_others(rounds: int) -> None:
    """Measure other trainers, and write their table and picture; not if none of them is installed."""
    compared = []
    for work, ratios in others.compare(rounds):
        compared.append((work, ratios))
        for name, values in ratios.items():
            print(
                f"{statistics.median(values):6.2f}  ({min(values):.2f} to {max(values):.2f})  {work}, {name}",
                flush=True,
            )
    if all(set(ratios) == {"Keel"} for _, ratios in compared):
        return
    write_between(START_OTHERS, END_OTHERS, others_table(compared))
    PICTURE.write_text(picture(compared, f"{conditions()}; process CPU time, whole batches"), encoding="utf-8")


def others_table(compared: Sequence[tuple[str, Mapping[str, Sequence[float]]]]) -> str:
    """Return the table of other trainers, in Markdown."""
    names = list(dict.fromkeys(name for _, ratios in compared for name in ratios))
    lines = [f"Measured {conditions()}; one thread. The median of the rounds, and their spread."]
    lines += ["", f"| by hand = 1 | {' | '.join(work for work, _ in compared)} |", "|---" * (len(compared) + 1) + "|"]
    for name in names:
        cells = [ratios.get(name) for _, ratios in compared]
        shown = [spread(ratios) if ratios else "" for ratios in cells]
        lines.append(f"| {name} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def spread(values: Sequence[float]) -> str:
    """Return the median, and from where to where."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def conditions() -> str:
    """Return date and machine."""
    return f"{time.strftime('%Y-%m-%d')} on {machine()}"


def line(row: Row) -> str:
    """Return a row of the table for people at a terminal."""
    low, high = min(row.ratios), max(row.ratios)
    mark = "met   " if row.is_met else "missed"
    return f"{mark} {row.figure:6.2f}  ({low:.2f} to {high:.2f}, goal {row.goal:.2f})  {row.work}  {costs(row)}"


def costs(row: Row) -> str:
    """Return the time of one unit of work, ours and by hand."""
    times = [statistics.median(seconds) / row.count for seconds in (row.ours_s, row.by_hand_s) if seconds]
    return " / ".join(
        f"{1e6 * t:,.0f} µs" if t < 1e-3 else f"{t:.3g} s" if t > 0.1 else f"{1e3 * t:.3g} ms" for t in times
    )


def table(rows: Sequence[Row]) -> str:
    """Return the table and what it was measured on, in Markdown."""
    lines = [
        f"Measured {conditions()}; one thread, each pair of times taken in turn "
        "within one process. A figure is the median of the rounds, the spread is from the smallest to the largest.",
        "",
        "| work | compared with | ratio | spread | goal | | ours / by hand |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        work = f"{row.work} ({row.note})" if row.note else row.work
        spread = f"{min(row.ratios):.2f} to {max(row.ratios):.2f}"
        mark = "met" if row.is_met else "**missed**"
        cells = (work, row.hand, f"{row.figure:.2f}", spread, f"{row.goal:.2f}", mark, f"{costs(row)}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def machine() -> str:
    """Return processor, system and versions."""
    name = platform.processor() or platform.machine()
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        name = next(part.split(":")[1].strip() for part in text.splitlines() if part.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{name}, {platform.system()}, Python {platform.python_version()}, torch {torch.__version__}"


if __name__ == "__main__":
    main()
