"""Inputs without labels, for a model that is already trained: tables and arrays; images are in `images.py`.

Nothing of the training data is needed: what was learned from them comes from the checkpoint.
"""

from __future__ import annotations

import csv
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import pandas as pd
import torch
from torch import Tensor

from src.data.arrays import Arrays
from src.data.frame import FrameDataset, Missing
from src.data.packed import DAMAGED, check_unpacked
from src.data.tables.columns import check_columns
from src.utils.errors import DataError
from src.utils.paths import shown_path


def table_chunks(
    source: Path | TextIO, learned: Mapping[str, Any], separator: str = ",", chunk_rows: int = 10_000
) -> Iterator[FrameDataset]:
    """Yield the rows of a CSV file, so many at a time, prepared as the training data were.

    Columns may stand in any order; those that the model was not trained on, the target among them, are passed over.

    Args:
        source: File with a header, or an open stream of one.
        learned: What the training dataset's `state_dict` returned.
        separator: What stands between two cells.
        chunk_rows: Rows in memory at once.

    Raises:
        DataError: A column is missing, or a cell is not what its column needs; names row and column.
    """
    where = shown_path(source) if isinstance(source, Path) else "standard input"
    columns = [*learned["numbers"], *learned["categories"]]
    as_text: Any = dict.fromkeys(learned["categories"], str)
    try:
        if isinstance(source, Path):
            check_unpacked(source)
        reader = pd.read_csv(
            source, sep=separator, index_col=False, skipinitialspace=True, chunksize=chunk_rows, dtype=as_text
        )
        for frame in reader:
            for column, names in learned["categories"].items():
                if column in frame:
                    frame[column] = _spelt_as_in_training(frame[column], names)
            check_columns(list(frame.columns), columns, where)
            missing: Missing = "fill" if learned["filler"] else "error"
            chunk = FrameDataset(
                frame, where, features=columns, categorical=list(learned["categories"]), missing=missing
            )
            chunk.load_state_dict(learned)
            yield chunk
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, *DAMAGED) as error:
        raise DataError(f"{where}: cannot be read as CSV: {str(error).strip()}") from error


def _spelt_as_in_training(column: pd.Series[Any], names: list[str]) -> pd.Series[Any]:
    """Return categories as the checkpoint spells them: where all are numbers, `2`, `02` and `2.0` are the same one."""
    try:
        by_value = {float(name): name for name in names}
    except ValueError:
        return column
    numbers = pd.to_numeric(column, errors="coerce")
    return numbers.map(by_value).where(numbers.isin(list(by_value)), column)


def input_arrays(file: str, dtype: str | None, is_image: bool) -> Arrays:
    """Return the rows of a NumPy file as a model takes them.

    Args:
        file: `.npy` file, `file.npz` with one array, or `file.npz:name`.
        dtype: Type to convert to. Default: float32 for all floats, and for the bytes of images, which become 0..1.
        is_image: Whether rows are images.
    """
    arrays = Arrays(file, dtype=dtype)
    if dtype is None and is_image and arrays.inputs.dtype == torch.uint8:
        return _ImageBytes(file)
    return Arrays(file, dtype="float32") if dtype is None and arrays.inputs.is_floating_point() else arrays


class _ImageBytes(Arrays):
    def _converted(self, inputs: Tensor) -> Tensor:
        return inputs.float() / 255


@contextmanager
def standard_input(column: str | None) -> Iterator[Path]:
    """Make what comes through standard input a file for as long as it is read.

    It is CSV, or separated by tabs, if its first line names the column of the texts; else each line is a text.

    Args:
        column: Of the texts, where the training data have one.

    Raises:
        DataError: It cannot be read; the message speaks of standard input.
    """
    content = sys.stdin.buffer.read()
    head = content.partition(b"\n")[0].decode("utf-8-sig", errors="replace").strip()
    cells = {ending: next(csv.reader([head], delimiter=sign), []) for ending, sign in ((".csv", ","), (".tsv", "\t"))}
    ending = next((ending for ending, names in cells.items() if column in [name.strip() for name in names]), ".txt")
    with tempfile.TemporaryDirectory(prefix="keel-input-") as folder:
        path = Path(folder) / f"input{ending}"
        path.write_bytes(content)
        try:
            yield path
        except DataError as error:
            raise DataError(str(error).replace(shown_path(path), "standard input")) from error
