"""Laws of repeated runs: each is the run it would be alone, and what they say together is what statistics says."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

import runs
import train
from src.logger.seed_noise import compare_lines, estimate, find_repeats
from src.trainer.checkpoints.resume import open_checkpoint
from src.utils.errors import CheckpointError, ConfigError
from tests.conftest import ROOT

NOISY = "data.args.noise=0.5"


def repeat(folder: Path, name: str, seeds: int = 3, *words: str) -> Path:
    """Train with several seeds, and return the folder of them all."""
    own = [f"name={name}", f"trainer.save_dir={folder}", "trainer.epochs=2", NOISY, *words]
    assert train.main(["-c", str(ROOT / "configs/line.yaml"), "--seeds", str(seeds), *own]) == 0
    return max((folder / name).glob("seeds-*"), key=lambda path: path.stat().st_mtime_ns)


def test_an_interval_is_that_of_students_t() -> None:
    values = [3.0, 1.0, 4.0, 1.0, 5.0]
    found = estimate(values)
    low, high = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    assert found.mean - found.half == pytest.approx(low) and found.mean + found.half == pytest.approx(high)
    assert found.std == pytest.approx(np.std(values, ddof=1))
    assert estimate([2.0]).half == math.inf and estimate([2.0, 2.0]).half == 0


def test_an_interval_holds_the_truth_as_often_as_it_says() -> None:
    stream = np.random.default_rng(0)
    samples = stream.normal(7, 2, size=(1000, 4))
    held = sum(abs(each.mean - 7) <= each.half for each in map(estimate, samples.tolist()))
    assert 930 <= held <= 970


def test_a_paired_test_is_that_of_scipy() -> None:
    stream = np.random.default_rng(1)
    for count in (2, 3, 5, 20):
        a, b = stream.normal(0, 1, count), stream.normal(0.5, 1, count)
        assert estimate((b - a).tolist()).p_value == pytest.approx(stats.ttest_rel(b, a).pvalue)
    assert estimate([0.0, 0.0, 0.0]).p_value == 1 and estimate([0.5, 0.5, 0.5]).p_value == 0


def test_each_seed_is_the_run_that_it_would_be_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = repeat(tmp_path, "many")
    assert sorted(path.name for path in folder.glob("seed-*")) == ["seed-0", "seed-1", "seed-2"]
    logs = [(folder / f"seed-{seed}/log.txt").read_text() for seed in range(3)]
    assert all(text.count("done in") == 1 and "interval" not in text for text in logs), "each log is of its own run"
    words = [f"trainer.save_dir={tmp_path}", "trainer.epochs=2", NOISY, "seed=2", "name=alone"]
    assert train.main(["-c", str(ROOT / "configs/line.yaml"), *words]) == 0
    alone = next((tmp_path / "alone").iterdir())
    assert (alone / "metrics.csv").read_bytes() == (folder / "seed-2/metrics.csv").read_bytes()
    one, other = (open_checkpoint(path)[1]["model"] for path in (alone, folder / "seed-2"))
    assert all(torch.equal(one[key], other[key]) for key in one)
    printed = capsys.readouterr().out
    summary = json.loads((folder / "summary.json").read_text())["metrics"]["val/loss"]
    assert "95 % interval" in printed and f"{summary['mean']:.4g}" in printed
    assert summary["low"] < summary["mean"] < summary["high"]


def test_repeats_that_were_stopped_go_on_and_what_is_done_is_kept(tmp_path: Path) -> None:
    folder = repeat(tmp_path, "many")
    before = (folder / "summary.json").read_text()
    kept = (folder / "seed-0/metrics.csv").stat().st_mtime_ns
    (folder / "summary.json").unlink()
    (folder / "seed-1/status.json").write_text('{"state": "stopped", "code": 143}')
    (folder / "seed-2/status.json").write_text('{"state": "running", "code": null}')
    for path in (folder / "seed-2/checkpoints").iterdir():  # killed before it had saved anything
        path.unlink()
    assert repeat(tmp_path, "many", 3, "-r", "auto") == folder
    assert (folder / "summary.json").read_text() == before
    assert (folder / "seed-0/metrics.csv").stat().st_mtime_ns == kept
    with pytest.raises(CheckpointError, match="no folder of seeds"):
        repeat(tmp_path, "many", 3, "-r", str(folder / "seed-0"))


def test_a_real_difference_is_told_from_noise_and_only_keys_that_differ_are_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, same = repeat(tmp_path, "good"), repeat(tmp_path, "same", 3, "trainer.log_every_steps=7")
    bad = repeat(tmp_path, "bad", 3, "optimizer.args.lr=0.01")
    capsys.readouterr()
    assert runs.main(["compare", str(good), str(bad)]) == 0
    printed = capsys.readouterr().out
    assert "differs  optimizer.args.lr: 0.3 -> 0.01\n" in printed and printed.count("differs  ") == 1
    assert "verdict  val/loss: A is better by" in printed and "more than seed noise (paired t-test over 3" in printed
    assert runs.main(["compare", str(good), str(same)]) == 0
    assert "val/loss: no more than seed noise" in capsys.readouterr().out


def test_too_few_seeds_or_none_in_common_give_no_verdict(tmp_path: Path) -> None:
    two, later = repeat(tmp_path, "two", 2), repeat(tmp_path, "later", 2, "seed=7")
    one = find_repeats(two / "seed-1")
    assert list(one.runs) == [1]
    assert "1 seed in common is too few" in compare_lines(find_repeats(two), one)[-1]
    assert "2 seeds in common are too few" in compare_lines(find_repeats(two), find_repeats(two))[-1]
    assert "no seed in common" in compare_lines(find_repeats(two), find_repeats(later))[-1]
    repeat(tmp_path, "two", 2, "optimizer.args.lr=0.01")
    with pytest.raises(ConfigError, match=r"its runs differ in optimizer.args.lr; name a folder of one config's seeds"):
        find_repeats(tmp_path / "two")
    with pytest.raises(ConfigError, match="no finished run there"):
        find_repeats(ROOT / "configs")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--seeds", "1"], "a number of 2 or more is needed, found '1'"),
        (["--seeds", "3", "--folds", "3"], "one of them at a time"),
    ],
)
def test_a_mistake_on_the_command_line_is_told(words: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        train.main(["-c", str(ROOT / "configs/line.yaml"), *words])


def test_what_cannot_begin_leaves_no_folder_behind(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean `Linear`"):
        repeat(tmp_path, "x", 3, "model.type=linear.Liner")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["compare"], ["compare", "saved"], ["compare", "saved", "no/such/folder"]])
def test_compare_says_which_folders_it_wants(words: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"two folders are needed|no such folder"):
        runs.main(words)
