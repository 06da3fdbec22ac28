"""Batches on their way to a GPU while it computes with the ones before."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from src.utils.nested import parts_of, with_parts


class SideStream:
    """Copies batches to a device beside what it computes.

    Whoever is given a batch there may use it as any other: what computes waits for the copy, not the host, and the
    batch's memory is not taken again before the work is done that uses it.

    Args:
        device: Where to; on the CPU nothing is copied, and nobody waits.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._backend: Any = getattr(torch, device.type)
        self.stream = self._backend.Stream(device)

    def send(self, batch: Any) -> Any:
        """Return `batch` on the device, where it is about to arrive."""
        with self._backend.stream(self.stream):
            return self._sent(batch)

    def receive(self, batch: Any) -> Any:
        """Return a batch that was sent, for use by what is computed from now on. It waits for all that was sent."""
        computing = self._backend.current_stream(self.device)
        computing.wait_stream(self.stream)
        _use(batch, computing)
        return batch

    def _sent(self, value: Any) -> Any:
        """Return what can be sent on the device; the step moves the rest: what does not let streams be recorded."""
        if isinstance(value, Tensor):
            return value.to(self.device, non_blocking=True) if value.layout is torch.strided else value
        if hasattr(value, "to"):
            return value.to(self.device) if hasattr(value, "record_stream") else value
        return with_parts(value, self._sent)


def _use(value: Any, stream: Any) -> None:
    """Let `stream` finish what it does with `value` before its memory is taken again."""
    if isinstance(value, Tensor):
        if value.is_cuda:
            value.record_stream(stream)
    elif hasattr(value, "record_stream"):
        value.record_stream(stream)
    else:
        for part in parts_of(value):
            _use(part, stream)


def sent_ahead(batches: Iterator[Any], device: torch.device) -> Iterator[Any]:
    """Yield `batches` on `device`. Each is read and sent before the one ahead of it is used.

    What goes wrong in reading one is raised when its turn comes.
    """
    side = SideStream(device)
    for first in islice(batches, 1):
        coming = side.send(first)
        while True:
            ready = side.receive(coming)
            try:
                coming = side.send(next(batches))
            except StopIteration:
                yield ready
                return
            except Exception:
                yield ready
                raise
            yield ready


def pinned(value: Any) -> Any:
    """Return a batch in page-locked memory, from which copies to a GPU do not keep the host waiting."""
    return value.pin_memory() if hasattr(value, "pin_memory") else with_parts(value, pinned)
