"""When a step or an evaluation does not fit into memory: its batches are cut into pieces until it does."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from src.trainer.checkpoints.memory import Progress
from src.utils.errors import ResourceError, first_line
from src.utils.nested import parts_of, with_parts

Output = TypeVar("Output")
ADVICE = "lower loader.batch_size and raise trainer.accumulate_steps alike, which keeps the step as it was"
TOO_LARGE = "memory ran out with one row at a time ({}); use a smaller model, or trainer.amp_dtype=bf16"
log = logging.getLogger(__name__)


class MicroBatches:
    """Cuts the batches of a step into as many pieces as memory asks for, first into one.

    The number is doubled when memory runs out in forward or backward. The step is then made again from its start, with
    the mean over the same rows, so gradients are the same to rounding. What differs: dropout and the like draw other
    numbers, and batch norms see the rows of a piece. The number stays for the rest of the run, resumed or not.

    Args:
        progress: Keeps the number.
        model: Whose batch norms are told of; anything callable.
        task: Is asked whether it carries a state from batch to batch.
    """

    def __init__(self, progress: Progress, model: Callable[..., Any], task: Any = None) -> None:
        self.progress, self.task = progress, task
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
            found = pieces_of(batch, number, self._count(batch))
            pieces += [(index * number + part, piece) for part, piece in found]
        return pieces

    def halve(self, batches: Sequence[Any], error: BaseException) -> None:
        """Double the number of pieces.

        Raises:
            ResourceError: A piece is a single row already, or a batch cannot be cut.
        """
        reason = first_line(error)
        where, number = f"step {self.progress.step + 1}", self.progress.micro_batches
        refuse_state(self.task, where, error)
        num_rows = max(map(self._count, batches))
        if number >= num_rows:
            raise ResourceError(f"{where}: {TOO_LARGE.format(reason)}") from error
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


class Pieces:
    """Computes batches that are not trained on in as many pieces as memory asks for, first in one.

    Losses and metrics are those of the whole batches, to rounding: they count by rows.

    Args:
        device: Where it is computed.
        progress: Of the run, which remembers the number; None forgets it.
        task: Is asked whether it carries a state from batch to batch.
    """

    def __init__(self, device: torch.device, progress: Progress | None = None, task: Any = None) -> None:
        self.device, self.task, self.progress = device, task, progress or Progress()

    def outputs(self, name: str, batch: Any, compute: Callable[[Any], Output]) -> Iterator[Output]:
        """Yield what `compute` makes of `batch`, or of one piece of it after the other.

        Args:
            name: Of the part that the batch is of.
            batch: Is cut only if it must be.
            compute: Is called again, with smaller pieces, where memory ran out.

        Raises:
            ResourceError: A piece is a single row already, or the batch cannot be cut.
        """
        num_done = 0
        while True:
            number = self.progress.evaluation_pieces
            pieces = [(0, batch)] if number == 1 else pieces_of(batch, number, count_rows(batch))
            output: Output | None = None
            try:
                for place, piece in pieces:
                    if place >= num_done:
                        output = compute(piece)
                        num_done = place + 1
                        yield output
                return
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                self._halve(name, batch, error)
                pieces, output, piece = [], None, None  # they hold what ran out
            num_done *= 2
            free_cached_memory(self.device)

    def _halve(self, name: str, batch: Any, error: BaseException) -> None:
        refuse_state(self.task, name, error)
        number = self.progress.evaluation_pieces
        try:
            num_rows = count_rows(batch)
        except ValueError as why:
            raise ResourceError(
                f"{name}: memory ran out, and this batch cannot be cut: {why}; lower loader.{name}.batch_size"
            ) from error
        if number >= num_rows:
            raise ResourceError(f"{name}: {TOO_LARGE.format(first_line(error))}") from error
        self.progress.evaluation_pieces = 2 * number
        log.warning(
            "%s: memory ran out (%s); from now on a batch of %d rows is evaluated in %d pieces: the same values to "
            "rounding", name, first_line(error), num_rows, 2 * number,
        )  # fmt: skip


def refuse_state(task: Any, where: str, error: BaseException) -> None:
    """Do not cut batches of a task with a memory: it may hold a value for each row, and has seen some of them already.

    Raises:
        ResourceError: The task carries a state from batch to batch.
    """
    if hasattr(task, "state_dict"):
        raise ResourceError(
            f"{where}: memory ran out ({first_line(error)}), and {type(task).__name__} carries a state from batch to "
            "batch, so batches cannot be cut; lower loader.batch_size"
        ) from error


def pieces_of(batch: Any, number: int, num_rows: int) -> list[tuple[int, Any]]:
    """Return the pieces of a batch and their places among `number`; where there are fewer rows, some are missing."""
    bounds = [num_rows * part // number for part in range(number + 1)]
    cuts = enumerate(pairwise(bounds))
    return [(part, sliced(batch, slice(start, end), num_rows)) for part, (start, end) in cuts if start < end]


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
