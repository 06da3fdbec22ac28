"""How good a model is on some of the rows: by the values of a column. Axes: N samples, C classes, T targets."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from src.data.parts.part import Part
from src.data.parts.split import column_of
from src.logger.report.classes import FEW
from src.logger.report.html import Html, element, section, table
from src.model.metric import MetricSet

NUM_QUANTILES, MAX_VALUES = 5, 20


def slice_sections(
    part: Part, columns: Sequence[str], metrics: MetricSet, outputs: Tensor, targets: Tensor
) -> Iterator[Html]:
    """Yield a section for each column: the metrics over the rows of each value, or of each fifth of many numbers.

    Args:
        part: What was tested.
        columns: Of its dataset: columns of a table, or attributes with one value for each row.
        metrics: Of the run.
        outputs: [N, C] or [N, T], in the order of the part's rows.
        targets: [N] or [N, T].

    Raises:
        DataError: There is no such column.
    """
    for column in columns:
        values = np.asarray(column_of(part.dataset, column, "--slice"))[part.row_ids().numpy()]
        found = [
            (label, int(chosen.sum()), _values(metrics, outputs[chosen], targets[chosen]))
            for label, chosen in groups(values)
        ]
        names = list(dict.fromkeys(name for _, _, each in found for name in each))
        rows = [[label, count, *(each.get(name, math.nan) for name in names)] for label, count, each in found]
        few = sum(count < FEW for _, count, _ in found)
        note = f"{few} of {len(found)} have fewer than {FEW} rows: differences there may be chance." if few else ""
        yield section(f"By {column}", table([column, "rows", *names], rows), element("p", note, class_="soft"))


def groups(values: np.ndarray[Any, Any]) -> Iterator[tuple[str, Tensor]]:
    """Yield a name and a mask [N] for each value, most frequent first, or for each fifth of many numbers, in order.

    Together the masks hold every row once: values beyond the twentieth, and missing ones, are groups too.
    """
    series = pd.Series(values)
    masks: list[tuple[str, pd.Series[bool]]] = []
    if pd.api.types.is_numeric_dtype(series) and series.nunique() > MAX_VALUES // 2:
        known = series.dropna()
        edges = np.unique(np.quantile(known, np.linspace(0, 1, NUM_QUANTILES + 1)[1:-1]))
        fifth = pd.Series(np.searchsorted(edges, known), index=known.index).reindex(series.index)
        for k in range(len(edges) + 1):
            inside = series[fifth == k]
            masks.append((f"{inside.min():.6g} to {inside.max():.6g}", fifth == k))
    else:
        counts = series.value_counts()
        masks = [(str(value), series == value) for value in counts.index[:MAX_VALUES]]
        masks.append((f"{len(counts) - MAX_VALUES} others", series.isin(counts.index[MAX_VALUES:])))
    for name, mask in [*masks, ("(missing)", series.isna())]:
        if mask.any():
            yield name, torch.tensor(mask.to_numpy(dtype=bool))


def _values(metrics: MetricSet, outputs: Tensor, targets: Tensor) -> dict[str, float]:
    metrics.reset()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a class is missing among these rows: the cell says so
            metrics.update(outputs, targets)
            return metrics.compute()
    except (ValueError, RuntimeError):  # the ways of scikit-learn and torchmetrics to say: there is no such value
        return {}
