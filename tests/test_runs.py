"""`runs.py`: the leaderboard, its index that must never lie, and what `prune` may delete."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

import runs
from src.logger import run_index
from src.logger.run_dir import RunDir
from src.logger.run_index import INDEX_NAME, list_runs
from src.trainer.checkpoints.store import CheckpointStore, load_checkpoint
from src.utils.errors import ConfigError
from tests.conftest import ROOT

START = "2026-01-01 10:00:00,000 INFO    run    somewhere\n"
END = "2026-01-01 10:01:30,500 INFO    done in 90.5 s\n  best:  val/loss 0.2\n"


def make_run(
    folder: Path, number: int = 1, lr: float = 0.1, losses: tuple[float, ...] = (0.5, 0.2, 0.3), log: str = START + END
) -> Path:
    run = folder / "digits" / f"0101_{number:06}"
    (run / "checkpoints").mkdir(parents=True)
    config = {"name": "digits", "optimizer": {"type": "AdamW", "args": {"lr": lr}}, "trainer": {"epochs": 3}}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    rows = [f"{epoch},{10 * epoch},{2 * loss},{loss}\n" for epoch, loss in enumerate(losses, 1)]
    (run / "metrics.csv").write_text("".join(["epoch,step,train/loss,val/loss\n", *rows]))
    (run / "log.txt").write_text(log)
    (run / "run.lock").write_text("1\n")
    age(run)
    return run


def age(run: Path, seconds: float = 100) -> None:
    """Make files so old that the index trusts their times."""
    for name in run_index.FILES:
        os.utime(run / name, (time.time() - seconds,) * 2)


def status(folder: Path, name: str = "digits/0101_000001") -> str:
    record, running = list_runs(folder)[name]
    return "running" if running else record.end


def test_a_record_says_what_the_run_was(tmp_path: Path) -> None:
    make_run(tmp_path)
    record, running = list_runs(tmp_path)["digits/0101_000001"]
    assert (record.best, record.best_epoch, record.epochs, record.monitor) == (0.2, 2, 3, "min val/loss")
    assert record.time_s == 90.5 and record.end == "finished" and not running
    assert record.config["optimizer.args.lr"] == 0.1


@pytest.mark.parametrize(
    ("losses", "log", "expected"),
    [
        ((0.5, 0.2, 0.3), START + END, "finished"),
        ((0.5,), START + END, "stopped"),
        ((0.5,), START + "2026-01-01 10:01:00,000 INFO    stopping: no improvement\n" + END, "finished"),
        ((0.5,), START, "crashed"),
        ((0.5, 0.2, 0.3), START + END + START, "crashed"),  # resumed, and killed
        ((), "", "crashed"),
    ],
)
def test_how_a_run_ended(tmp_path: Path, losses: tuple[float, ...], log: str, expected: str) -> None:
    make_run(tmp_path, losses=losses, log=log)
    assert status(tmp_path) == expected


def test_running_is_what_holds_the_lock_whatever_the_index_says(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert status(tmp_path) == "finished"
    lock = RunDir(run)
    lock.lock()
    assert status(tmp_path) == "running"
    lock.close()
    assert status(tmp_path) == "finished"


def test_the_index_follows_every_change(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    list_runs(tmp_path)
    (run / "metrics.csv").write_text("epoch,step,train/loss,val/loss\n1,10,1,0.1\n")
    age(run, seconds=50)
    assert list_runs(tmp_path)["digits/0101_000001"][0].best == 0.1
    make_run(tmp_path, number=2)
    assert len(list_runs(tmp_path)) == 2
    for damage in ("", "{", "[]", '{"format": 1, "runs": 3}', '{"format": 99, "runs": {}}'):
        (tmp_path / INDEX_NAME).write_text(damage)
        assert len(list_runs(tmp_path)) == 2, damage


def test_a_file_that_may_change_within_its_clock_tick_is_read_again(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    path = run / "metrics.csv"
    os.utime(path)
    at = path.stat().st_mtime_ns
    list_runs(tmp_path)
    path.write_text(path.read_text().replace("0.2", "0.1"))  # the same size ...
    os.utime(path, ns=(at, at))  # ... at the same time
    assert list_runs(tmp_path)["digits/0101_000001"][0].best == 0.1


def test_an_index_is_used_and_not_written_without_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path)
    first = list_runs(tmp_path)
    monkeypatch.setattr(run_index, "read_run", None)  # calling it would fail
    monkeypatch.setattr(run_index, "write_file", None)
    assert list_runs(tmp_path) == first


def test_the_table_shows_differing_keys_only_best_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path, 1, lr=0.1, losses=(0.9, 0.4, 0.5))
    make_run(tmp_path, 2, lr=0.01, losses=(0.9, 0.3, 0.5))
    make_run(tmp_path, 3, lr=0.001, losses=(0.9,), log=START)
    assert runs.main([str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "digits: 3 runs"
    assert lines[1].split() == ["run", "status", "val/loss", "at", "epoch", "epochs", "time", "lr"]
    assert [line.split()[0][-1] for line in lines[2:]] == ["2", "1", "3"]
    assert "AdamW" not in "".join(lines)

    assert runs.main([str(tmp_path), "--sort=-lr", "--filter", "status=finished", "--filter", "lr>0.01"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[2:]] == ["0101_000001"]
    assert runs.main([str(tmp_path), "--csv", str(tmp_path / "all.csv")]) == 0
    table = pd.read_csv(tmp_path / "all.csv")
    assert list(table["optimizer.args.lr"]) == [0.01, 0.1, 0.001] and "optimizer.type" not in table


def test_a_page_compares_runs(tmp_path: Path) -> None:
    make_run(tmp_path, 1, lr=0.1)
    run = make_run(tmp_path, 2, lr=0.01, losses=(0.9, 0.1))
    (run / "metrics.csv").write_text((run / "metrics.csv").read_text().replace("train/loss", "train/<script>"))
    (make_run(tmp_path, 3) / "metrics.csv").write_text("")
    assert runs.main([str(tmp_path), "--html", str(tmp_path / "page" / "runs.html")]) == 0
    page = (tmp_path / "page" / "runs.html").read_text()
    assert "<script" not in page and "&lt;script&gt;" in page
    assert page.count("<svg") == 3 and ">lr<" in page and ">at epoch<" in page and "0101_000003" in page


def test_mistakes_are_explained(tmp_path: Path) -> None:
    make_run(tmp_path)
    with pytest.raises(ConfigError, match="no such folder"):
        runs.main([str(tmp_path / "none")])
    with pytest.raises(ConfigError, match="did you mean status"):
        runs.main([str(tmp_path), "--filter", "statsu=finished"])
    with pytest.raises(ConfigError, match="write KEY=VALUE"):
        runs.main([str(tmp_path), "--filter", "finished"])


def saved_run(tmp_path: Path) -> Path:
    run = make_run(tmp_path)
    for step in (1, 2, 3, 4):
        state = {"format": 1, "model": {"w": torch.full((10_000,), float(step))}}
        CheckpointStore(run / "checkpoints", keep=10).save(state, step, is_best=step == 2)
    (run / "checkpoints" / ".tmp-1-step-00000005.pt").write_bytes(b"half")
    return run


def files(run: Path) -> set[str]:
    return {path.name for path in (run / "checkpoints").iterdir()}


def test_prune_lists_and_deletes_only_when_told_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = saved_run(tmp_path)
    before = files(run)
    assert runs.main(["prune", str(tmp_path)]) == 0
    listed = capsys.readouterr().out
    assert files(run) == before and "3 items" in listed and "add --yes" in listed
    assert runs.main(["prune", str(tmp_path), "--yes"]) == 0
    kept = {"step-00000002", "step-00000004"}
    assert files(run) == {"best.json", "best.pt", "last.pt"} | {f"{k}.{e}" for k in kept for e in ("pt", "json")}
    assert load_checkpoint(run / "checkpoints" / "best.pt")["model"]["w"][0] == 2
    assert CheckpointStore(run / "checkpoints").newest()[1]["model"]["w"][0] == 4


def test_prune_keeps_the_last_whole_checkpoint(tmp_path: Path) -> None:
    run = saved_run(tmp_path)
    newest = run / "checkpoints" / "step-00000004.pt"
    newest.write_bytes(newest.read_bytes()[:-1])  # damages last.pt too: it is the same file
    runs.main(["prune", str(tmp_path), "--yes"])
    assert {"step-00000003.pt", "step-00000003.json", "best.pt", "last.pt"} <= files(run)
    assert CheckpointStore(run / "checkpoints").newest()[1]["model"]["w"][0] == 3


def test_prune_leaves_running_runs_and_other_folders_alone(tmp_path: Path) -> None:
    run = saved_run(tmp_path)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "config.yaml").write_text("a: 1\n")
    (mine / "run.lock").write_text("")
    before = files(run)
    lock = RunDir(run)
    lock.lock()
    runs.main(["prune", str(tmp_path), "--yes"])
    lock.close()
    assert files(run) == before and (mine / "config.yaml").exists()


def test_prune_removes_a_run_that_never_began(tmp_path: Path) -> None:
    run = make_run(tmp_path, losses=())
    (run / "metrics.csv").unlink()
    runs.main(["prune", str(tmp_path)])
    assert run.exists()
    runs.main(["prune", str(tmp_path), "--yes"])
    assert not run.exists()


TRICKY = {
    "an alias": "a: &rate {lr: 0.1}\nb: *rate\n",
    "comments and a mark": "# all\n---\na:\n# of b\n  b: 1\n# end\n",
    "lists and texts": "a:\n- {type: x}\n- 2\nb: |\n  c: 1\n  d\nc: 'x\n  y'\n\"d e\": {x: 1,\n  y: [2]}\n",
    "nothing": "",
    "no config": "a\nb\n",
}


@pytest.mark.parametrize(
    "text", [*TRICKY.values(), *(path.read_text() for path in sorted(ROOT.glob("configs/*.yaml")))]
)
def test_a_config_read_by_sections_is_that_read_whole(text: str) -> None:
    config = yaml.safe_load(text)
    assert run_index._flat_config(text) == (dict(run_index.flattened(config)) if isinstance(config, dict) else {})


@pytest.mark.full
def test_ten_thousand_runs_in_two_seconds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rates = np.random.default_rng(0).uniform(0, 1, 10_000)
    for number, lr in enumerate(rates.tolist()):
        make_run(tmp_path, number, lr=lr)
    runs.main([str(tmp_path)])
    elapsed_s = []
    for _ in range(3):  # the quickest says most, and of a busy machine only what is our own
        started_s = time.process_time()
        runs.main([str(tmp_path)])
        elapsed_s.append(time.process_time() - started_s)
    assert len(capsys.readouterr().out.splitlines()) == 4 * (10_000 + 2)
    assert min(elapsed_s) < 2, elapsed_s
    assert len(json.loads((tmp_path / INDEX_NAME).read_text())["runs"]) == 10_000


def test_only_runs_that_watch_the_same_are_ranked_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, (monitor, value) in enumerate([("max val/f1", 0.9), ("min val/loss", 0.1), ("max val/f1", 0.95)], 1):
        run = make_run(tmp_path, number)
        config = yaml.safe_load((run / "config.yaml").read_text())
        config["trainer"]["monitor"] = monitor
        (run / "config.yaml").write_text(yaml.safe_dump(config))
        (run / "metrics.csv").write_text(f"epoch,step,{monitor.split()[1]}\n1,10,{value}\n")
    (make_run(tmp_path, 4) / "metrics.csv").write_text("")
    assert runs.main([str(tmp_path)]) == 0
    first, second = capsys.readouterr().out.split("\n\n")
    assert first.startswith("digits: 2 runs by max val/f1, not comparable with other values")
    assert [line.split()[0][-1] for line in first.splitlines()[2:]] == ["3", "1"]
    assert [line.split()[0][-1] for line in second.splitlines()[2:]] == ["2", "4"]
    page, csv = tmp_path / "runs.html", tmp_path / "runs.csv"
    assert runs.main([str(tmp_path), "--html", str(page), "--csv", str(csv)]) == 0
    by = [f"digits by {monitor}, not comparable with other values" for monitor in ("max val/f1", "min val/loss")]
    assert re.findall("<h2>(.*?)</h2>", page.read_text()) == by
    assert [name[-1] for name in pd.read_csv(csv)["run"]] == ["3", "1", "2", "4"]
