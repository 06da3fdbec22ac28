"""When a step does not fit into memory: its batches are cut into micro-batches until it does."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from src.trainer.memory import Progress
from src.utils.errors import ResourceError
from src.utils.nested import parts_of, with_parts

ADVICE = "lower loader.batch_size and raise trainer.accumulate_steps alike, which keeps the step as it was"
log = logging.getLogger(__name__)


class MicroBatches:
    """Cuts the batches of a step into as many pieces as memory asks for, first into one.

    The number is doubled when memory runs out in forward or backward. The step is then made again from its start, with
    the mean over the same rows, so gradients are the same to rounding. What differs: dropout and the like draw other
    numbers, and batch norms see the rows of a piece. The number stays for the rest of the run, resumed or not.

    Args:
        progress: Keeps the number.
        model: Whose batch norms are told of; anything callable.
    """

    def __init__(self, progress: Progress, model: Callable[..., Any]) -> None:
        self.progress = progress
        self.has_batch_norm = isinstance(model, nn.Module) and any(isinstance(m, _BatchNorm) for m in model.modules())
        self.num_taken = 0
        """Pieces of the step in the making whose outputs were taken already, and must not be again."""

    def cut(self, batches: Sequence[Any]) -> list[tuple[int, Any]]:
        """Return the pieces of a step and their places; halving each piece doubles its place."""
        number = self.progress.micro_batches
        if number == 1:
            return list(enumerate(batches))
        pieces = []
        for index, batch in enumerate(batches):
            num_rows = self._count(batch)
            for part in range(number):
                rows = slice(num_rows * part // number, num_rows * (part + 1) // number)
                if rows.start < rows.stop:
                    pieces.append((index * number + part, sliced(batch, rows, num_rows)))
        return pieces

    def halve(self, batches: Sequence[Any], error: BaseException) -> None:
        """Double the number of pieces.

        Raises:
            ResourceError: A piece is a single row already, a batch cannot be cut, or other ranks would not follow.
        """
        reason = (str(error).splitlines() or ["no more is given"])[0]
        where, number = f"step {self.progress.step + 1}", self.progress.micro_batches
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            raise ResourceError(f"{where}: memory ran out ({reason}); with several ranks, {ADVICE}") from error
        num_rows = max(map(self._count, batches))
        if number >= num_rows:
            raise ResourceError(
                f"{where}: memory ran out with one row at a time ({reason}); use a smaller model, or "
                "trainer.amp_dtype=bf16"
            ) from error
        self.progress.micro_batches, self.num_taken = 2 * number, 2 * self.num_taken
        log.warning(
            "%s: memory ran out (%s); from now on a batch of %d rows is computed in %d micro-batches. "
            "Steps are the same to rounding, but dropout draws other numbers%s",
            where, reason, num_rows, 2 * number,
            f", and batch norms see {-(-num_rows // (2 * number))} rows at a time" if self.has_batch_norm else "",
        )  # fmt: skip

    def refuse(self, error: BaseException) -> NoReturn:
        """Say that a task which makes whole updates itself cannot be helped.

        Raises:
            ResourceError: Always.
        """
        raise ResourceError(
            f"step {self.progress.step + 1}: memory ran out ({error}), and the task has an `update` of its own, which "
            "cannot be made in pieces; lower loader.batch_size"
        ) from error

    def _count(self, batch: Any) -> int:
        try:
            return count_rows(batch)
        except ValueError as error:
            raise ResourceError(
                f"step {self.progress.step + 1}: memory ran out, and this batch cannot be cut: {error}; {ADVICE}"
            ) from None


def count_rows(batch: Any) -> int:
    """Return the rows of a batch: the first size that all its tensors share.

    Raises:
        ValueError: It has none; says what it is.
    """
    sizes = sorted(set(_row_counts(batch)))
    if len(sizes) != 1:
        found = f"tensors of {', '.join(map(str, sizes))} rows" if sizes else "no tensor with rows"
        raise ValueError(f"it is a {type(batch).__name__} with {found}")
    return sizes[0]


def _row_counts(value: Any) -> Iterator[int]:
    if isinstance(value, Tensor):
        if value.dim():
            yield len(value)
    elif hasattr(value, "to"):
        raise ValueError(f"it is or holds a {type(value).__name__}")
    for part in () if isinstance(value, Tensor) else parts_of(value):
        yield from _row_counts(part)


def sliced(value: Any, rows: slice, num_rows: int) -> Any:
    """Return rows of a batch of `num_rows`: of its tensors, and of lists of plain values that are as long.

    Dicts, lists, (named) tuples and dataclasses keep their shape; scalars are in every piece.
    """
    if isinstance(value, Tensor):
        return value[rows] if value.dim() else value
    is_list = type(value) in (list, tuple)
    if is_list and len(value) == num_rows and not any(isinstance(part, Tensor) or parts_of(part) for part in value):
        return value[rows]
    return with_parts(value, lambda part: sliced(part, rows, num_rows))


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether a device has no more memory; the libraries of CUDA say so in words of their own."""
    return isinstance(error, torch.OutOfMemoryError) or "CUBLAS_STATUS_ALLOC_FAILED" in str(error)


def free_cached_memory(device: torch.device) -> None:
    """Give back what torch keeps for later, so that it can be had in other sizes."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()  # device sync
