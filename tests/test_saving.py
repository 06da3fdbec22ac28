"""Saving while training goes on: the same files, never two at once, and nothing lost."""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor, nn

from src.trainer.checkpoints.host_copy import HostCopy
from src.trainer.checkpoints.saving import Saver
from src.trainer.checkpoints.store import CheckpointStore
from src.trainer.hooks import Hook
from src.trainer.trainer import Trainer
from src.utils import direct_file
from src.utils.errors import CheckpointError, ResourceError
from tests.test_plain import values
from tests.trainer_kit import make_trainer


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for part in parts for tensor in tensors(part)]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=values)
def test_the_file_of_a_copy_is_that_of_the_state_bit_for_bit_and_stays_so(tmp_path: Path, value: Any) -> None:
    state = {"format": 1, "model": {}, "value": value, "again": [value, value]}
    whole = CheckpointStore(tmp_path).save(state, 1, is_best=False).read_bytes()
    copied = HostCopy().take(state)
    for tensor in tensors(state):
        tensor.untyped_storage().fill_(0)
    assert CheckpointStore(tmp_path).save(copied, 2, is_best=False).read_bytes() == whole


def test_a_state_dict_with_shared_weights_parameters_and_versions_gives_the_same_file(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(40, 40), nn.BatchNorm1d(40), nn.Linear(40, 40), nn.LSTM(40, 7))
    model[2].weight = model[0].weight
    optimizer = torch.optim.AdamW([{"params": model[0].parameters(), "lr": 0.1}, {"params": model[3].parameters()}])
    model[0](torch.rand(2, 40)).sum().backward()
    optimizer.step()
    state = {"format": 1, "model": model.state_dict(), "optimizer": optimizer.state_dict(), "raw": [model[0].bias]}
    files = [
        CheckpointStore(tmp_path).save(each, step, is_best=False).read_bytes()
        for step, each in enumerate([state, HostCopy().take(state)])
    ]
    assert files[0] == files[1]


def test_copies_take_the_memory_of_one_however_many_are_taken() -> None:
    copies, state = HostCopy(), {"a": torch.zeros(100), "b": [torch.zeros(7), torch.zeros(0)]}
    places = [tensor.data_ptr() for tensor in tensors(copies.take(state))]
    for _ in range(3):
        state["a"] += 1  # type: ignore[operator]
        copied = copies.take(state)
        assert [tensor.data_ptr() for tensor in tensors(copied)] == places
        assert torch.equal(copied["a"], state["a"])  # type: ignore[arg-type]
    copies.take({"a": torch.zeros(100)})
    assert [storage.nbytes() for storage in copies._kept] == [400], "what is not needed any more is let go"


def test_a_run_saved_in_the_background_leaves_the_same_files(tmp_path: Path) -> None:
    files = []
    for name, in_background in (("a", False), ("b", True)):
        trainer = make_trainer(
            tmp_path / name, save_in_background=in_background, save_every_steps=2, ema_decay=0.9, keep=9
        )
        trainer.fit()
        folder = tmp_path / name / "checkpoints"
        files.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert files[0].keys() == files[1].keys()
    assert [name for name in files[0] if files[0][name] != files[1][name]] == []
    assert len(files[0]) > 18


def test_there_are_never_two_saves_at_once_and_training_does_not_wait_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync, folder, seen, threads = os.fsync, tmp_path / "checkpoints", [], set()
    steps_meanwhile: list[int] = []

    def slow(descriptor: int) -> None:
        seen.append(len(list(folder.glob(".tmp-*.pt"))))
        threads.add(threading.current_thread().name.split("_")[0])
        before = trainer.progress.step
        time.sleep(0.01)
        steps_meanwhile.append(trainer.progress.step - before)
        fsync(descriptor)

    trainer = make_trainer(tmp_path, save_in_background=True, save_every_steps=3)
    monkeypatch.setattr(os, "fsync", slow)
    trainer.fit()
    assert max(seen) == 1
    assert threads == {"MainThread", "save"}, "the first and the last save are waited for"
    assert max(steps_meanwhile) > 0
    assert trainer.saver.saved_step == 35


class Vanish(Hook):
    """Takes the checkpoint folder away after a step."""

    def __init__(self, folder: Path, step: int, returns_at: int | None = None) -> None:
        self.folder, self.step, self.returns_at = folder / "checkpoints", step, returns_at

    def on_step_end(self, trainer: Trainer) -> None:
        if trainer.progress.step == self.step:
            trainer.saver._finish()
            shutil.move(self.folder, self.folder.with_name("moved"))
        if trainer.progress.step == self.returns_at:
            trainer.saver._finish()
            shutil.move(self.folder.with_name("moved"), self.folder)


@pytest.mark.parametrize("in_background", [False, True])
def test_a_folder_that_vanished_is_forgiven_twice_and_then_ends_the_run(
    tmp_path: Path, in_background: bool, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = make_trainer(tmp_path, hooks=(Vanish(tmp_path, 10),), save_in_background=in_background)
    with pytest.raises(ResourceError, match=r"step-000000\d\d.pt: cannot be saved: No such file or directory"):
        trainer.fit()
    assert caplog.text.count("training goes on and saves again later") == 2
    assert trainer.saver.saved_step == 7
    assert [path.name for path in sorted((tmp_path / "moved").glob("step-*.pt"))] == ["step-00000007.pt"]


@pytest.mark.parametrize("in_background", [False, True])
def test_a_disk_that_comes_back_is_saved_to_again_also_at_the_very_end(tmp_path: Path, in_background: bool) -> None:
    hooks = (Vanish(tmp_path, 20, returns_at=30), Vanish(tmp_path, 1000))
    trainer = make_trainer(tmp_path, hooks=hooks, save_in_background=in_background)
    trainer.fit()
    assert trainer.saver.saved_step == 35
    assert CheckpointStore(tmp_path / "checkpoints").newest()[1]["progress"]["step"] == 35


@pytest.mark.parametrize("in_background", [False, True])
def test_a_best_whose_save_failed_is_best_when_the_same_step_is_saved_again(
    tmp_path: Path, in_background: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    saver = Saver(tmp_path, 2, in_background)
    state = {"format": 1, "model": {}}
    with saver:
        saver.save(lambda: state, 1, is_best=False, is_last_chance=False)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail)
            saver.save(lambda: state, 2, is_best=True, is_last_chance=False)
            assert not saver.has_saved(2)
        assert "best.pt does not hold the newest best; training goes on" in caplog.text
        assert not (tmp_path / "best.pt").exists()
        saver.save(lambda: state, 2, is_best=False, is_last_chance=True)
    assert (tmp_path / "best.pt").samefile(tmp_path / "step-00000002.pt")


def fail(*_: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("max_failed", [1, 2, 3])
def test_as_many_saves_in_a_row_as_the_settings_say_may_fail(
    max_failed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(tmp_path, max_failed_saves=max_failed, save_every_steps=2)
    trainer.saver.save(trainer.state_dict, 0, False, False)
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(ResourceError, match="No space left"):
        trainer.fit()
    assert trainer.progress.step == 2 * max_failed
    assert CheckpointStore(tmp_path / "checkpoints").newest()[1]["progress"]["step"] == 0


def test_what_goes_wrong_in_the_background_is_raised_at_the_next_save_or_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bug(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    for ends in ("next save", "end", "look"):
        saver = Saver(tmp_path, 2, in_background=True)
        saver.save(lambda: {"format": 1, "model": {}}, 1, is_best=False, is_last_chance=False)
        with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError, match="a bug"), saver:
            patch.setattr(os, "fsync", bug)
            saver.save(lambda: {"format": 1, "model": {}}, 2, is_best=False, is_last_chance=False)
            if ends == "next save":
                saver.save(lambda: {"format": 1, "model": {}}, 3, is_best=False, is_last_chance=False)
            elif ends == "look":
                saver.has_saved(2)


def test_what_no_checkpoint_can_hold_is_refused_before_training_and_at_once(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, save_in_background=True)
    trainer.record["hook"] = {"path": tmp_path}
    with pytest.raises(CheckpointError, match=r"^hook\.path: a PosixPath does not belong in a checkpoint"):
        trainer.fit()
    assert trainer.progress.step == 0
    saver = Saver(tmp_path / "checkpoints", 2, in_background=True)
    with saver:
        saver.save(lambda: {"format": 1, "model": {}}, 1, is_best=False, is_last_chance=False)
        with pytest.raises(CheckpointError, match=r"^x: a complex"):
            saver.save(lambda: {"format": 1, "model": {}, "x": 1j}, 2, is_best=False, is_last_chance=False)


def test_a_run_that_breaks_waits_for_what_is_being_written_and_one_told_to_leave_at_once_gives_it_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(direct_file, "CHUNK_BYTES", 4096)  # so that there are pieces to stop at
    write = os.write

    def slow(*args: Any) -> int:
        time.sleep(0.02)
        return write(*args)

    caplog.set_level(logging.WARNING)
    monkeypatch.setattr(os, "write", slow)
    for error, saved in ((ValueError("x"), 12), (KeyboardInterrupt(), 8)):
        folder = tmp_path / str(saved)
        trainer = make_trainer(folder, save_every_steps=4, epochs=2, save_in_background=True)
        save = trainer.saver.save

        def save_then_break(*args: Any, save: Any = save, error: BaseException = error) -> None:
            save(*args)
            if args[1] == 12:
                raise error

        trainer.saver.save = save_then_break  # type: ignore[method-assign]
        with pytest.raises(type(error)):
            trainer.fit()
        store = CheckpointStore(folder / "checkpoints")
        assert store.newest()[1]["progress"]["step"] == saved
        assert not list(store.folder.glob(".tmp-*"))
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith(("save", "write"))] == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_copy_of_a_gpu_holds_the_values_of_its_moment_and_nothing_waits_for_it() -> None:
    weight = torch.zeros(50_000_000, device="cuda")
    state, copies = {"weight": weight, "tied": weight[:10]}, HostCopy()
    copies.take(state)
    copies.wait()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(3):
            weight.fill_(step)
            copied = copies.take(state)
            weight.fill_(-1)
            torch.cuda.set_sync_debug_mode("default")
            copies.wait()
            assert copied["weight"].device.type == "cpu"
            assert bool((copied["weight"] == step).all())
            assert copied["tied"].data_ptr() == copied["weight"].data_ptr()
            torch.cuda.set_sync_debug_mode("error")
    finally:
        torch.cuda.set_sync_debug_mode("default")
