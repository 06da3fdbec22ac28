"""Packed files: how much they may unpack to. A hostile one of 190 KiB could fill the memory."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from src.utils.errors import DataError
from src.utils.paths import shown_path

MAX_RATIO = 100
"""Bytes that a packed byte may stand for; tables come to 5 to 20, the best that gzip can do is 1032."""
FREE_BYTES = 1 << 24
"""So much may come out of the smallest file."""
CHUNK_BYTES = 1 << 20
STREAMS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
OTHERS = (".zst", ".tar")
DAMAGED = (OSError, EOFError, lzma.LZMAError, zlib.error, zipfile.BadZipFile)
"""What reading a packed file raises where it is not whole."""


def unpacked_limit(path: Path) -> int:
    """Return how many bytes a packed file may hold."""
    return max(FREE_BYTES, MAX_RATIO * path.stat().st_size)


def check_unpacked(path: Path) -> None:
    """Refuse a packed file that holds more than it may; it is unpacked once, piece by piece, to find out.

    Raises:
        DataError: It holds more, or is packed in a way that is not known here.
        DAMAGED: It is damaged.
    """
    limit = unpacked_limit(path)
    if path.suffix in (".zip", ".npz"):
        with zipfile.ZipFile(path) as archive:  # no more of a file is read than it claims
            is_too_large = sum(record.file_size for record in archive.infolist()) > limit
    elif path.suffix in STREAMS and ".tar" not in path.suffixes:
        is_too_large = _holds_more(path, limit)
    elif set(OTHERS) & set(path.suffixes[-2:]):
        raise DataError(f"{shown_path(path)}: is packed in a way that is not read here; unpack it, or use .gz or .zip")
    else:
        return
    if is_too_large:
        raise too_large(path)


def too_large(path: Path) -> DataError:
    """Return what is said of a packed file that holds more than it may."""
    return DataError(
        f"{shown_path(path)}: unpacks to more than {MAX_RATIO} times its size and {FREE_BYTES >> 20} MiB, as files do "
        "that are made to fill the memory; if you know what it holds, unpack it and name the result"
    )


def _holds_more(path: Path, limit: int) -> bool:
    with STREAMS[path.suffix](path, "rb") as file:
        while limit >= 0 and (chunk := file.read(CHUNK_BYTES)):
            limit -= len(chunk)
    return limit < 0
