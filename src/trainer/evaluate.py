"""Running a model over a part of the data without training it: validation, test and prediction alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import nn

from src.data.loading.loader import Loader
from src.data.loading.share import SharedBatch
from src.data.parts.part import shown_rows
from src.trainer.faults.nonfinite import ADVICE
from src.trainer.faults.out_of_memory import Pieces
from src.trainer.meters import Meters
from src.trainer.task import StepOutput, Task, undisturbed
from src.utils.device import to_device
from src.utils.errors import ConfigError, DataError, NumericsError
from src.utils.seed import rng_state, set_rng_state
from src.utils.signals import Stopped

AmpDtype = Literal["bf16", "fp16"] | None


def autocast(amp_dtype: AmpDtype, device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    """Return a factory of contexts in which a model computes in `amp_dtype`; None changes nothing.

    Raises:
        ConfigError: fp16 on a CPU.
    """
    if amp_dtype is None:
        return nullcontext
    if amp_dtype == "fp16" and device.type == "cpu":
        raise ConfigError("trainer.amp_dtype: fp16 needs a GPU; use bf16 on a CPU, or leave it out")
    dtype = torch.bfloat16 if amp_dtype == "bf16" else torch.float16
    return lambda: torch.autocast(device.type, dtype)


@contextmanager
def back_if_stopped() -> Iterator[None]:
    """When the evaluations in the block are stopped, put the random streams back to where they were before."""
    streams = rng_state()
    try:
        yield
    except Stopped:
        set_rng_state(streams)
        raise


def evaluate(
    task: Task,
    model: nn.Module,
    loader: Loader,
    meters: Meters,
    *,
    forward: Callable[..., Any] | None = None,
    amp: Callable[[], AbstractContextManager[Any]] = nullcontext,
    stop: Callable[[], bool] = bool,
    epoch: int = 0,
    meet: Callable[[StepOutput, SharedBatch], StepOutput] | None = None,
    pieces: Pieces | None = None,
) -> dict[str, float]:
    """Return loss and metrics of `model` over all rows of `loader`, by name.

    Args:
        forward: Called instead of `model` (its compiled form, say).
        amp: Makes the context for the forward passes, see `autocast`.
        stop: Asked before every batch whether to leave at once; never by default.
        epoch: Of the training, for the task.
        meet: Makes what a share of a batch gave into what the whole batch gave, where processes share the rows.
        pieces: Knows in how many pieces batches fit into memory; None finds out.

    Raises:
        Stopped: `stop` said so.
        DataError: A batch does not fit the model or the loss; names its rows.
        NumericsError: The loss is not a finite number.
        ResourceError: A single row does not fit into memory.
    """
    pieces, device = pieces or Pieces(meters.device, task=task), meters.device

    def compute(batch: Any) -> StepOutput:
        with amp():
            return task.step(model if forward is None else forward, to_device(batch, device))

    meters.reset()
    with evaluating(model), undisturbed(task), torch.no_grad():
        task.begin(loader.part.name, epoch)
        for number, batch in enumerate(loader.batches()):
            if stop():
                raise Stopped
            try:
                if meet is None:
                    for output in pieces.outputs(loader.part.name, batch, compute):
                        meters.update(output)
                else:
                    meters.update(meet(compute(batch.batch), batch))
            except DataError as error:
                raise with_rows(error, loader, 0, number, pieces.progress.evaluation_pieces == 1) from error
    values = meters.compute()
    if not torch.isfinite(torch.tensor(values["loss"])):
        raise NumericsError(f"{loader.part.name}: the loss over this part is {values['loss']}; {ADVICE}")
    return values


def with_rows(error: DataError, loader: Loader, epoch: int, batch: int, is_whole: bool) -> DataError:
    """Return the same error with the rows it is about: of the batch with that number, or the one that is to blame.

    Args:
        error: Of model or loss.
        loader: Gave the batch.
        epoch: Of the batch.
        batch: Its number within the epoch.
        is_whole: Whether it was computed at once, so that a position in what was computed is one in the batch.
    """
    rows = (loader.rows(epoch, batch, 1) or [[]])[0]
    if is_whole and error.position is not None and error.position < len(rows):
        rows = [rows[error.position]]
    return DataError(f"{loader.part.name} {shown_rows(rows)}: {error}")


def predict(
    task: Task,
    model: nn.Module,
    loader: Loader,
    device: torch.device,
    amp: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Iterator[Any]:
    """Yield the model's outputs in the order of the rows, a batch at a time or less. Batches need not hold targets."""
    pieces = Pieces(device, task=task)

    def compute(batch: Any) -> Any:
        with amp():
            return task.predict(model, to_device(batch, device))

    with evaluating(model), undisturbed(task), torch.no_grad():
        task.begin(loader.part.name, 0)
        for batch in loader.batches():
            yield from pieces.outputs(loader.part.name, batch, compute)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode within the block, then each module back as it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
