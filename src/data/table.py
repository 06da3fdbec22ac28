"""CSV files: `data: {type: table.Table, args: {file: data/50_Startups.csv, target: Profit}}`."""

from __future__ import annotations

from collections.abc import Sequence

from src.data.frame import FrameDataset, Missing, Scaling
from src.data.tables.column_cache import open_cache
from src.data.tables.csv_file import read_csv
from src.utils.paths import project_path, shown_path

CACHED_BYTES = 1 << 24
"""Files of so many bytes are converted once, unless `cache` says otherwise. Smaller ones pandas holds several times
over while they are read, which takes 300 MB at most."""


class Table(FrameDataset):
    """The rows of a CSV file with a header.

    Empty cells, and those that say NA, NaN, null and the like, are missing. See `FrameDataset` for what a sample is.

    Args:
        file: Path, relative to the project; may be packed (`.gz`, `.zip`, ...).
        target: Column or columns to predict; None if there is none.
        features: Columns to predict from; default all others.
        categorical: Columns of numbers that are categories nonetheless. Text columns always are.
        scale_inputs: scikit-learn preprocessing of the number columns, by name or as `{type, args}`.
        scale_target: scikit-learn preprocessing of the target, undone in predictions.
        missing: Rows with an empty cell: `error`; `drop` them; or `fill` the cell: a number with the median of the
            training rows, marked in a column of its own, a category with one of its own.
        classify: Whether the target is a class; default: if it is text.
        separator: What stands between two cells.
        ignore: Columns that are no features, though `features` does not say so: a name, or what the split goes by.
        cache: Convert the file once, in pieces, to arrays in `data/.cache` that are memory-mapped: it may be larger
            than memory. Default: files from 16 MiB on.
    """

    def __init__(
        self,
        file: str,
        target: str | Sequence[str] | None = None,
        features: Sequence[str] | None = None,
        categorical: Sequence[str] = (),
        scale_inputs: Scaling = None,
        scale_target: Scaling = None,
        missing: Missing = "error",
        classify: bool | None = None,
        separator: str = ",",
        ignore: Sequence[str] = (),
        cache: bool | None = None,
    ) -> None:
        path = project_path(file)
        is_cached = cache if cache is not None else path.is_file() and path.stat().st_size >= CACHED_BYTES
        super().__init__(
            open_cache(path, separator) if is_cached else read_csv(path, separator),
            shown_path(path),
            target,
            features,
            categorical,
            scale_inputs,
            scale_target,
            missing,
            classify,
            ignore,
        )
