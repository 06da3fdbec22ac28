"""Laws of packed files: what unpacks to far more than its size is refused before there is memory for it."""

from __future__ import annotations

import gzip
import lzma
import resource
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from src.data.arrays import Arrays
from src.data.idx import read_idx
from src.data.packed import FREE_BYTES
from src.data.table import Table
from src.data.unlabelled import table_chunks
from src.utils.errors import DataError

BOMB = b"a,b\n" + b"0,0\n" * (190 << 18)
"""190 MiB; as .gz it is 190 KiB."""
SMALL = BOMB[: 18 << 20]


def zipped(data: bytes) -> Callable[[Path], Any]:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("t.csv", data)

    return write


PACKED: dict[str, tuple[Callable[[Path], Any], Callable[[Path], Any]]] = {
    "t.csv.gz": (lambda path: path.write_bytes(gzip.compress(BOMB)), lambda path: Table(str(path))),
    "t.csv.xz": (lambda path: path.write_bytes(lzma.compress(SMALL, preset=0)), lambda path: Table(str(path))),
    "t.csv.zip": (zipped(SMALL), lambda path: Table(str(path))),
    "cached.csv.gz": (lambda path: path.write_bytes(gzip.compress(SMALL)), lambda path: Table(str(path), cache=True)),
    "given.csv.gz": (
        lambda path: path.write_bytes(gzip.compress(SMALL)),
        lambda path: next(table_chunks(path, {"numbers": ["a"], "categories": {}, "filler": None})),
    ),
    "t.npz": (lambda path: np.savez_compressed(path, x=np.zeros(20 << 17)), lambda path: Arrays(str(path))),
    "images.gz": (
        lambda path: path.write_bytes(
            gzip.compress(b"\0\0\x08\x03" + struct.pack(">3I", 20, 1024, 1024) + bytes(20 << 20))
        ),
        lambda path: read_idx(path, 3),
    ),
}


@pytest.mark.parametrize("name", PACKED)
def test_a_packed_file_that_fills_the_memory_is_refused_before_it_does(name: str, tmp_path: Path) -> None:
    write, read = PACKED[name]
    path = tmp_path / name
    write(path)
    assert path.stat().st_size < 1 << 20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match=r"unpacks to more than 100 times its size and 16 MiB, .*; if you know"):
        read(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 64 << 10, "KiB"


def test_what_packs_well_is_read_where_it_is_small_or_packs_as_tables_do(tmp_path: Path) -> None:
    zeros = np.zeros(FREE_BYTES // 8 - 100)
    np.savez_compressed(tmp_path / "small.npz", zeros)
    assert len(Arrays(str(tmp_path / "small.npz"))) == len(zeros)
    frame = pd.DataFrame({"a": np.arange(9000), "b": np.random.default_rng(0).integers(0, 5, 9000)})
    for suffix in (".gz", ".zip", ".bz2", ".xz"):
        frame.to_csv(tmp_path / f"t.csv{suffix}", index=False)
        assert len(Table(str(tmp_path / f"t.csv{suffix}"))) == 9000


@pytest.mark.parametrize("suffix", [".gz", ".zip", ".bz2", ".xz"])
def test_a_damaged_packed_table_is_told_in_a_line(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"t.csv{suffix}"
    pd.DataFrame({"a": np.random.default_rng(0).random(5000)}).to_csv(path, index=False)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:200] + bytes(200) + whole[400:], b"no archive"):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"cannot be read as CSV: [^\n]+$"):
            Table(str(path))


def test_an_archive_of_several_tables_is_told_in_a_line(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "t.csv.zip", "w") as archive:
        archive.writestr("a.csv", "a\n1\n")
        archive.writestr("b.csv", "a\n1\n")
    with pytest.raises(DataError, match=r"cannot be read as CSV: Multiple files found"):
        Table(str(tmp_path / "t.csv.zip"))


def test_a_packing_that_cannot_be_looked_into_is_refused(tmp_path: Path) -> None:
    for name in ("t.csv.zst", "t.tar", "t.tar.gz"):
        (tmp_path / name).write_bytes(b"anything")
        with pytest.raises(DataError, match=r"unpack it, or use \.gz or \.zip"):
            Table(str(tmp_path / name))
