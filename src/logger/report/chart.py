"""Charts as SVG: lines, points and bars on two axes. Small enough to own; nothing to install, sharp at any size."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from src.logger.report.html import Html, element, readable

WIDTH, HEIGHT = 440, 320
LEFT, RIGHT, TOP, BOTTOM = 78, 24, 12, 46
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", "#7f7f7f", "#a6761d", "#111111")
"""Told apart by most eyes; the first eight are after Okabe and Ito, https://jfly.uni-koeln.de/color/"""
MAX_POINTS = 1500


@dataclass
class Series:
    """What is drawn in one colour. `kind` is `line`, `points` or `bars`."""

    name: str
    x: Sequence[float] | np.ndarray[Any, Any]
    y: Sequence[float] | np.ndarray[Any, Any]
    kind: str = "line"
    titles: Sequence[str] | None = None
    """Shown while the mouse is on a point."""


def chart(
    title: str,
    x_label: str,
    y_label: str,
    series: Sequence[Series],
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    diagonal: bool = False,
    x_ticks: Sequence[tuple[float, str]] = (),
) -> Html:
    """Return a chart with its title and, for several series, a legend.

    Args:
        title: What is seen.
        x_label: What the horizontal axis is, with its unit.
        y_label: The vertical one.
        series: The first is drawn on top.
        x_range: Ends of the axis. Default: of the values.
        y_range: The same.
        diagonal: Draw `y = x` as a dashed line.
        x_ticks: What to write below the horizontal axis, and where. Default: about five round values.
    """
    scale_x = _Axis(x_range or _extent(each.x for each in series), LEFT, WIDTH - RIGHT, wide=x_range is None)
    scale_y = _Axis(y_range or _extent(each.y for each in series), HEIGHT - BOTTOM, TOP, wide=y_range is None)
    is_counted = x_range is None and all(float(x).is_integer() for each in series for x in each.x)
    x_ticks = x_ticks or [(value, _tick(value)) for value in scale_x.ticks() if value.is_integer() or not is_counted]
    parts = [*_axes(scale_x, scale_y, x_label, y_label, x_ticks)]
    if diagonal:
        low, high = max(scale_x.low, scale_y.low), min(scale_x.high, scale_y.high)
        parts.append(_line([(scale_x(low), scale_y(low)), (scale_x(high), scale_y(high))], "ideal"))
    for index, each in reversed(list(enumerate(series))):  # the first on top
        parts += _drawn(each, scale_x, scale_y, COLORS[index % len(COLORS)])
    legend = [
        element("span", element("i", style=f"background:{COLORS[index % len(COLORS)]}"), each.name)
        for index, each in enumerate(series)
        if len(series) > 1
    ]
    drawing = element("svg", *parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=title)
    caption = element("figcaption", element("b", title), element("span", *legend, class_="legend"))
    return element("figure", caption, drawing)


class _Axis:
    """Places values between two pixels."""

    def __init__(self, ends: tuple[float, float], first: float, last: float, wide: bool) -> None:
        low, high = ends
        if high <= low:
            low, high = low - (abs(low) or 1) * 0.5, high + (abs(high) or 1) * 0.5
        margin = 0.04 * (high - low) if wide else 0.0
        self.low, self.high = low - margin, high + margin
        self.first, self.last = first, last

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.first + share * (self.last - self.first), 1)

    def ticks(self) -> list[float]:
        """Return about five round values."""
        rough = (self.high - self.low) / 5
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(index * step, 12) for index in range(first, last + 1)]


def _extent(values: Any) -> tuple[float, float]:
    arrays = [np.asarray(each, dtype=float) for each in values]
    known = np.concatenate([array[np.isfinite(array)] for array in arrays]) if arrays else np.empty(0)
    return (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)


def _axes(
    scale_x: _Axis, scale_y: _Axis, x_label: str, y_label: str, x_ticks: Sequence[tuple[float, str]]
) -> Iterator[Html]:
    for value, text in x_ticks:
        x = scale_x(value)
        yield element("line", x1=x, x2=x, y1=TOP, y2=HEIGHT - BOTTOM, class_="grid")
        yield element("text", text, x=x, y=HEIGHT - BOTTOM + 16, text_anchor="middle")
    for value in scale_y.ticks():
        y = scale_y(value)
        yield element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="grid")
        yield element("text", _tick(value), x=LEFT - 6, y=y + 4, text_anchor="end")
    middle = (TOP + HEIGHT - BOTTOM) / 2
    yield element("text", x_label, x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 8, text_anchor="middle")
    yield element("text", y_label, transform=f"translate(13 {middle}) rotate(-90)", text_anchor="middle")


def _tick(value: float) -> str:
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e6:
        return f"{value:,.6g}"
    return f"{value:.2g}" if abs(value) < 1 else f"{value:.3g}".replace("e+0", "e").replace("e+", "e")


def _drawn(series: Series, scale_x: _Axis, scale_y: _Axis, color: str) -> Iterator[Html]:
    places = [
        (index, x, y)
        for index, (x, y) in enumerate(zip(series.x, series.y, strict=True))
        if math.isfinite(x) and math.isfinite(y)
    ]
    kept = places[:: max(1, math.ceil(len(places) / MAX_POINTS))]
    if series.kind == "line" and len(kept) > 1:
        points = [(scale_x(x), scale_y(y)) for _, x, y in [*kept, places[-1]]]
        yield _line(points, None, color)
        kept = [] if len(kept) > 60 or not series.titles else kept
    if series.kind == "bars":
        step = min((b - a for (_, a, _), (_, b, _) in pairwise(places)), default=1.0)
        width = max(1.0, abs(scale_x(step) - scale_x(0.0)) - 1)
        for index, x, y in places:
            top, base = sorted((scale_y(y), scale_y(max(0.0, scale_y.low))))
            box = {"x": round(scale_x(x) - width / 2, 1), "y": top, "width": round(width, 1), "height": base - top}
            yield element("rect", *_title(series, index, x, y), fill=color, **box)
        return
    for index, x, y in kept:
        dot = {"cx": scale_x(x), "cy": scale_y(y), "r": 3}
        yield element("circle", *_title(series, index, x, y), fill=color, fill_opacity=0.6, **dot)


def _title(series: Series, index: int, x: float, y: float) -> tuple[Html]:
    text = series.titles[index] if series.titles else f"{readable(x)}, {readable(y)}"
    return (element("title", text),)


def _line(points: Sequence[tuple[float, float]], class_: str | None, color: str | None = None) -> Html:
    path = " ".join(f"{x},{y}" for x, y in points)
    return element("polyline", points=path, class_=class_, stroke=color, stroke_width=2 if color else None)
