"""Single rows of the data, as a person can judge them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from src.logger.report.html import Html, element, picture, readable


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
LONG = 23


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
            pairs = [pair for key, value in shown for pair in _pair(key, _text(value))]
            parts.append(element("dl", *pairs))
            if len(sample.cells) > MAX_CELLS:
                parts.append(element("div", f"and {len(sample.cells) - MAX_CELLS} more", class_="soft"))
        cards.append(element("div", *parts, class_="sample"))
    has_pictures = any("<img" in card for card in cards)
    return element("div", *cards, class_="samples pictures" if has_pictures else "samples")


def _pair(key: str, text: str) -> tuple[Html, Html]:
    """Return a name and what it stands for: beside it, or below where that is a text of several words."""
    kind = "long" if len(text) > LONG else None
    return element("dt", key, class_=kind), element("dd", text, class_=kind)


def _text(value: Any) -> str:
    text = readable(float(value)) if isinstance(value, (float, np.floating)) else str(value)
    return text if len(text) <= 200 else text[:197] + "..."
