"""Classes are numbered as the training data number them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from src.utils.errors import DataError


def renumbered(targets: Tensor, own: Sequence[str], names: Sequence[str], place: Callable[[int], str]) -> Tensor:
    """Return class ids as those of the training data.

    Args:
        targets: Class ids by `own`, int64 [rows].
        own: Names of the classes of these data.
        names: Names of the classes of the training data.
        place: Says what messages call the class of a row.

    Raises:
        DataError: A class is none of the training data's; names the first row of it.
    """
    unknown = [name for name in own if name not in names]
    if unknown:
        row = int((targets == own.index(unknown[0])).nonzero()[0])
        raise DataError(f"{place(row)}: {unknown[0]!r} is none of the classes of the training data: {', '.join(names)}")
    return torch.tensor([names.index(name) for name in own])[targets]
