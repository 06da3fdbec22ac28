"""Files that are written past the system's cache hold what was written, on every file system."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import zlib
from pathlib import Path
from typing import Any

import pytest

from src.utils.direct_file import CHUNK_BYTES, DirectFile

SIZES = [0, 1, 4095, 4096, CHUNK_BYTES - 1, 1, CHUNK_BYTES, 3 * CHUNK_BYTES + 5, 7]


def write(path: Path) -> bytes:
    parts = [bytes([number + 1]) * size for number, size in enumerate(SIZES)]
    with DirectFile(path) as file:
        assert [file.write(memoryview(part)) for part in parts] == SIZES
    whole = b"".join(parts)
    assert (file.num_bytes, file.checksum) == (len(whole), zlib.crc32(whole))
    return whole


def test_a_file_holds_what_was_written_and_its_sum_is_right(tmp_path: Path) -> None:
    assert write(tmp_path / "file") == (tmp_path / "file").read_bytes()
    with pytest.raises(FileExistsError):
        DirectFile(tmp_path / "file")


def test_a_disk_that_wants_other_pieces_is_written_through_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, refused = os.write, []

    def refuse(descriptor: int, data: Any) -> int:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            refused.append(len(data))
            raise OSError(errno.EINVAL, "Invalid argument")
        return original(descriptor, data[:999_999])  # and takes only a part at a time

    monkeypatch.setattr(os, "write", refuse)
    assert write(tmp_path / "file") == (tmp_path / "file").read_bytes()
    if not refused:
        pytest.skip("this file system has no way past the cache")
    assert refused == [CHUNK_BYTES], "asked once"


def test_what_goes_wrong_in_the_thread_is_raised_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", fail)
    file = DirectFile(tmp_path / "file")
    with pytest.raises(OSError, match="No space left"), file:
        file.write(bytes(5 * CHUNK_BYTES))
    assert file.error is not None
    assert file.error.errno == errno.ENOSPC


def test_no_open_file_and_no_thread_is_left(tmp_path: Path) -> None:
    before = sorted(Path("/proc/self/fd").iterdir()), threading.enumerate()
    write(tmp_path / "file")
    with pytest.raises(ZeroDivisionError), DirectFile(tmp_path / "other") as file:
        file.write(bytes(2 * CHUNK_BYTES))
        raise ZeroDivisionError
    assert (sorted(Path("/proc/self/fd").iterdir()), threading.enumerate()) == before
