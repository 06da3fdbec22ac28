"""Archives of torch whose sums are filled in on the way: right ones, and every other byte as torch wrote it."""

from __future__ import annotations

import io
import shutil
import subprocess
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.serialization import config

from src.trainer.checkpoints.store import CheckpointStore
from src.utils.zip_sums import SummedZip, join_sums
from tests.test_plain import values


@given(first=st.binary(max_size=300), second=st.binary(max_size=300))
def test_the_sum_of_two_pieces_comes_from_those_of_each(first: bytes, second: bytes) -> None:
    assert join_sums(zlib.crc32(first), zlib.crc32(second), len(second)) == zlib.crc32(first + second)


def save(path: Path, state: Any) -> SummedZip:
    path.unlink(missing_ok=True)
    with SummedZip(path) as file, config.patch("save.compute_crc32", False):  # type: ignore[attr-defined]
        torch.save(state, file)  # type: ignore[arg-type]
    assert file.checksum == zlib.crc32(path.read_bytes())
    return file


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=values)
def test_every_record_has_its_sum_and_every_other_byte_is_torchs(tmp_path: Path, value: Any) -> None:
    save(tmp_path / "ours.pt", value)
    theirs = io.BytesIO()
    with config.patch("save.compute_crc32", False):  # type: ignore[attr-defined]
        torch.save(value, theirs)
    pairs = zip((tmp_path / "ours.pt").read_bytes(), theirs.getvalue(), strict=True)
    with zipfile.ZipFile(tmp_path / "ours.pt") as archive:
        assert archive.testzip() is None
        assert sum(ours != torchs for ours, torchs in pairs) <= 8 * len(archive.infolist())


def test_a_checkpoint_is_a_zip_archive_without_fault(tmp_path: Path) -> None:
    state = {"format": 1, "model": {"a": torch.randn(700_000), "empty": torch.zeros(0), "one": torch.ones(())}}
    path = CheckpointStore(tmp_path).save(state, 1, is_best=False)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    if shutil.which("unzip"):
        assert "No errors detected" in subprocess.run(["unzip", "-t", path], capture_output=True, text=True).stdout


@pytest.mark.parametrize("start", [b"PK\x03\x04", b"PK\x07\x08", b"PK\x01\x02"])
@pytest.mark.parametrize("size", [16, 24, 30, 46, 500, 20_000])
def test_tensors_that_look_like_parts_of_an_archive_stay_as_they_are(tmp_path: Path, start: bytes, size: int) -> None:
    tensors = [torch.frombuffer(bytearray(start + bytes(size - 4)), dtype=torch.uint8) for _ in range(3)]
    save(tmp_path / "file.pt", [torch.zeros(0), *tensors])
    loaded = torch.load(tmp_path / "file.pt", weights_only=True)
    assert all(torch.equal(one, two) for one, two in zip(loaded[1:], tensors, strict=True))
    with zipfile.ZipFile(tmp_path / "file.pt") as archive:
        assert archive.testzip() is None


def test_what_comes_in_other_pieces_is_written_as_it_comes(tmp_path: Path) -> None:
    with config.patch("save.compute_crc32", False):  # type: ignore[attr-defined]
        torch.save([torch.ones(3), torch.zeros(0)], tmp_path / "whole.pt")
    whole = (tmp_path / "whole.pt").read_bytes()
    for size in (1, 7, 30, 10_000):
        with SummedZip(tmp_path / str(size)) as file:
            for start in range(0, len(whole), size):
                file.write(whole[start : start + size])
        assert (tmp_path / str(size)).read_bytes() == whole
        assert file.checksum == zlib.crc32(whole)
