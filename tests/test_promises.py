"""Each promise of the documentation names a test that exists."""

from __future__ import annotations

import re

import pytest

from tests.conftest import ROOT

DEFINED = {name for path in (ROOT / "tests").glob("*.py") for name in re.findall(r"def (test_\w+)", path.read_text())}


@pytest.mark.parametrize("page", ["reliability.md", "security.md"])
def test_every_promise_names_a_test_that_exists(page: str) -> None:
    rows = [
        line for line in (ROOT / "docs" / page).read_text().splitlines() if line.startswith("|") and "test_" in line
    ]
    named = [name for row in rows for name in re.findall(r"`(test_\w+)`", row)]
    assert len(named) >= 10
    assert [name for name in named if name not in DEFINED] == []
