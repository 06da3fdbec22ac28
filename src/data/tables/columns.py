"""Columns of a table by name."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

from src.utils.errors import ConfigError, DataError


def check_columns(known: Sequence[str], wanted: Sequence[str], where: str) -> None:
    """Check that there are the `wanted` columns.

    Raises:
        DataError: There is none of a name; names the nearest.
    """
    for column in wanted:
        if column not in known:
            names = [str(each) for each in known]
            near = get_close_matches(str(column), names, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
            raise DataError(f"{where}: no column {column!r}; {hint}")


def feature_columns(
    known: Sequence[str], features: Sequence[str] | None, targets: Sequence[str], ignore: Sequence[str], where: str
) -> list[str]:
    """Return the columns to predict from: `features`, or all that are known but targets; none of `ignore`.

    Raises:
        ConfigError: A feature is the target.
        DataError: There is none of its name.
    """
    if features is None:
        return [c for c in known if c not in (*targets, *ignore)]
    for column in features:
        if column in targets:
            raise ConfigError(f"features: `{column}` is the target; leave it out of one of the two")
    check_columns(known, features, f"features: {where}")
    return [c for c in features if c not in ignore]
