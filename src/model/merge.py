"""Several processes have each kept something of their own rows: what one process would have kept of all.

Axes: K classes, D values per row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from itertools import zip_longest
from typing import Any

import torch

from src.model.accumulate import Counts, Derived, KeptRows, MeanMetric, Residuals, State


def can_merge(metric: Any) -> bool:
    """Return whether `merged` knows what this metric keeps."""
    return type(_source(metric)) in _MERGES


def merged(metric: Any, states: Sequence[State]) -> State:
    """Return the state of `metric` over all rows.

    Args:
        metric: Of any of the processes.
        states: Of all of them, in the order in which their shares of a batch follow each other.
    """
    return _MERGES[type(_source(metric))](states)


def _source(metric: Any) -> Any:
    return metric.source if isinstance(metric, Derived) else metric


def _means(states: Sequence[State]) -> State:
    names = dict.fromkeys(name for state in states for name in state["sums"])
    sums = {name: sum(state["sums"][name] for state in states if name in state["sums"]) for name in names}
    return {"sums": sums, "rows": sum(state["rows"] for state in states)}


def _counts(states: Sequence[State]) -> State:
    tables = [state["counts"] for state in states if state["counts"] is not None]
    return {"counts": sum(tables[1:], start=tables[0]) if tables else None}


def _residuals(states: Sequence[State]) -> State:
    return reduce(_two_residuals, [state for state in states if state["sums"] is not None] or states[:1])


def _two_residuals(first: State, second: State) -> State:
    """Merge two of [3, D]: squared errors, squared distances, mean (Chan et al. 1983, eq. 2.1)."""
    rows = first["rows"] + second["rows"]
    (error, distance, mean), (other_error, other_distance, other_mean) = first["sums"], second["sums"]
    share, delta = second["rows"] / rows, other_mean - mean
    distance = distance + other_distance + delta.square() * (first["rows"] * share)
    return {"rows": rows, "sums": torch.stack([error + other_error, distance, mean + delta * share])}


def _rows(states: Sequence[State]) -> State:
    """Put the batches back in order: each process has kept its share of batch 0, then of batch 1, ..."""
    all_rows: State = {}
    for kind in ("outputs", "targets"):
        batches = zip_longest(*(state[kind] for state in states))
        all_rows[kind] = [share for batch in batches for share in batch if share is not None]
    return all_rows


_MERGES: dict[type, Callable[[Sequence[State]], State]] = {
    MeanMetric: _means,
    Counts: _counts,
    Residuals: _residuals,
    KeptRows: _rows,
}
