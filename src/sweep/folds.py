"""`--folds K`: K runs that each hold out another part of the rows, and what they say together about all of them.

saved/NAME/folds-5_1121_072233/fold-1 ... fold-5      each a run like any other
                               predictions.csv        every row once, as the run that had held it out sees it
                               summary.json           mean, spread and pooled value of every metric
"""

from __future__ import annotations

import copy
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from src.config.command_line import Arguments
from src.config.settings import Config
from src.data.parts.part import Part
from src.model.metric import MetricSet
from src.run.saved_run import SavedRun
from src.sweep.series import series_folder, train_series
from src.trainer.evaluate import evaluate
from src.trainer.meters import Meters
from src.trainer.results.predictions import Decode, Meaning, own_units, row_names, write_tables
from src.trainer.results.report import OWN_UNITS, KeptMeters, in_own_units
from src.trainer.task import StepOutput
from src.utils.errors import CheckpointError, DataError
from src.utils.paths import project_path, shown_path
from src.utils.whole_file import write_file

log = logging.getLogger(__name__)


def train_folds(config: Config, arguments: Arguments, command: Sequence[str]) -> int:
    """Train all folds that are not done yet, pool them, and return the exit code.

    Args:
        config: Of the first fold; the others differ in `data.split.fold` alone.
        arguments: With `folds`. `resume` is a folder of folds, `auto` the newest one.
        command: The command line, for the record.
    """
    split = config.data.split
    assert split is not None  # `--folds` sets data.split.folds
    assert arguments.config is not None  # the command line asks for it
    name = f"folds-{split.folds}"
    saved = project_path(config.trainer.save_dir) / config.name
    folder = series_folder(saved, arguments.resume, name, f"{name}_*", "fold-1")
    configs = {
        f"fold-{fold}": replace(config, data=replace(config.data, split=replace(split, fold=fold)))
        for fold in range(1, split.folds + 1)
    }
    code = train_series(folder, configs, arguments, command)
    if not code:
        print(pool(folder, split.folds, (*arguments.trusted, f"{arguments.config.parent}/")))
    return code


class FoldMeters(KeptMeters):
    """Meters of one fold that hand on every batch to those of all folds.

    Args:
        metrics: Of the fold.
        device: Where sums are kept.
        pool: Meters of all folds.
        decode: Puts outputs and targets into the target's own units, for the scale that a fold learned is its own.
    """

    def __init__(self, metrics: MetricSet, device: torch.device, pool: Meters, decode: Decode | None) -> None:
        super().__init__(metrics, device, decode)
        self.pool = pool

    def update(self, output: StepOutput) -> None:
        """Add one batch."""
        super().update(output)
        outputs, targets = in_own_units(output.outputs, output.targets, self.decode)
        self.pool.update(replace(output, outputs=outputs, targets=targets))


def pool(folder: Path, num_folds: int, trusted: Sequence[str] = ()) -> str:
    """Evaluate the best model of every fold on the rows it was not trained on; write what comes out, and return it.

    The pooled value of a metric is that of all rows at once, not a mean over folds.

    Args:
        folder: Holds `fold-1`, `fold-2`, ...
        num_folds: How many.
        trusted: Packages, and folders with a slash behind, that the config may name classes of.
    """
    pooled: Meters | None = None
    values: list[dict[str, float]] = []
    tables: list[pd.DataFrame | None] = []
    for fold in range(1, num_folds + 1):
        run = SavedRun(folder / f"fold-{fold}", "best", trusted=trusted)
        split, experiment = run.config.data.split, run.experiment
        assert split is not None
        part = experiment.parts[split.fold_part]
        if changes := run.data_changes(part.name):
            raise CheckpointError(f"{shown_path(run.path)}: {'; '.join(changes)}; train all folds anew")
        decode = own_units(part.dataset, run.meaning)
        pooled = pooled or Meters(copy.deepcopy(experiment.metrics), run.device)
        meters = FoldMeters(experiment.metrics, run.device, pooled, decode)
        values.append(evaluate(experiment.task, experiment.model, run.loader(part), meters, amp=run.amp))
        rows = meters.rows()
        tables.append(_predictions(part, rows and in_own_units(*rows, decode), fold, replace(run.meaning, decode=None)))
    assert pooled is not None
    summary = summarise(values, pooled.compute())
    kept = [table for table in tables if table is not None]
    num_rows = sum(map(len, kept))
    write_file(folder / "summary.json", json.dumps({"folds": num_folds, "metrics": _plain(summary)}, indent=2) + "\n")
    lines = [f"{num_folds} folds of {shown_path(folder)}", *table_lines(summary)]
    if decode is not None:
        lines.append(OWN_UNITS)
    if len(kept) == num_folds:
        write_tables(folder / "predictions.csv", [pd.concat(kept).sort_values("row", kind="stable")])
        lines.append(f"{num_rows:,} predictions: {shown_path(folder / 'predictions.csv')}")
    return "\n".join(lines)


def summarise(values: Sequence[Mapping[str, float]], pooled: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """Return mean, spread (standard deviation of a sample), pooled value and the values of all runs, by metric."""
    summary = {}
    for name in pooled:
        each = [run.get(name, math.nan) for run in values]
        spread = float(np.std(each, ddof=1)) if len(each) > 1 else 0.0
        summary[name] = {"mean": float(np.mean(each)), "std": spread, "pooled": pooled[name], "runs": each}
    return summary


def table_lines(summary: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a summary as aligned lines for people."""
    width = max(map(len, ("metric", *summary)))
    num_runs = len(next(iter(summary.values()))["runs"])
    heads = ["mean", "std", "pooled", *map(str, range(1, num_runs + 1))]
    lines = [f"  {'metric':<{width}}" + "".join(f"  {head:>9}" for head in heads)]
    for name, row in summary.items():
        numbers = [row["mean"], row["std"], row["pooled"], *row["runs"]]
        lines.append(f"  {name:<{width}}" + "".join(f"  {number:>9.4g}" for number in numbers))
    return lines


def _plain(value: Any) -> Any:
    """JSON has no nan."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return value if math.isfinite(value) else None


def _predictions(part: Part, rows: tuple[Tensor, Tensor] | None, fold: int, meaning: Meaning) -> pd.DataFrame | None:
    """Return row, fold, target and prediction of a fold's rows; None where outputs are no table."""
    if rows is None:
        return None
    outputs, targets = rows
    try:
        predicted, probabilities = meaning.columns(outputs), meaning.probabilities(outputs)
        if probabilities is None:
            actual = meaning.numbers(targets)
        else:
            actual = {"prediction": meaning.labels(targets.reshape(-1).long(), probabilities.shape[1])}
    except DataError as error:
        log.warning("predictions.csv is not written: %s", error)
        return None
    actual = {key.replace("prediction", "target"): column for key, column in actual.items()}
    return pd.DataFrame({"row": row_names(part, 0, len(outputs)), "fold": fold, **actual, **predicted})
