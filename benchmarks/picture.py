"""One picture of a comparison, as SVG: a bar for each trainer and work."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, LABEL, BAR, GAP = 760, 110, 13, 26
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
    medians = [(work, {name: statistics.median(r) for name, r in ratios.items()}) for work, ratios in compared]
    largest = max(value for _, values in medians for value in values.values())
    scale = (WIDTH - LABEL - 60) / largest
    parts, top = [], 22
    for work, values in medians:
        parts.append(f'<text class="head" x="0" y="{top}">{escape(work)}: time of a loop by hand = 1</text>')
        first = top + 8
        for name, value in sorted(values.items(), key=lambda item: item[1]):
            mark = ' class="ours"' if name == ours else ""
            top += GAP - 6
            parts.append(f'<text x="0" y="{top}">{escape(name)}</text>')
            parts.append(f'<rect{mark} x="{LABEL}" y="{top - 11}" width="{value * scale:.1f}" height="{BAR}"/>')
            parts.append(f'<text x="{LABEL + value * scale + 6:.1f}" y="{top}">{value:.2f}</text>')
        parts.append(f'<line x1="{LABEL + scale:.1f}" x2="{LABEL + scale:.1f}" y1="{first}" y2="{top + 4}"/>')
        top += GAP + 8
    parts.append(f'<text class="note" x="0" y="{top - 6}">{escape(note)}</text>')
    size = f'viewBox="0 0 {WIDTH} {top + 4}" width="{WIDTH}" height="{top + 4}"'
    body = "\n".join(parts)
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">\n<style>{STYLE}</style>\n{body}\n</svg>\n'
