"""Evaluate a trained model: `python test.py -r saved/<name>/<run>`. The run knows its own config.

Prints a table, writes `test_metrics.json` and `report/index.html` into the run directory, and with `--predict FILE` one
CSV row per row instead.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from src.config.command_line import Parser, add_common_options, collect_overrides
from src.utils.command import run_command
from src.utils.errors import ConfigError, DataError


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser("test.py", "test.py -r RUN [--split PART] [KEY=VALUE ...]", __doc__)
    parser.add_argument("-r", "--resume", dest="run", required=True, metavar="RUN", help="run directory or checkpoint")
    parser.add_argument("--split", metavar="PART", help="which part to evaluate: test (default), val, train, test_...")
    parser.add_argument("--checkpoint", default="best", metavar="WHICH", help="best (default), last, or a file name")
    parser.add_argument("--predict", metavar="FILE", help="write predictions for this part as .csv or .jsonl")
    add_common_options(parser)
    return parser.parse_intermixed_args(argv)


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    from src.compat.detect import is_classical

    if is_classical(argv):
        from src.compat.evaluate import test as test_theirs

        return test_theirs(argv)
    options = parse(argv)

    from src.saved_run import SavedRun
    from src.trainer.evaluate import evaluate, predict
    from src.trainer.predictions import output_kind, prediction_tables, write_tables
    from src.trainer.rehearse import describe_length
    from src.trainer.report import KeptMeters, write_report
    from src.utils.paths import shown_path

    run = SavedRun(options.run, options.checkpoint, collect_overrides(options), options.trust)
    try:
        experiment = run.experiment
    except DataError as error:
        if options.predict and any(word.startswith("data") for word in options.overrides):
            advice = f"python predict.py -r {options.run} --input FILE needs no labels"
            raise DataError(f"{error}\n--predict is for the run's own parts; {advice}") from error
        raise
    name = choose_part(options.split, experiment.parts)
    loader = run.loader(experiment.parts[name])
    for line in run.data_changes(name):
        print(f"warning: {line}", file=sys.stderr)

    if options.predict:
        outputs = predict(experiment.task, experiment.model, loader, run.device, run.amp)
        kind = output_kind(experiment.task.criterion)
        names = run.class_names if kind != "values" else None
        count = write_tables(Path(options.predict), prediction_tables(loader.part, outputs, kind, names))
        print(f"{count} predictions of {name} written to {options.predict}")
        return 0
    meters = KeptMeters(experiment.metrics, run.device)
    progress = run.state["progress"]
    values = evaluate(experiment.task, experiment.model, loader, meters, amp=run.amp, epoch=progress["epoch"])
    write_metrics(run.path / "test_metrics.json", name, values, progress)
    at = f"epoch {progress['epoch']}, step {progress['step']}"
    title, subtitle = (
        f"{run.config.name}: {name}",
        f"{shown_path(run.path)}, {at}, {describe_length(loader.part)} samples",
    )
    report = run.path / "report" / ("index.html" if name == "test" else f"{name}.html")
    intervals = write_report(
        report, run.path, title, subtitle, loader.part, experiment.task, meters, values, run.class_names
    )
    print(f"{name} of {shown_path(run.path)}, {at}: {describe_length(loader.part)} rows")
    width = max(map(len, values))
    for key, value in values.items():
        low, high = intervals.get(key, (math.nan, math.nan))
        print(f"  {key:<{width}}  {value:<10.6g}" + (f"  {low:.4g} to {high:.4g} (95 %)" if key in intervals else ""))
    print(f"report: {shown_path(report)}")
    return 0


def choose_part(wanted: str | None, parts: Mapping[str, object]) -> str:
    """Return the part to evaluate: the one asked for, else `test`.

    Raises:
        ConfigError: There is no such part.
    """
    name = wanted or "test"
    if name not in parts:
        hint = "choose one with --split" if wanted is None else "there are no others"
        raise ConfigError(f"--split {name}: this run has the parts {', '.join(parts)}; {hint}")
    return name


def write_metrics(path: Path, part: str, values: Mapping[str, float], progress: Mapping[str, int]) -> None:
    """Add the values of a part to the JSON file at `path`."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    plain = {key: value if math.isfinite(value) else None for key, value in values.items()}  # JSON has no nan
    known[part] = {"epoch": progress["epoch"], "step": progress["step"], **plain}
    partial = path.with_name(f".{path.name}.part")
    partial.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
