"""Trying one batch before a run begins, so that what cannot work is said before anything is written."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from src.data.loader import Loader
from src.data.part import Part
from src.trainer.evaluate import evaluating
from src.trainer.nonfinite import explain_nonfinite, tensors_in
from src.trainer.task import StepOutput, Task
from src.utils.device import to_device
from src.utils.errors import DataError, KeelError, NumericsError
from src.utils.seed import forked_rng

NUM_ROWS = 2


def rehearse(task: Task, model: nn.Module, loader: Loader, device: torch.device) -> None:
    """Run the first rows of `loader` through model and loss, changing nothing.

    Raises:
        DataError: The data do not fit the model or the loss; names shapes.
        NumericsError: The very first loss is not finite.
    """
    if hasattr(task, "update") and type(task).step is Task.step and not loader.part.name.startswith("val"):
        return  # it trains in a way of its own, which is not tried here: that would change the weights
    batch = to_device(loader.peek(NUM_ROWS), device)
    with forked_rng(), evaluating(model), torch.no_grad():
        try:
            output = task.step(model, batch)
        except (KeelError, MemoryError):
            raise
        except Exception as error:
            raise DataError(f"{loader.part.name}: {_explain(model, batch, error)}") from error
    _check_labels(task, loader.part, output)
    if not torch.isfinite(output.loss):
        raise NumericsError(f"{loader.part.name}: {explain_nonfinite(output.loss.item(), 1, {}, batch)}")


def _check_labels(task: Task, part: Part, output: StepOutput) -> None:
    """Look at all labels on the host, where the dataset offers them: a GPU reports a wrong one as a crash."""
    criterion, targets = task.criterion, getattr(part.dataset, "targets", None)
    if targets is None or not isinstance(criterion, (nn.CrossEntropyLoss, nn.NLLLoss)):
        return
    labels, num_classes = part.targets(), output.outputs.shape[1]
    if labels.dim() == 1 and not labels.is_floating_point():
        wrong = ((labels < 0) | (labels >= num_classes)) & (labels != criterion.ignore_index)
        if wrong.any():
            first = int(wrong.nonzero()[0])
            raise DataError(
                f"{part.name} row {int(part.row_ids()[first])}: label {int(labels[first])} is out of range: the model "
                f"has {num_classes} outputs, so labels are 0 to {num_classes - 1} ({int(wrong.sum())} such rows)"
            )


def _explain(model: nn.Module, batch: Any, error: Exception) -> str:
    shapes = ", ".join(
        f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}" for tensor in tensors_in(batch)
    )
    name = type(model).__name__
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    wants = next((f"; its first layer takes {size} features" for size in _in_features(model)), "")
    return f"the model {name} fails on a batch of {shapes or type(batch).__name__}: {reason}{wants}"


def _in_features(model: nn.Module) -> list[int]:
    return [module.in_features for module in model.modules() if isinstance(module, nn.Linear)]


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Return (all, trainable) parameters of a model."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trains in sizes if trains)


def describe_length(part: Part) -> str:
    """Return the number of rows of a part as text."""
    try:
        return f"{len(part):,}"
    except TypeError:
        return "unknown"
