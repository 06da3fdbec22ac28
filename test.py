"""Evaluate a trained model: `python test.py -r saved/<name>/<run>`. The run knows its own config.

Prints a table, writes `test_metrics.json` and `report/index.html` into the run directory, and with `--predict FILE` one
CSV row per row instead.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from src.config.command_line import Parser, add_common_options, add_run_options, collect_overrides
from src.config.mistakes import nearest
from src.utils.command import run_command
from src.utils.errors import ConfigError, DataError
from src.utils.processes.launched import refuse_several
from src.utils.whole_file import write_file

if TYPE_CHECKING:
    from src.run.saved_run import SavedRun

log = logging.getLogger("src.test")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser("test.py", "test.py -r RUN [--split PART] [KEY=VALUE ...]", __doc__)
    add_run_options(parser)
    parser.add_argument(
        "--split", metavar="PART", help="which part to evaluate: val, train, ...; default: test, else every test_..."
    )
    parser.add_argument("--predict", metavar="FILE", help="write predictions for this part as .csv or .jsonl")
    parser.add_argument(
        "--slice", action="append", default=[], metavar="COLUMN", help="report by the values of this column too"
    )
    add_common_options(parser)
    return parser.parse_intermixed_args(argv)


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    refuse_several("test.py")
    from src.compat.detect import is_classical

    if is_classical(argv):
        from src.compat.evaluate import test as test_theirs

        return test_theirs(argv)
    options = parse(argv)

    from src.logger.console import setup_console
    from src.run.saved_run import SavedRun

    setup_console(options.quiet, options.verbose, "stderr")
    run = SavedRun(options.run, options.checkpoint, collect_overrides(options), options.trust)
    try:
        names = choose_parts(options.split, run.experiment.parts)
    except DataError as error:
        if options.predict and any(word.startswith("data") for word in options.overrides):
            advice = f"python predict.py -r {options.run} --input FILE needs no labels"
            raise DataError(f"{error}\n--predict is for the run's own parts; {advice}") from error
        raise
    if options.predict and len(names) > 1:
        raise ConfigError(f"--predict: one part at a time; choose {' or '.join(names)} with --split")
    for name in names:
        for line in run.data_changes(name):
            log.warning("%s", line)
        if options.predict:
            write_predictions(run, name, Path(options.predict))
        else:
            judge(run, name, options.slice)
    return 0


def write_predictions(run: SavedRun, name: str, path: Path) -> None:
    """Write what the model says of each row of the part `name`."""
    from src.logger.console import say
    from src.trainer.evaluate import predict
    from src.trainer.results.predictions import prediction_tables, write_tables

    experiment, loader = run.experiment, run.loader(run.experiment.parts[name])
    outputs = predict(experiment.task, experiment.model, loader, run.device, run.amp)
    count = write_tables(path, prediction_tables(loader.part, outputs, run.meaning))
    say(f"{count} predictions of {name} written to {path}")


def judge(run: SavedRun, name: str, slices: Sequence[str]) -> None:
    """Evaluate the part `name`, print its metrics with their intervals, and write them and the report into the run.

    Raises:
        DataError: The data have no column of a name in `slices`.
    """
    from src.data.parts.split import column_of
    from src.logger.console import say
    from src.trainer.evaluate import evaluate
    from src.trainer.rehearsal.rehearse import describe_length
    from src.trainer.results.pictures import has_matplotlib
    from src.trainer.results.predictions import own_units
    from src.trainer.results.report import OWN_UNITS, KeptMeters, write_report
    from src.utils.packages import install_command
    from src.utils.paths import shown_path

    experiment, progress, part = run.experiment, run.state["progress"], run.experiment.parts[name]
    for column in slices:
        column_of(part.dataset, column, "--slice")  # a wrong one is told before the work
    meters = KeptMeters(experiment.metrics, run.device, own_units(part.dataset, run.meaning))
    loader = run.loader(part)
    values = evaluate(experiment.task, experiment.model, loader, meters, amp=run.amp, epoch=progress["epoch"])
    write_metrics(run.path / "test_metrics.json", name, values, progress)
    where, at = shown_path(run.path), f"epoch {progress['epoch']}, step {progress['step']}"
    length = describe_length(part)
    report = run.path / "report" / ("index.html" if name == "test" else f"{name}.html")
    intervals: Mapping[str, tuple[float, float]] = {}
    try:
        intervals = write_report(
            report, run.path, f"{run.config.name}: {name}", f"{where}, {at}, {length} samples", part, experiment.task,
            meters, values, run.meaning, slices,
        )  # fmt: skip
    finally:  # a report that fails hides no result
        say(f"{name} of {where}, {at}: {length} rows")
        print_values(values, intervals)
    if meters.decode is not None:
        say(OWN_UNITS)
    say(f"report: {shown_path(report)}")
    if not has_matplotlib():
        say(f"the figures as PNG files: {install_command('matplotlib')}")


def print_values(values: Mapping[str, float], intervals: Mapping[str, tuple[float, float]]) -> None:
    """Print a line for each value, with its interval where there is one."""
    from src.logger.console import say

    width = max(map(len, values))
    for key, value in values.items():
        low, high = intervals.get(key, (math.nan, math.nan))
        say(f"  {key:<{width}}  {value:<12.6g}" + (f"  {low:.4g} to {high:.4g} (95 %)" if key in intervals else ""))


def choose_parts(wanted: str | None, parts: Mapping[str, object]) -> list[str]:
    """Return the parts to evaluate: the one asked for, else `test`, else all that are called `test_...`.

    Raises:
        ConfigError: There is no such part.
    """
    name = wanted or "test"
    several = [] if wanted else [part for part in parts if part.startswith("test_")]
    if name not in parts and several:
        return several
    if name not in parts:
        near = nearest(name, parts)
        hint = (
            "choose one with --split" if wanted is None else f"did you mean {near}?" if near else "there are no others"
        )
        raise ConfigError(f"--split {name}: this run has the parts {', '.join(parts)}; {hint}")
    return [name]


def write_metrics(path: Path, part: str, values: Mapping[str, float], progress: Mapping[str, int]) -> None:
    """Add the values of a part to the JSON file at `path`."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    plain = {key: value if math.isfinite(value) else None for key, value in values.items()}  # JSON has no nan
    known[part] = {"epoch": progress["epoch"], "step": progress["step"], **plain}
    write_file(path, json.dumps(known, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
