"""The page itself: one file that loads nothing, runs nothing and can be sent to anybody."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from src.logger.report.html import Html, element
from src.utils.whole_file import write_file

STYLE = """
:root { --paper: #fff; --ink: #1c2026; --soft: #667; --rule: #dde1e7; --shade: #f4f6f8; --warn: #fff3d6; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #16181d; --ink: #e4e7ec; --soft: #9aa3af; --rule: #343a44; --shade: #1f2229; --warn: #463a15; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1000px; padding: 24px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { margin: 0 0 4px; font-size: 26px; } h2 { margin: 36px 0 8px; font-size: 19px; } h3 { margin: 18px 0 6px; }
p { margin: 6px 0; max-width: 75ch; } .soft { color: var(--soft); }
.warning { background: var(--warn); padding: 8px 12px; border-radius: 6px; max-width: none; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 6px 0; }
th, td { padding: 4px 12px; border-bottom: 1px solid var(--rule); text-align: left; white-space: nowrap; }
th { color: var(--soft); font-weight: 600; } .number { text-align: right; }
table.facts td { white-space: normal; overflow-wrap: anywhere; vertical-align: top; }
table.facts td:first-child { white-space: nowrap; overflow-wrap: normal; }
table.confusion td { text-align: center; min-width: 38px; padding: 5px; border: 1px solid var(--rule); }
table.confusion th { padding: 4px 8px; text-align: center; }
figure { display: inline-block; width: min(100%, 460px); margin: 8px 16px 8px 0; vertical-align: bottom; }
figcaption { display: flex; flex-direction: column; } svg { width: 100%; display: block; overflow: visible; }
svg text { font-size: 12px; fill: var(--soft); } svg .grid { stroke: var(--rule); }
svg polyline { fill: none; } svg .ideal { stroke: var(--soft); stroke-dasharray: 4 4; }
.legend span { margin-right: 12px; font-size: 13px; white-space: nowrap; } .legend { display: flex; flex-wrap: wrap; }
.legend i { display: inline-block; width: 10px; height: 10px; border-radius: 2px; margin-right: 5px; }
.samples { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 226px), 1fr)); gap: 12px; }
.samples.pictures { grid-template-columns: repeat(auto-fill, minmax(140px, 1fr)); }
.sample { border: 1px solid var(--rule); border-radius: 8px; padding: 10px; font-size: 13px; background: var(--shade); }
.sample { overflow-wrap: anywhere; }
.sample img { display: block; margin: 0 auto 6px; max-width: 100%; } .sample b { display: block; }
.sample dl { display: grid; grid-template-columns: auto auto; gap: 0 8px; margin: 6px 0 0; }
.sample dt { color: var(--soft); } .sample dd { margin: 0; text-align: right; }
.sample .long { grid-column: 1 / -1; text-align: left; }
pre { background: var(--shade); padding: 12px; border-radius: 6px; overflow-x: auto; font-size: 13px; }
summary { cursor: pointer; font-weight: 600; margin: 8px 0; }
@media print {
  body { max-width: none; padding: 0; font-size: 11px; } h2, h3 { break-after: avoid; }
  figure, .sample, tr, .warning { break-inside: avoid; } figure { width: 47%; } .wide { overflow: visible; }
  td, .warning, .legend i { -webkit-print-color-adjust: exact; print-color-adjust: exact; }
}
"""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""Whatever got into the page, a browser runs no script and fetches nothing."""


def write_page(path: Path, title: str, subtitle: str, sections: Sequence[Html]) -> None:
    """Write the page; its folder is made if need be."""
    head = element(
        "head",
        Html('<meta charset="utf-8"><meta name="viewport" content="width=device-width">'),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'),
        element("title", title),
        Html(f"<style>{STYLE}</style>"),
    )
    body = element("body", element("h1", title), element("p", subtitle, class_="soft"), *sections)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, f"<!doctype html>\n{element('html', head, body, lang='en')}\n")


def warning(text: str) -> Html:
    """Return a paragraph that is not to be overlooked."""
    return element("p", text, class_="warning")
