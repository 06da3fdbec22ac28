"""What a checkpoint may hold: what can be loaded again without running code and without taking memory unasked."""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import Any
from zipfile import ZIP_STORED, ZipFile

import torch

from src.utils.errors import CheckpointError

PLAIN = (float, bool, bytes, type(None), torch.Size, torch.dtype, torch.device)
MAX_DEPTH = 100
MAX_INT_BITS = 2000
"""Longer ones are written in a form that torch does not read."""
FREE_BYTES = 1 << 20
"""A tensor may repeat its values up to this size; beyond it, it must hold all that it shows."""


def check_plain(value: Any, where: str = "", depth: int = 0) -> None:
    """Refuse what could not be loaded safely.

    Raises:
        CheckpointError: Names the key path and type of the first such value.
    """
    kind = type(value)
    if depth > MAX_DEPTH:
        raise CheckpointError(f"{where[:100]}...: is nested more than {MAX_DEPTH} deep, or holds itself")
    if kind in (dict, OrderedDict, Counter):
        for key, part in value.items():
            check_plain(key, f"{where} (key)", depth + 1)
            check_plain(part, f"{where}.{key}" if where else str(key), depth + 1)
        for key, part in getattr(value, "__dict__", {}).items():  # torch keeps versions of modules there
            check_plain(part, f"{where}.{key}", depth + 1)
    elif kind in (list, tuple, set):
        for index, part in enumerate(value):
            check_plain(part, f"{where}[{index}]", depth + 1)
    elif isinstance(value, torch.Tensor):
        _check_tensor(value, where)
    elif kind is str:
        if not value.isascii() and value != value.encode(errors="ignore").decode():
            raise CheckpointError(
                f"{where}: text that is no Unicode does not belong in a checkpoint, received {value!r}"
            )
    elif kind is int:
        if value.bit_length() > MAX_INT_BITS:
            raise CheckpointError(
                f"{where}: a whole number may have {MAX_INT_BITS} bits, received {value.bit_length()}"
            )
    elif kind is bytes and not value:  # torch writes them by a name that it refuses to read
        raise CheckpointError(f"{where}: bytes without content do not belong in a checkpoint; use None")
    elif kind not in PLAIN:
        raise CheckpointError(
            f"{where}: a {kind.__name__} does not belong in a checkpoint; tensors, numbers, text, lists and dicts do"
        )


def _check_tensor(tensor: torch.Tensor, where: str) -> None:
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        raise CheckpointError(
            f"{where}: a {type(tensor).__name__} does not belong in a checkpoint; turn it into a plain tensor"
        )
    if tensor.device.type == "meta":
        raise CheckpointError(f"{where}: a tensor without values (device meta) does not belong in a checkpoint")
    if tensor.layout == torch.strided:
        shown, held = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
        if shown > max(held, FREE_BYTES):
            raise CheckpointError(
                f"{where}: a tensor that shows {shown} bytes and holds {held}, for it repeats them, does not belong in "
                "a checkpoint; make it whole with .contiguous()"
            )


def check_unpacked(archive: ZipFile, where: str) -> None:
    """Refuse packed records, which could unpack to any size.

    Raises:
        CheckpointError: There is one.
    """
    if any(record.compress_type != ZIP_STORED for record in archive.infolist()):
        raise CheckpointError(f"{where}: holds packed records, which checkpoints never do")


def why_unreadable(error: Exception) -> str:
    """Return why torch did not read a file, without its advice to read it unsafely."""
    return next(iter(str(error).rpartition("WeightsUnpickler error: ")[2].splitlines()), type(error).__name__)
