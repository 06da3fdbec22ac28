"""How the pages become a site: `make docs` writes it to build/docs/, without network."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

project = "Keel"
author = "The Keel authors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = "Keel"
html_show_sourcelink = False
html_show_copyright = False  # the licence says it
exclude_patterns = ["generated/README.md"]
default_role = "code"  # docstrings write `names` so
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_google_docstring = True
suppress_warnings = [
    "misc.highlighting_failure",
    "myst.xref_missing",
]  # fences with titles; links to files of the project

GENERATED = Path(__file__).parent / "generated"


def write_keys(app: Any) -> None:
    """Write the page of all keys from the schema, which is made from the code."""
    schema = json.loads((ROOT / "configs" / "schema.json").read_text(encoding="utf-8"))
    lines = [
        "# Every key of a config",
        "",
        "Written from `configs/schema.json`. `python train.py --explain KEY` says the same.",
        "",
    ]
    for name, section in schema["properties"].items():
        lines += [f"## `{name}`", "", section.get("description", ""), ""]
        rows = list(keys_below(section, name))
        if rows:
            lines += ["| key | default | what it means |", "|---|---|---|", *rows, ""]
    GENERATED.mkdir(exist_ok=True)
    page = GENERATED / "keys.md"
    text = "\n".join(lines) + "\n"
    if not page.exists() or page.read_text(encoding="utf-8") != text:
        page.write_text(text, encoding="utf-8")


def keys_below(section: dict[str, Any], path: str, depth: int = 0) -> Iterator[str]:
    """Yield a row for each key that `section` may have, and for those below it."""
    for form in [section, *section.get("anyOf", [])]:
        for name, key in form.get("properties", {}).items():
            default = f"`{json.dumps(key['default'])}`" if "default" in key else ""
            meaning = key.get("description", "").replace("|", "\\|").replace("\n", " ")
            yield f"| `{path}.{name}` | {default} | {meaning} |"
            if depth < 2:
                yield from keys_below(key, f"{path}.{name}", depth + 1)


def plain_stars(app: Any, what: str, name: str, subject: Any, options: Any, lines: list[str]) -> None:
    """Keep `[N, *]` of a docstring from being read as the start of emphasis."""
    lines[:] = [line.replace("*", "\\*") for line in lines]


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("builder-inited", write_keys)
    app.connect("autodoc-process-docstring", plain_stars)
