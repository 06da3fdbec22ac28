"""When disk, memory, files or finite numbers run out: one line that says what, and what was saved stays whole."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from src.logger.logger import Logger
from src.logger.status import write_status
from src.trainer.checkpoints.resume import open_checkpoint
from src.trainer.checkpoints.store import CheckpointStore
from src.trainer.hooks import Hook
from src.trainer.trainer import Trainer
from src.utils.command import exit_code, run_command, shortage
from src.utils.errors import ResourceError
from tests.test_bad_input import prepare
from tests.test_chaos import in_child, state
from tests.trainer_kit import make_trainer
from train import main


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB, where mounting is allowed."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system is not allowed here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def test_a_full_disk_is_called_so_and_older_checkpoints_are_intact(small_disk: Path) -> None:
    store = CheckpointStore(small_disk)
    store.save(state(1), 1, is_best=True)
    (small_disk / "filler").write_bytes(bytes(2_900_000))
    with pytest.raises(ResourceError, match=r"step-00000002.pt: cannot be saved: No space left.* MiB are free"):
        store.save({**state(2), "model": {"weight": torch.zeros(100_000)}}, 2, is_best=True)
    assert store.newest()[1]["progress"]["step"] == 1
    assert not list(small_disk.glob(".tmp-*"))


def test_a_disk_too_small_for_two_states_is_found_before_the_first_step(small_disk: Path) -> None:
    trainer = make_trainer(small_disk / "run")
    trainer.model.register_buffer("large", torch.zeros(300_000))
    with pytest.raises(ResourceError, match=r"checkpoints need about \d+ MiB, \d MiB are free; free some, or name"):
        trainer.fit()
    assert trainer.progress.step == 0


def test_a_run_for_which_the_disk_is_too_small_leaves_no_folder(
    small_disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*prepare(tmp_path, {}), f"trainer.save_dir={small_disk}", "model.args.hidden=[300000]"]
    assert run_command(lambda: main(words)) == 5
    assert "checkpoints need about" in capsys.readouterr().err
    assert not list(small_disk.glob("*/*"))


def test_a_status_that_finds_no_room_does_not_hide_why_the_run_ended(small_disk: Path) -> None:
    write_status(small_disk, None, -1)
    filler = (small_disk / "filler").open("wb", buffering=0)
    with suppress(OSError):
        while True:
            filler.write(bytes(4096))
    write_status(small_disk, 5, 3)
    assert json.loads((small_disk / "status.json").read_text())["state"] == "running", "the old one is whole"
    filler.close()
    assert not list(small_disk.glob(".*"))


@pytest.mark.parametrize("in_background", [False, True])
def test_a_read_only_folder_during_the_run_is_forgiven_twice_and_then_ends_it(
    small_disk: Path, in_background: bool
) -> None:
    trainer = make_trainer(small_disk / "run", epochs=5, save_in_background=in_background)
    save, saves = trainer.saver.store.save, []  # type: ignore[union-attr]

    def turn_read_only(*args: Any) -> Path:
        saves.append(1)
        if len(saves) == 2:
            subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
        return save(*args)

    trainer.saver.store.save = turn_read_only  # type: ignore[union-attr,assignment,method-assign]
    with pytest.raises(ResourceError, match=r"cannot be saved: Read-only file system"):
        trainer.fit()
    assert len(saves) == 4, "one that worked, and three that did not"
    assert open_checkpoint(small_disk / "run")[1]["progress"]["step"] == 7


@pytest.mark.parametrize("in_background", [False, True])
def test_a_disk_that_fills_up_during_the_run_and_has_room_again_costs_nothing_but_those_saves(
    small_disk: Path, in_background: bool, caplog: pytest.LogCaptureFixture
) -> None:
    class Fill(Hook):
        def on_step_end(self, trainer: Trainer) -> None:
            if trainer.progress.step == 10:
                trainer.saver._finish()
                with suppress(OSError), (small_disk / "filler").open("wb", buffering=0) as file:
                    while file.write(bytes(1024)):
                        pass
            if trainer.progress.step == 24:
                trainer.saver._finish()
                (small_disk / "filler").unlink()

    trainer = make_trainer(small_disk / "run", hooks=(Fill(),), save_in_background=in_background)
    trainer.logger = Logger()  # its files are on the same disk
    trainer.fit()
    assert caplog.text.count("cannot be saved: No space left on device; 0 MiB are free there") == 2
    store = CheckpointStore(small_disk / "run" / "checkpoints")
    assert [path.stem for path in sorted(store.folder.glob("step-*.pt"))] == ["step-00000028", "step-00000035"]
    assert store.newest()[1]["progress"]["step"] == 35
    assert not list(store.folder.glob(".tmp-*"))


def test_a_limit_on_file_sizes_is_reported_like_a_full_disk(tmp_path: Path) -> None:
    def save() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        CheckpointStore(tmp_path).save(state(1), 1, is_best=False)  # fits
        with pytest.raises(ResourceError, match="File too large"):
            CheckpointStore(tmp_path).save({**state(2), "model": {"weight": torch.zeros(50_000)}}, 2, is_best=False)

    assert in_child(save) == 0
    assert CheckpointStore(tmp_path).newest()[1]["progress"]["step"] == 1


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "memory ran out: .*smaller loader.batch_size"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to get 8 B"), "memory ran"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "memory ran out"),
        (OSError(28, "No space left on device", "/x/y"), "/x/y: the disk is full"),
        (OSError(24, "Too many open files"), "too many open files; raise `ulimit -n`"),
    ],
)
def test_what_the_machine_has_no_more_of_is_one_line_with_exit_code_5(
    error: Exception, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    def fail() -> int:
        raise error

    assert exit_code(error) == run_command(fail) == 5
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and re.search(message, lines[0]), lines


class Watch(Hook):
    """Notes memory and open files of this process at the end of each epoch."""

    def __init__(self) -> None:
        self.resident_mib: list[float] = []
        self.open_files: list[int] = []

    def on_epoch_end(self, trainer: Trainer, values: Mapping[str, float]) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.resident_mib.append(pages * resource.getpagesize() / 2**20)
        self.open_files.append(len(list(Path("/proc/self/fd").iterdir())))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads memory from /proc")
def test_memory_and_open_files_do_not_grow_from_epoch_to_epoch(tmp_path: Path) -> None:
    watch = Watch()
    make_trainer(tmp_path / "run", epochs=14, hooks=(watch,)).fit()
    assert len(watch.resident_mib) == 14
    assert watch.resident_mib[-1] - watch.resident_mib[3] <= 5
    assert len(set(watch.open_files[1:])) == 1


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no second file system here")
def test_a_run_on_another_file_system_than_that_of_temporary_files_is_saved_and_goes_on() -> None:
    folder = Path("/dev/shm") / f"keel-test-{os.getpid()}"
    try:
        make_trainer(folder, epochs=1).fit()
        assert folder.stat().st_dev != Path(tempfile.gettempdir()).stat().st_dev
        trainer = make_trainer(folder, epochs=2)
        trainer.load_state_dict(open_checkpoint(folder)[1])
        trainer.fit()
        assert open_checkpoint(folder)[1]["progress"]["step"] == trainer.progress.step > 7
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_errors_that_are_bugs_keep_their_traceback() -> None:
    assert shortage(ValueError("x")) is None
    assert exit_code(ValueError("x")) == 1

    def fail() -> int:
        raise ValueError("x")

    with pytest.raises(ValueError, match="x"):
        run_command(fail)


def test_a_save_dir_that_cannot_be_written_ends_with_2_before_anything_is_built(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    command = [sys.executable, "train.py", "-c", "configs/line.yaml", f"trainer.save_dir={tmp_path / 'file'}"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
    assert result.returncode == 2
    assert "is a file; a folder is needed" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
