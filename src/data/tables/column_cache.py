"""A large CSV file, converted once to two arrays that are memory-mapped: numbers, and texts as codes.

A row lies in one piece in each of them: batches are rows picked at random, and each costs a page or two of the disk.
"""

from __future__ import annotations

import glob
import json
import logging
import shutil
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from src.data.tables.convert_csv import Column, convert
from src.data.tables.csv_file import csv_errors
from src.utils.errors import DataError
from src.utils.paths import project_path, shown_path

CACHE_FOLDER = "data/.cache"
FORMAT = 1
"""Of what is in a cache: another one is built anew."""
Array = np.ndarray[Any, Any]
log = logging.getLogger(__name__)


class ColumnCache:
    """The columns of a CSV file on disk: pages are read when they are needed, and given back when memory is short.

    Args:
        folder: What `open_cache` has built.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        described = json.loads((folder / "columns.json").read_text(encoding="utf-8"))
        self.by_name = {each["name"]: Column(**each) for each in described}
        self.columns = list(self.by_name)
        self.numbers = self._mapped("numbers")
        self.codes = self._mapped("codes")

    def _mapped(self, name: str) -> Array:
        file = self.folder / f"{name}.npy"
        try:
            return np.asarray(np.load(file, mmap_mode="r", allow_pickle=False))
        except ValueError:  # nothing cannot be mapped
            return np.asarray(np.load(file, allow_pickle=False))

    def __len__(self) -> int:
        return len(self.numbers)

    def __reduce__(self) -> tuple[Any, ...]:
        return ColumnCache, (self.folder,)  # a worker maps the same files, instead of being sent their content


def open_cache(path: Path, separator: str = ",") -> ColumnCache:
    """Return the columns of a CSV file; they are converted if they were not, or if the file has changed since.

    Of several processes one converts and the others wait for it. A conversion that ends early leaves nothing that
    could be taken for a cache; the next one clears it away.

    Raises:
        DataError: The file cannot be read, or the cache not written.
    """
    with csv_errors(path, separator):
        state = path.stat()
    parent = project_path(CACHE_FOLDER)
    name = f"{path.name[:60]}-{_digest(str(path), separator)}"
    folder = parent / f"{name}-{_digest(str(FORMAT), str(state.st_size), str(state.st_mtime_ns))}"
    if folder.is_dir():
        return ColumnCache(folder)
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with FileLock(parent / f"{name}.lock"):  # of one that dies the next takes it over
            if not folder.is_dir():
                _build(path, separator, parent, name, folder)
        return ColumnCache(folder)
    except OSError as error:
        reason = f"{error.strerror or error}; with cache: false the table is read into memory"
        raise DataError(f"{shown_path(path)}: no cache in {shown_path(parent)}: {reason}") from error


def _digest(*texts: str) -> str:
    return blake2b("\0".join(texts).encode(), digest_size=6).hexdigest()


def _build(path: Path, separator: str, parent: Path, name: str, folder: Path) -> None:
    for old in parent.glob(f"{glob.escape(name)}-*"):  # of the file as it was, or of a conversion that was killed
        shutil.rmtree(old)
    log.info("%s: converted once, to %s", shown_path(path), shown_path(folder))
    unfinished = parent / f"{name}-unfinished"
    unfinished.mkdir()
    try:
        before = path.stat()
        convert(path, separator, unfinished)
        after = path.stat()
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise DataError(f"{shown_path(path)}: was changed while it was read")
        unfinished.rename(folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
