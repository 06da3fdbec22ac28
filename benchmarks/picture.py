"""One picture of a comparison, as SVG: a bar for each trainer and work."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from html import escape

COLUMNS, WIDTH, SPACE, LABEL, BAR, LINE = 2, 410, 30, 84, 13, 20
"""Works side by side, the width of one, what lies between two, and in a work: names, bars, and a line of both."""

STYLE = """
text { font: 13px system-ui, sans-serif; fill: #24292f }
.head { font-weight: 600 } .note { font-size: 11px; fill: #6e7781 }
rect { fill: #9aa7b4 } rect.ours { fill: #2f6fde }
line { stroke: #6e7781; stroke-dasharray: 3 3 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .note { fill: #8d96a0 } rect { fill: #59636e } rect.ours { fill: #4c8dff }
}
"""


def picture(compared: Sequence[tuple[str, Mapping[str, Sequence[float]]]], note: str, ours: str = "Keel") -> str:
    """Return the picture.

    Args:
        compared: Each work with the ratios of every trainer to a loop by hand.
        note: What it was measured on, and when.
        ours: Whose bars stand out.
    """
    works = [(work, {name: statistics.median(r) for name, r in ratios.items()}) for work, ratios in compared]
    scale = (WIDTH - LABEL - 46) / max(value for _, values in works for value in values.values())
    parts, top = [], 0
    for first in range(0, len(works), COLUMNS):
        side_by_side = works[first : first + COLUMNS]
        for column, (work, values) in enumerate(side_by_side):
            parts.append(_work(column * (WIDTH + SPACE), top, work, values, scale, ours))
        top += LINE * max(len(values) for _, values in side_by_side) + 52
    width, told = COLUMNS * WIDTH + SPACE, f"1, the dashed line, is the time of a loop by hand. {note}"
    parts.append(f'<text class="note" x="0" y="{top}">{escape(told)}</text>')
    size = f'viewBox="0 0 {width} {top + 6}" width="{width}" height="{top + 6}"'
    body = "\n".join(parts)
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">\n<style>{STYLE}</style>\n{body}\n</svg>\n'


def _work(left: int, top: int, work: str, values: Mapping[str, float], scale: float, ours: str) -> str:
    """Return the bars of one work, the shortest first."""
    lines, bars = [f'<text class="head" x="{left}" y="{top + 20}">{escape(work)}</text>'], left + LABEL
    for row, (name, value) in enumerate(sorted(values.items(), key=lambda item: item[1])):
        mark, y = ' class="ours"' if name == ours else "", top + 42 + row * LINE
        lines.append(f'<text x="{left}" y="{y}">{escape(name)}</text>')
        lines.append(f'<rect{mark} x="{bars}" y="{y - 11}" width="{value * scale:.1f}" height="{BAR}"/>')
        lines.append(f'<text x="{bars + value * scale + 6:.1f}" y="{y}">{value:.2f}</text>')
    hand = f"{bars + scale:.1f}"
    lines.append(f'<line x1="{hand}" x2="{hand}" y1="{top + 28}" y2="{top + 28 + len(values) * LINE}"/>')
    return "\n".join(lines)
