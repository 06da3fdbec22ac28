"""Each promise of the documentation names a test that exists."""

from __future__ import annotations

import re

import pytest

from tests.conftest import ROOT

DEFINED = {name for path in (ROOT / "tests").glob("*.py") for name in re.findall(r"def (test_\w+)", path.read_text())}


def proofs(page: str) -> dict[str, list[str]]:
    """Return the tests that stand in the last column of the tables of promises, by what is promised."""
    found: dict[str, list[str]] = {}
    is_promised = False
    for line in (ROOT / "docs" / page).read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            is_promised = False
        elif cells[-1] in ("Test", "proof"):
            is_promised = True
        elif is_promised and not cells[0].startswith("-"):
            found[cells[0]] = re.findall(r"`(test_\w+)`", cells[-1])
    return found


@pytest.mark.parametrize("page", ["reliability.md", "security.md"])
def test_every_promise_names_a_test_that_exists(page: str) -> None:
    tests = proofs(page)
    assert len(tests) >= 20
    assert [promise for promise, names in tests.items() if not names] == [], "promised without a proof"
    assert [name for names in tests.values() for name in names if name not in DEFINED] == []
