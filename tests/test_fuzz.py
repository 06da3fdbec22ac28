"""Files that nobody would write: each is read, or refused with a line; no crash, no hang, no memory without end."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import ROOT
from tests.fuzz import TARGETS
from tests.fuzz.targets import FORMAT, READERS, mutated, run, seeds


def test_each_target_has_a_reader() -> None:
    assert set(TARGETS) == set(READERS)


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32))
def test_mutated_files_are_read_or_refused(target: str, seed: int) -> None:
    draw = random.Random(seed)
    run(target, mutated(draw.choice(seeds(target)), draw))


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=20, suppress_health_check=list(HealthCheck))
@given(data=st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(target: str, data: bytes) -> None:
    run(target, data)


@pytest.mark.full
@pytest.mark.parametrize("how", ["at random", "by coverage"])
def test_a_short_fuzz_in_limited_memory_finds_nothing(how: str) -> None:
    if how == "by coverage":
        pytest.importorskip("atheris")
    prefix = "import sys; sys.modules['atheris'] = None; " if how == "at random" else ""
    program = f"{prefix}from tests.fuzz.__main__ import fuzz; fuzz(sys.argv[1], 1500, 1)"
    for target in TARGETS:
        command = [sys.executable, "-c", f"import sys; {program}", target]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, f"{target}: {done.stderr[-3000:]}"


def test_the_format_that_is_fuzzed_is_the_newest() -> None:
    assert (ROOT / "tests" / "formats" / f"format{FORMAT}.pt").is_file()
