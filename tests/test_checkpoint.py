"""The checkpoint store: what was committed can be read, what is damaged is noticed, nothing runs code."""

from __future__ import annotations

import builtins
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from src.trainer.checkpoints import store as checkpoint
from src.trainer.checkpoints.plain import check_plain
from src.trainer.checkpoints.resume import best_weights, load_weights, newest_run, open_checkpoint
from src.trainer.checkpoints.store import CheckpointStore, load_checkpoint
from src.utils.errors import CheckpointError, ResourceError


def state(step: int) -> dict[str, Any]:
    return {"format": 1, "model": {"weight": torch.full((500,), float(step))}, "progress": {"step": step}}


def saved_step(path: Path) -> int:
    return int(load_checkpoint(path)["progress"]["step"])


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    return CheckpointStore(folder, keep=2)


def test_last_is_the_newest_best_is_the_best_and_only_keep_older_ones_stay(store: CheckpointStore) -> None:
    for step in range(1, 7):
        store.save(state(step), step, is_best=step == 2)
    names = sorted(path.name for path in store.folder.iterdir())
    assert names == [
        "best.json", "best.pt", "last.pt",
        "step-00000005.json", "step-00000005.pt", "step-00000006.json", "step-00000006.pt",
    ]  # fmt: skip
    assert saved_step(store.folder / "last.pt") == 6
    assert saved_step(store.folder / "best.pt") == 2


def test_last_and_best_cost_no_bytes_where_the_file_system_has_links(store: CheckpointStore) -> None:
    path = store.save(state(1), 1, is_best=True)
    assert path.stat().st_nlink == 3


def test_without_links_last_and_best_are_copies_that_are_on_disk(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync, synced = os.fsync, []

    def refuse(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    def note(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(os, "fsync", note)
    for step in (1, 2):
        store.save(state(step), step, is_best=step == 1)
    for name, step in (("last.pt", 2), ("best.pt", 1)):
        assert saved_step(store.folder / name) == step
        assert (store.folder / name).stat().st_ino in synced


def test_a_run_can_be_read_while_it_saves_and_lets_go_of_what_is_being_read(store: CheckpointStore) -> None:
    store.keep, done = 1, threading.Event()
    store.save(state(0), 0, is_best=False)

    def save() -> None:
        step = 0
        while not done.is_set():
            step += 1
            store.save(state(step), step, is_best=False)

    writer = threading.Thread(target=save)
    writer.start()
    try:
        reader, steps = CheckpointStore(store.folder), []
        while len(steps) < 60:
            content = reader.newest()[1]
            steps.append(content["progress"]["step"])
            assert float(content["model"]["weight"][0]) == steps[-1]
    finally:
        done.set()
        writer.join()
    assert steps == sorted(steps)


def test_a_checkpoint_loads_in_plain_torch_without_the_project(store: CheckpointStore, tmp_path: Path) -> None:
    store.save(state(4), 4, is_best=False)
    shutil.copy(store.folder / "last.pt", tmp_path / "copied.pt")
    code = "import torch; print(torch.load('copied.pt', weights_only=True)['progress'])"
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "{'step': 4}"
    assert saved_step(tmp_path / "copied.pt") == 4


def test_every_damage_is_noticed_and_the_older_checkpoint_taken_instead(store: CheckpointStore) -> None:
    store.save(state(1), 1, is_best=False)
    newest = store.save(state(2), 2, is_best=False)
    manifest = newest.with_suffix(".json")
    whole, whole_manifest = newest.read_bytes(), manifest.read_bytes()
    draw = random.Random(0)
    for turn in range(600):
        data = bytearray(whole)
        position = draw.randrange(len(data))
        kind = ("flip", "cut", "zero", "grow", "empty", "gone", "manifest cut", "manifest gone")[turn % 8]
        if kind == "flip":
            data[position] ^= 1 << draw.randrange(8)
        elif kind == "zero":
            if not any(data[position : position + 64]):
                continue
            data[position : position + 64] = bytes(len(data[position : position + 64]))
        newest.write_bytes({"cut": data[:position], "grow": bytes(data) + b"x", "empty": b""}.get(kind, bytes(data)))
        manifest.write_bytes(whole_manifest[: position % 40] if kind == "manifest cut" else whole_manifest)
        if kind == "gone":
            newest.unlink()
        if kind == "manifest gone":
            manifest.unlink()
        assert store.newest()[1]["progress"]["step"] == 1, kind


def test_when_all_are_damaged_each_file_is_named_with_its_reason(store: CheckpointStore) -> None:
    for step in (1, 2):
        path = store.save(state(step), step, is_best=False)
        path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(CheckpointError, match=r"step-00000002.pt: has \d+ bytes, \d+ were saved\n.*step-00000001.pt"):
        store.newest()


def test_a_damaged_best_is_noticed_though_its_step_is_long_gone(store: CheckpointStore) -> None:
    for step in range(1, 6):
        store.save(state(step), step, is_best=step == 1)
    data = bytearray((store.folder / "best.pt").read_bytes())
    data[700] ^= 1
    (store.folder / "best.pt").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"best.pt: checksum differs"):
        load_checkpoint(store.folder / "best.pt")


class Payload:
    """Makes a marker file when it is unpickled by a careless loader."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return builtins.open, (str(self.marker), "w")


@pytest.mark.parametrize("legacy", [False, True])
def test_a_checkpoint_with_code_in_it_is_refused_and_the_code_does_not_run(tmp_path: Path, legacy: bool) -> None:
    marker = tmp_path / "marker"
    torch.save({"format": 1, "model": Payload(marker)}, tmp_path / "evil.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=r"evil.pt: (refused|is not a checkpoint)"):
        load_checkpoint(tmp_path / "evil.pt")
    assert not marker.exists()


def test_what_is_not_a_checkpoint_is_called_so(tmp_path: Path) -> None:
    (tmp_path / "picture.pt").write_bytes(b"\x89PNG\r\n" + bytes(100))
    torch.save({"weights": torch.zeros(2)}, tmp_path / "other.pt")
    torch.save({"format": 99, "model": {}}, tmp_path / "newer.pt")
    with pytest.raises(CheckpointError, match=r"picture.pt: is not a checkpoint"):
        load_checkpoint(tmp_path / "picture.pt")
    with pytest.raises(CheckpointError, match=r"other.pt: is not a checkpoint of this program"):
        load_checkpoint(tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=r"newer.pt: made by a newer version \(format 99"):
        load_checkpoint(tmp_path / "newer.pt")
    with pytest.raises(CheckpointError, match=r"gone.pt: no such file"):
        load_checkpoint(tmp_path / "gone.pt")
    os.mkfifo(tmp_path / "fifo.pt")
    with pytest.raises(CheckpointError, match=r"fifo.pt: not a plain file"):
        load_checkpoint(tmp_path / "fifo.pt")


def test_a_packed_archive_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "plain.pt"
    torch.save(state(1), path)
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for record in whole.infolist():
            packed.writestr(record.filename, whole.read(record))
    with pytest.raises(CheckpointError, match="packed records"):
        load_checkpoint(tmp_path / "bomb.pt")


def test_records_that_claim_more_bytes_than_the_file_has_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "plain.pt"
    torch.save(state(1), path)
    with zipfile.ZipFile(path) as whole:
        listed = whole.infolist()
        place = whole.start_dir
    data = bytearray(path.read_bytes())
    for record in listed:
        if record.filename.endswith("data/0"):
            place = data.index(record.filename.encode(), place) - 46
            data[place + 20 : place + 28] = (2**31).to_bytes(4, "little") * 2
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"plain.pt: claims to hold more bytes than it has"):
        load_checkpoint(path)


class Colour(Enum):
    RED = 1


@pytest.mark.parametrize("value", [np.float64(1.0), Path("x"), Colour.RED, object(), {1: [2, {"deep": np.int64(3)}]}])
def test_what_could_not_be_loaded_safely_is_refused_when_saving(store: CheckpointStore, value: object) -> None:
    with pytest.raises(CheckpointError, match=r"^hook\.memory.*does not belong in a checkpoint"):
        store.save({**state(1), "hook": {"memory": value}}, 1, is_best=False)
    assert list(store.folder.iterdir()) == []
    check_plain({"a": [1, 2.0, None, "x", (torch.zeros(1), torch.nn.Parameter(torch.zeros(1)))]}, "")


def test_a_failed_write_leaves_the_older_checkpoint_and_no_litter(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.save(state(1), 1, is_best=True)
    for broken in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            target = os if broken == "fsync" else Path

            def fail(*_: object) -> None:
                raise OSError(28, "No space left on device")

            patch.setattr(target, broken, fail)
            with pytest.raises(ResourceError, match=r"step-00000002.pt: cannot be saved: No space left.*intact"):
                store.save(state(2), 2, is_best=True)
        assert store.newest()[1]["progress"]["step"] == 1
        assert saved_step(store.folder / "best.pt") == 1
        assert not list(store.folder.glob(".tmp-*"))


def save_until_killed(folder: Path, ready: int) -> None:
    store = CheckpointStore(folder, keep=2)
    for step in range(1, 100000):
        weights = {"weight": torch.full((200_000,), float(step))}
        store.save({"format": 1, "model": weights, "progress": {"step": step}}, step, is_best=step % 3 == 0)
        os.write(ready, b".")


def test_a_kill_at_any_moment_of_a_save_leaves_a_good_checkpoint(tmp_path: Path) -> None:
    draw = random.Random(1)
    for turn in range(6):
        folder = tmp_path / str(turn)
        folder.mkdir()
        told, ready = os.pipe()
        process = os.fork()
        if not process:
            with contextlib.suppress(BaseException):
                save_until_killed(folder, ready)
            os._exit(1)
        os.close(ready)
        assert os.read(told, 1) == b".", "it has saved once"
        time.sleep(0.3 * draw.random())
        os.kill(process, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL
        os.close(told)
        killed = CheckpointStore(folder)
        killed.recover()
        content = killed.newest()[1]
        assert float(content["model"]["weight"][0]) == content["progress"]["step"]
        assert not list(folder.glob(".tmp-*")), "litter of a killed save is swept at the start"


def test_a_run_is_found_by_its_folder_its_file_or_as_the_newest(tmp_path: Path) -> None:
    for number, name in enumerate(["0101_000000", "0102_000000"]):
        folder = tmp_path / "digits" / name / "checkpoints"
        folder.mkdir(parents=True)
        CheckpointStore(folder).save(state(number), number, is_best=True)
        time.sleep(0.01)
    run = tmp_path / "digits" / "0102_000000"
    assert newest_run(tmp_path, "digits") == run
    assert newest_run(tmp_path, "nothing") is None
    for path in (run, run / "checkpoints", run / "checkpoints" / "best.pt"):
        found, content = open_checkpoint(path)
        assert (found, content["progress"]["step"]) == (run, 1)
    with pytest.raises(CheckpointError, match=r"no such run; did you mean .*0101_000000"):
        open_checkpoint(tmp_path / "digits" / "0101_00000")


def test_weights_saved_behind_a_wrapper_fit_the_bare_model() -> None:
    model = torch.nn.Linear(2, 1)
    wrapped = {f"module._orig_mod.{name}": value + 1 for name, value in model.state_dict().items()}
    expected = {name: value + 1 for name, value in model.state_dict().items()}
    load_weights(model, wrapped, "here")
    assert all(torch.equal(model.state_dict()[name], value) for name, value in expected.items())


def test_the_averaged_weights_are_the_ones_to_test() -> None:
    assert best_weights({"model": {"a": 1}, "ema": {"model": {"a": 2}}}) == {"a": 2}
    assert best_weights({"model": {"a": 1}}) == {"a": 1}


def test_a_manifest_tells_size_sum_and_step(store: CheckpointStore) -> None:
    path = store.save(state(3), 3, is_best=False)
    manifest = json.loads(path.with_suffix(".json").read_text())
    assert manifest["step"] == 3
    assert manifest["bytes"] == path.stat().st_size


def test_a_checkpoint_that_goes_while_it_is_looked_at_is_passed_over(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    older, newer = (store.save(state(step), step, is_best=False) for step in (1, 2))
    read = checkpoint.read_manifest

    def read_and_lose(path: Path) -> Any:
        found = read(path)
        if path.name == newer.with_suffix(".json").name:
            newer.unlink(missing_ok=True)  # as a run that goes on may, between two looks
        return found

    monkeypatch.setattr(checkpoint, "read_manifest", read_and_lose)
    assert store.newest()[0] == older
