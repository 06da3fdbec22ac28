"""HTML elements. Text is escaped wherever it is put into one, so a class called `<script>` is a class called so."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import numpy as np

from src.logger.console import number
from src.logger.pictures import grid, png

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Html(str):
    """Text that is HTML already. All other text is escaped."""


def element(tag: str, *children: Any, **attributes: Any) -> Html:
    """Return an element; `class_` stands for `class`, `_` in other names for `-`, and None leaves an attribute out."""
    given = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items() if value is not None}
    words = "".join(f' {name}="{_escaped(value)}"' for name, value in given.items())
    return Html(f"<{tag}{words}>{joined(children)}</{tag}>")


def joined(parts: Iterable[Any]) -> Html:
    """Return HTML and text, one after the other."""
    return Html("".join(part if isinstance(part, Html) else _escaped(part) for part in parts))


def _escaped(value: Any) -> str:
    return escape(_CONTROL.sub("\N{REPLACEMENT CHARACTER}", str(value)))


def readable(value: float) -> str:
    """Return a number as people compare them: with four digits that count, and as `191,050` where it is large."""
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e9 else number(value)


def section(title: str, *children: Any) -> Html:
    """Return a part of the page under a heading."""
    return element("section", element("h2", title), *children)


def table(head: Sequence[Any], rows: Iterable[Sequence[Any]], class_: str | None = None) -> Html:
    """Return a table; numbers are aligned to the right, floats are as `readable` has them."""
    listed = [list(row) for row in rows]
    kinds = ["number" if listed and all(map(_is_number, column)) else None for column in zip(*listed, strict=True)]
    named = zip(head, kinds or [None] * len(head), strict=True)
    header = (
        element("tr", *(element("th", cell, scope="col", class_=kind) for cell, kind in named)) if any(head) else ""
    )
    body = (element("tr", *(_cell(cell) for cell in row)) for row in listed)
    return element("div", element("table", header, *body, class_=class_), class_="wide")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def _cell(value: Any) -> Html:
    if isinstance(value, (float, np.floating)):
        return element("td", "-" if value != value else readable(float(value)), class_="number")
    return element("td", value, class_="number" if _is_number(value) else None)


def picture(image: np.ndarray[Any, Any], text: str) -> Html:
    """Return an image [C, H, W] that is part of the page; small ones are enlarged."""
    data = base64.b64encode(png(grid(image[None]))).decode()
    return element("img", src=f"data:image/png;base64,{data}", alt=text)
