"""Single rows of the data, as a person can judge them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from src.logger.console import number
from src.logger.report.html import Html, element, picture


@dataclass
class Sample:
    """A row as it is in the data, before scaling."""

    row: Any
    """What the dataset calls it: a number, a file name."""
    image: np.ndarray[Any, Any] | None = None
    """[C, H, W]."""
    cells: Mapping[str, Any] = field(default_factory=dict)


Show = Callable[[int], Sample]
"""Returns the sample at a position of the part that was tested."""

MAX_CELLS = 12


def sample_cards(positions: Sequence[int], show: Show, says: Callable[[int], str]) -> Html:
    """Return a card for each sample: its id, what `says` says of it, and the sample itself."""
    cards = []
    for position in positions:
        sample = show(position)
        parts: list[Any] = [element("b", f"row {sample.row}"), element("div", says(position))]
        if sample.image is not None:
            parts.insert(0, picture(sample.image, f"row {sample.row}"))
        elif sample.cells:
            shown = list(sample.cells.items())[:MAX_CELLS]
            pairs = [element(tag, text) for key, value in shown for tag, text in (("dt", key), ("dd", _text(value)))]
            parts.append(element("dl", *pairs))
            if len(sample.cells) > MAX_CELLS:
                parts.append(element("div", f"and {len(sample.cells) - MAX_CELLS} more", class_="soft"))
        kind = "picture" if sample.image is not None else "cells"
        cards.append(element("div", *parts, class_=f"sample {kind}"))
    return element("div", *cards, class_="samples")


def _text(value: Any) -> str:
    text = number(float(value)) if isinstance(value, (float, np.floating)) else str(value)
    return text if len(text) <= 200 else text[:197] + "..."
