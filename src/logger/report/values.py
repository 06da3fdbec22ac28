"""How far predicted numbers are off, and where. Axes: N samples, T targets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from src.logger.report.chart import Series, chart
from src.logger.report.html import Html, element, readable, section, table
from src.logger.report.samples import Show, sample_cards

Array = np.ndarray[Any, Any]

MAX_TARGETS, NUM_QUANTILES, NUM_SAMPLES, NUM_BARS, NUM_RESAMPLES = 4, 5, 12, 21, 1000


def value_sections(predicted: Array, true: Array, names: Sequence[str], show: Show) -> Iterator[Html]:
    """Yield the sections of the report about numbers.

    Args:
        predicted: [N, T], in the targets' own units.
        true: [N, T].
        names: Of the targets, [T].
        show: Returns the sample of a position 0..N-1.
    """
    if len(names) > MAX_TARGETS:
        yield element("p", f"The first {MAX_TARGETS} of {len(names)} targets are shown.")
    for k, name in list(enumerate(names))[:MAX_TARGETS]:
        error = predicted[:, k] - true[:, k]
        yield section(f"Predicted and true: {name}", *_overview(predicted[:, k], true[:, k], name, show))
        yield section(f"Error by size: {name}", *_by_quantile(true[:, k], error, name))

    scale = np.where(true.std(0) > 0, true.std(0), 1)
    distance = (np.abs(predicted - true) / scale).max(1)
    worst = np.argsort(-distance, kind="stable")[:NUM_SAMPLES].tolist()

    def says(position: int) -> str:
        pairs = zip(names, true[position], predicted[position], strict=True)
        return "; ".join(f"{name} is {readable(float(y))}, predicted {readable(float(p))}" for name, y, p in pairs)

    yield section("Worst samples", element("p", "The largest errors.", class_="soft"), sample_cards(worst, show, says))


def _overview(predicted: Array, true: Array, name: str, show: Show) -> Iterator[Html]:
    yield element("p", "In the target's own units, with bootstrap 95 % intervals.", class_="soft")
    yield table(["", "value", "95 % interval"], _summary(predicted, true))
    titles = [f"row {show_row(show, i)}: {readable(float(t))}, predicted {readable(float(p))}"
              for i, (t, p) in enumerate(zip(true, predicted, strict=True))] if len(true) <= 500 else None  # fmt: skip
    both = np.concatenate([predicted, true])
    margin = 0.04 * float(np.ptp(both) or 1)
    ends = (float(both.min()) - margin, float(both.max()) + margin)
    points = Series(name, true, predicted, "points", titles)
    yield chart("Predicted and true", f"true {name}", f"predicted {name}", [points], ends, ends, diagonal=True)
    error = predicted - true
    yield chart(
        "Residuals", f"predicted {name}", "predicted - true", [Series(name, predicted, error, "points", titles)]
    )
    sizes, edges = np.histogram(error, min(NUM_BARS, max(5, round(2 * len(error) ** 0.5))))
    middles, ends = (edges[1:] + edges[:-1]) / 2, (float(edges[0]), float(edges[-1]))
    bars = Series(name, middles, sizes.tolist(), "bars")
    yield chart("Distribution of the error", "predicted - true", "samples", [bars], ends, (0, float(sizes.max())))


def show_row(show: Show, position: int) -> Any:
    """Return what the dataset calls the sample of a position."""
    return show(position).row


def _summary(predicted: Array, true: Array) -> list[list[Any]]:
    error = predicted - true
    rows = (
        np.random.default_rng(0).integers(len(error), size=(NUM_RESAMPLES, len(error)))
        if len(error) <= 10_000
        else None
    )
    measures: dict[str, Any] = {
        "mean absolute error": lambda e, t: np.abs(e).mean(-1),
        "root of mean squared error": lambda e, t: np.sqrt((e**2).mean(-1)),
        "median absolute error": lambda e, t: np.median(np.abs(e), -1),
        "mean error (bias)": lambda e, t: e.mean(-1),
        "R², share of the variance explained": _r2,
    }
    summary = []
    for name, measure in measures.items():
        drawn = np.empty(0) if rows is None else measure(error[rows], true[rows])
        drawn = drawn[np.isfinite(drawn)]
        low, high = np.percentile(drawn, [2.5, 97.5]).tolist() if drawn.size else (0.0, 0.0)
        interval = f"{readable(low)} to {readable(high)}" if drawn.size else "-"
        summary.append([name, float(measure(error, true)), interval])
    guess = float(np.abs(true - np.median(true)).mean())
    return [*summary, ["mean absolute error of always saying the median", guess, "-"]]


def _r2(error: Array, true: Array) -> Any:
    with np.errstate(invalid="ignore", divide="ignore"):
        return 1 - (error**2).sum(-1) / ((true - true.mean(-1, keepdims=True)) ** 2).sum(-1)


def _by_quantile(true: Array, error: Array, name: str) -> Iterator[Html]:
    edges = np.unique(np.quantile(true, np.linspace(0, 1, NUM_QUANTILES + 1)))
    group = np.clip(np.searchsorted(edges, true, side="right") - 1, 0, max(len(edges) - 2, 0))
    rows = []
    for k in np.unique(group):
        inside = group == k
        ends = f"{readable(float(true[inside].min()))} to {readable(float(true[inside].max()))}"
        within = error[inside]
        worst = float(np.abs(within).max())
        rows.append([ends, int(inside.sum()), float(np.abs(within).mean()), float(within.mean()), worst])
    text = "Groups of about equal size by true value. Some pull towards the middle is what any uncertain model shows: "
    text += "small values are predicted too large, and large ones too small."
    yield element("p", text, class_="soft")
    yield table([name, "samples", "mean absolute error", "mean error", "largest error"], rows)
