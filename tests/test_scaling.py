"""Laws of the arithmetic in docs/scaling.md, and that the page shows what the script prints."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.scaling import Job, best_interval, goodput, plan, play, table
from tests.conftest import ROOT

SECONDS = st.floats(1, 1e3)


@given(SECONDS, SECONDS, st.floats(1e4, 1e7))
def test_no_other_interval_keeps_more_work_than_the_best(save_s: float, restart_s: float, failure_s: float) -> None:
    best = best_interval(save_s, failure_s)
    kept = goodput(best, save_s, restart_s, failure_s)
    for factor in (0.5, 0.8, 1.25, 2):
        assert goodput(factor * best, save_s, restart_s, failure_s) <= kept * (1 + 1e-4)


def test_the_best_interval_is_youngs_where_failures_are_rare() -> None:
    assert best_interval(10, 1e9) == pytest.approx((2 * 10 * 1e9) ** 0.5, rel=1e-3)
    assert best_interval(100, 40) == 40, "saving takes longer than a machine lives: nothing is best"


@pytest.mark.parametrize(("save_s", "restart_s", "failure_s"), [(15, 300, 2e4), (60, 60, 3e3), (5, 600, 1e3)])
def test_failures_that_are_played_out_cost_what_the_formula_says(
    save_s: float, restart_s: float, failure_s: float
) -> None:
    every_s = best_interval(save_s, failure_s)
    formula = goodput(every_s, save_s, restart_s, failure_s)
    assert play(every_s, save_s, restart_s, failure_s, 20_000, seed=1) == pytest.approx(formula, abs=0.01)


def test_a_ring_sends_nearly_twice_the_gradients_and_one_gpu_nothing() -> None:
    job = Job(params=1e6, bytes_per_gradient=4)
    sent = [plan(replace(job, gpus=count)).all_reduce_bytes for count in (1, 2, 8, 1024)]
    assert sent == pytest.approx([0, 4e6, 7e6, 8e6], rel=1e-3)


@given(st.integers(0, 11), st.floats(1e5, 1e11), st.floats(1e-3, 10))
def test_more_gpus_never_make_better_use_of_each(power: int, params: float, compute_s: float) -> None:
    job = Job(params=params, compute_s=compute_s)
    few, many = (plan(replace(job, gpus=count)) for count in (2**power, 2 ** (power + 1)))
    assert 0 < many.scaling <= few.scaling <= 1
    assert many.goodput <= few.goodput <= 1 and many.failure_s == few.failure_s / 2


def test_half_the_bytes_take_half_the_time_but_for_latency() -> None:
    job = Job(gpus=64, latency_s=0)
    assert plan(replace(job, bytes_per_gradient=2)).all_reduce_s == pytest.approx(plan(job).all_reduce_s / 2)


def test_the_page_shows_what_the_script_prints() -> None:
    page = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    for line in table([Job(gpus=count) for count in (1, 8, 64, 1024)], with_play=True):
        assert line in page


@pytest.mark.full
def test_what_two_processes_cost_is_measured_as_the_page_says() -> None:
    words = [sys.executable, "-m", "benchmarks.two_processes", "--rounds", "1"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    page = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    for line in done.stdout.splitlines():
        assert line.rpartition("MB |")[0] in page, "the works, and their bytes"


def test_the_page_shows_what_the_network_decides() -> None:
    page = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    rows: dict[str, dict[str, Any]] = {
        "as above": {},
        "`--network-gb-per-s 320`": {"network_gb_per_s": 320.0},
        "`--network-gb-per-s 3`": {"network_gb_per_s": 3.0},
        "`--bytes-per-gradient 2`": {"network_gb_per_s": 3.0, "bytes_per_gradient": 2.0},
        "`--compute-s 4`": {"network_gb_per_s": 3.0, "bytes_per_gradient": 2.0, "compute_s": 4.0},
    }
    for words, changes in rows.items():
        cells = [f"{plan(replace(Job(), gpus=count, **changes)).efficiency:.1%}" for count in (64, 1024)]
        assert any(words in line and line.endswith(f"| {' | '.join(cells)} |") for line in page.splitlines()), words
