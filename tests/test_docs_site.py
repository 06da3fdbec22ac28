"""The pages as a site: built without a warning, nothing of them missing, and messages that the program really gives."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

DOCS = ROOT / "docs"


def test_every_heading_of_troubleshooting_that_is_a_message_is_one_of_the_program() -> None:
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    messages = re.findall(r"^### `(.+)`$", (DOCS / "troubleshooting.md").read_text(encoding="utf-8"), re.M)
    assert len(messages) > 15
    pieces = [piece.strip() for message in messages for piece in message.split("...") if piece.strip()]
    assert [piece for piece in pieces if piece not in sources] == []


def test_the_two_tutorials_give_the_same_commands() -> None:
    english, korean = (
        re.findall(r"^(?:python .*)$", (DOCS / name).read_text(encoding="utf-8"), re.M)
        for name in ("tutorial.md", "ko/tutorial.md")
    )
    assert [line.replace("_ko", "") for line in korean] == english


def test_the_site_is_built_without_a_warning_and_has_every_page(tmp_path: Path) -> None:
    pytest.importorskip("sphinx", reason="the extra `docs` is not installed")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", str(DOCS), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = [path.relative_to(DOCS).with_suffix(".html") for path in DOCS.rglob("*.md")]
    assert [page for page in pages if not (tmp_path / page).exists()] == []
    keys = (tmp_path / "generated" / "keys.html").read_text(encoding="utf-8")
    assert "trainer.patience" in keys and "loader.num_workers" in keys
    reference = (tmp_path / "reference.html").read_text(encoding="utf-8")
    assert "StepOutput" in reference and "confusion_matrix" in reference
