"""Data that live on the device: rows are picked and transformed there, and nothing is copied in a step."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import TensorDataset
from torch.utils.weak import WeakTensorKeyDictionary

from src.data.parts.part import Part
from src.utils.errors import ConfigError, DataError, first_line
from src.utils.nested import with_parts

FREE_SHARE = 0.25
"""Of the device's free memory, data may take so much unasked: model, moments and activations come later."""
TRIED_ROWS = 4
_SENT: dict[str, Any] = {}
log = logging.getLogger(__name__)


class ResidentPart:
    """A part whose tensors, and those of its transforms, are on a device. It reads the same rows.

    Args:
        part: Its dataset must offer `read_batch` (or be a `TensorDataset`) and its transforms take whole batches.
        device: Where to.

    Raises:
        DataError: Reading on the device fails, or does not give what reading on the host gives; says which.
    """

    def __init__(self, part: Part, device: torch.device) -> None:
        self.device = device
        indices = None if part.indices is None else part.indices.to(device)
        transforms = [_moved(transform, device) for transform in part.transforms]
        self.part = Part(part.name, _moved(part.dataset, device), indices, transforms, part.seed)
        rows = torch.arange(min(TRIED_ROWS, len(part)))
        expected = part.read(0, rows)
        try:
            torch.testing.assert_close(_on_host(self.read(0, rows)), expected, rtol=1e-3, atol=1e-3)
        except (AssertionError, RuntimeError, TypeError, DataError) as error:
            raise DataError(f"{part.name}: {first_line(error)}") from error

    def read(self, epoch: int, rows: Tensor) -> Any:
        """Return the batch of `rows`, which are on the host, as `Part.read` does."""
        return self.part.read(epoch, rows.to(self.device, non_blocking=True))


def choose_resident(
    part: Part, device: torch.device, wanted: bool | None, num_workers: int, is_collated: bool
) -> ResidentPart | None:
    """Return the part on the device if it can be there and is `wanted`, or fits well; the log says what and why.

    Raises:
        ConfigError: It is wanted and cannot be.
    """
    reason = None if wanted is False else _obstacle(part, num_workers, is_collated)
    needed, free = _num_bytes(part), _free_bytes(device)
    if wanted is None and reason is None and needed > FREE_SHARE * free:
        reason = f"its {needed / 2**20:,.0f} MiB are more than a quarter of the {free / 2**20:,.0f} MiB that are free"
    if wanted is not False and reason is None:
        try:
            resident = ResidentPart(part, device)
        except (DataError, torch.OutOfMemoryError) as error:
            reason = f"reading there does not work: {error}"
        else:
            log.info("%s is read on %s, %.0f MiB: it fits (loader.keep_on_device)", part.name, device, needed / 2**20)
            return resident
    if wanted:
        raise ConfigError(f"loader.keep_on_device: {part.name} cannot be kept on {device}: {reason}")
    log.info("%s is read on the host: %s", part.name, reason or "loader.keep_on_device is false")
    return None


def _obstacle(part: Part, num_workers: int, is_collated: bool) -> str | None:
    """Return what keeps the rows of `part` from being read on the device; None if nothing does."""
    if part.is_iterable:
        return "the dataset is iterable"
    if num_workers:
        return "loader.num_workers read it"
    if is_collated:
        return "loader.collate_fn makes its batches of single rows"
    if not part.reads_batches:
        return "its rows are read or transformed one by one"
    if getattr(part.dataset, "is_on_disk", False):
        return "its rows are read from memory-mapped files"
    return None if _num_bytes(part) else "the dataset holds no tensors"


def _free_bytes(device: torch.device) -> float:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else math.inf


def _num_bytes(part: Part) -> int:
    return sum(tensor.nbytes for tensor in _tensors(part.dataset))


def _tensors(dataset: Any) -> Iterator[Tensor]:
    values = dataset.tensors if type(dataset) is TensorDataset else vars(dataset).values()
    return (value for value in values if isinstance(value, Tensor))


def _moved(thing: Any, device: torch.device) -> Any:
    """Return a copy of a dataset or transform that shares everything with it but the tensors it holds."""
    if type(thing) is TensorDataset:
        return TensorDataset(*(_sent(tensor, device) for tensor in thing.tensors))
    if not hasattr(thing, "__dict__") or not any(isinstance(value, Tensor) for value in vars(thing).values()):
        return thing
    moved = copy.copy(thing)
    for name, value in vars(thing).items():
        if isinstance(value, Tensor):
            setattr(moved, name, _sent(value, device))
    return moved


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on the device; what several parts have in common is there once."""
    sent = _SENT.setdefault(str(device), WeakTensorKeyDictionary())
    if tensor not in sent:
        sent[tensor] = tensor.to(device)
    found: Tensor = sent[tensor]
    return found


def _on_host(batch: Any) -> Any:
    return batch.cpu() if isinstance(batch, Tensor) else with_parts(batch, _on_host)  # device sync
