"""Killed at random instants, or inside every system call of a save: the run goes on and ends as if it had not been."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from src.trainer.checkpoints.resume import newest_run
from src.trainer.checkpoints.store import CheckpointStore, load_checkpoint
from src.utils import direct_file
from src.utils.paths import PROJECT_ROOT
from tests.trainer_kit import assert_same_weights, make_trainer, weights

EXIT_AT_THE_CUT = 9


def chaos(seed: int, kills: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.chaos", "--seed", str(seed), "--kills", str(kills)]
    print("replay:", *command[1:])
    result = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=1200, check=False)
    assert result.stdout.startswith("{"), result.stdout + result.stderr
    report: dict[str, Any] = json.loads(result.stdout)
    print(report)
    return report


def assert_undisturbed(report: dict[str, Any], kills: int) -> None:
    assert report["kills"] == kills
    assert report["differences"] == []
    assert (report["unreadable"], report["orphans"], report["litter"]) == (0, 0, [])
    assert report["points"] > 40, "the event files hold what is compared"


def test_a_run_killed_at_random_instants_ends_as_if_it_had_not_been() -> None:
    assert_undisturbed(chaos(random.SystemRandom().randrange(10**6), kills=5), kills=5)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(4))
def test_twenty_five_kills_with_each_of_four_seeds(seed: int) -> None:
    assert_undisturbed(chaos(seed, kills=25), kills=25)


class Cut:
    """Ends this process at the k-th call of anything that changes the disk; a write is cut in half."""

    def __init__(self, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.at, self.calls, self.names = at, 0, list[str]()
        for name in ("fsync", "replace", "link", "unlink"):
            monkeypatch.setattr(os, name, self.wrap(name, getattr(os, name)))
        self.write = os.write
        monkeypatch.setattr(os, "write", self.wrap("write", os.write, self.tear))
        monkeypatch.setattr(direct_file, "CHUNK_BYTES", 4096)

    def wrap(self, name: str, call: Callable[..., Any], tear: Callable[..., None] | None = None) -> Callable[..., Any]:
        def counted(*args: Any, **options: Any) -> Any:
            self.calls += 1
            self.names.append(name)
            if self.calls == self.at:
                if tear:
                    tear(*args)
                os._exit(EXIT_AT_THE_CUT)
            return call(*args, **options)

        return counted

    def tear(self, descriptor: int, data: bytes) -> None:
        self.write(descriptor, data[: len(data) // 2])


def in_child(action: Callable[[], object]) -> int:
    """Run `action` in a forked process and return its exit code."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            action()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def state(step: int) -> dict[str, Any]:
    return {"format": 1, "model": {"weight": torch.full((3000,), float(step))}, "progress": {"step": step}}


def test_a_save_cut_at_every_single_call_leaves_the_old_or_the_new_state_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    for at in range(1, 500):
        folder = tmp_path / str(at) / "run" / "checkpoints"
        folder.mkdir(parents=True)
        for step in (1, 2, 3):
            CheckpointStore(folder, keep=2).save(state(step), step, is_best=step == 1)

        def save(at: int = at, folder: Path = folder) -> None:
            with monkeypatch.context() as patch:
                Cut(at, patch)
                CheckpointStore(folder, keep=2).save(state(4), 4, is_best=True)

        code = in_child(save)
        store = CheckpointStore(folder, keep=2)
        store.recover()
        found = store.newest()[1]
        step = found["progress"]["step"]
        seen.append(step)
        assert step in (3, 4)
        assert torch.equal(found["model"]["weight"], state(step)["model"]["weight"])
        best = load_checkpoint(folder / "best.pt")["progress"]["step"]
        assert best == (4 if step == 4 else 1), "best follows the commit"
        assert load_checkpoint(folder / "last.pt")["progress"]["step"] == step, "and so does last"
        assert not list(folder.glob(".tmp-*"))
        store.save(state(5), 5, is_best=False)
        assert {path.name for path in folder.glob("step-*")} <= {
            f"step-0000000{n}.{kind}" for n in (3, 4, 5) for kind in ("pt", "json")
        }
        assert newest_run(tmp_path / str(at), ".") is not None
        if code == 0:
            break
        assert code == EXIT_AT_THE_CUT
    assert len(seen) > 20, "every call of a save was cut"
    assert seen == sorted(seen), "once committed, always committed"


def test_a_step_saved_again_and_cut_at_every_call_leaves_one_of_its_two_states_though_none_older_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    for at in range(1, 100):
        folder = tmp_path / str(at)
        folder.mkdir()
        CheckpointStore(folder, keep=1).save({**state(7), "epoch": 0}, 7, is_best=False)

        def save(at: int = at, folder: Path = folder) -> None:
            with monkeypatch.context() as patch:
                Cut(at, patch)
                CheckpointStore(folder, keep=1).save({**state(7), "epoch": 1}, 7, is_best=True)

        code = in_child(save)
        store = CheckpointStore(folder, keep=1)
        assert store.newest()[1]["epoch"] in (0, 1), "also before anything is tidied up"
        store.recover()
        seen.append(store.newest()[1]["epoch"])
        assert (folder / "best.pt").exists() == (seen[-1] == 1)
        assert "before" not in json.loads((folder / "step-00000007.json").read_text())
        if code == 0:
            break
        assert code == EXIT_AT_THE_CUT
    assert seen == sorted(seen)
    assert set(seen) == {0, 1}


def test_what_is_renamed_is_on_disk_first_and_the_manifest_comes_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        cut = Cut(0, patch)
        CheckpointStore(tmp_path).save(state(1), 1, is_best=False)
    names = "".join({"write": "w", "fsync": "s", "replace": "R", "link": "L", "unlink": "u"}[n] for n in cut.names)
    assert names.lstrip("w").startswith("sRssRLR"), "data, rename, folder, manifest, rename, links"
    assert names.endswith("s")


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="asks Linux what is open")
def test_nothing_that_is_renamed_or_deleted_is_open_as_windows_asks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = []

    def look(name: str) -> None:
        before = getattr(os, name)

        def call(*paths: Any, **options: Any) -> Any:
            is_open = {os.path.realpath(each) for each in Path("/proc/self/fd").iterdir()}
            done.extend(Path(path).name for path in paths if not isinstance(path, int))
            assert not is_open & {os.path.realpath(path) for path in paths if not isinstance(path, int)}, name
            return before(*paths, **options)

        monkeypatch.setattr(os, name, call)

    for name in ("replace", "unlink"):
        look(name)
    store = CheckpointStore(tmp_path, keep=1)
    for step in (1, 2, 2, 3):
        store.save(state(step), step, is_best=step == 2)
        store.newest()
    assert {"step-00000001.pt", "step-00000003.pt", "last.pt", "best.pt"} <= set(done)


@pytest.mark.parametrize(
    ("at", "in_background"), [(3, False), (40, False), (70, False), (3, True), (9, True), (40, True)]
)
def test_a_run_whose_save_was_cut_ends_with_equal_weights(
    at: int, in_background: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    straight = make_trainer(tmp_path / "a", epochs=3, num_steps=21)
    straight.fit()

    def killed() -> None:
        trainer = make_trainer(
            tmp_path / "b", epochs=3, num_steps=21, save_every_steps=5, save_in_background=in_background
        )
        save, saves = trainer.saver.store.save, []  # type: ignore[union-attr]

        def save_once_then_cut(*args: Any) -> Path:
            saves.append(args)
            if len(saves) == 2:
                Cut(at, monkeypatch)
            return save(*args)

        trainer.saver.store.save = save_once_then_cut  # type: ignore[union-attr,method-assign,assignment]
        trainer.fit()

    assert in_child(killed) == EXIT_AT_THE_CUT
    resumed = make_trainer(tmp_path / "b", epochs=3, num_steps=21, seed=3)
    resumed.load_state_dict(CheckpointStore(tmp_path / "b" / "checkpoints").newest()[1])
    assert 0 < resumed.progress.step < 21
    resumed.fit()
    assert_same_weights(weights(straight), weights(resumed))
    assert (tmp_path / "a" / "metrics.csv").read_bytes() == (tmp_path / "b" / "metrics.csv").read_bytes()


def test_a_run_that_goes_back_to_an_older_checkpoint_leaves_the_later_ones_behind(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=3)
    for step in (10, 20, 30):
        store.save(state(step), step, is_best=False)
    store.save(state(15), 15, is_best=False)
    assert sorted(path.stem for path in tmp_path.glob("step-*.pt")) == ["step-00000010", "step-00000015"]
    assert store.newest()[1]["progress"]["step"] == 15
