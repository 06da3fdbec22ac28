"""Whether what a task, a loss and metrics give for the first rows, and what a task carries, serves training."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from src.model.metric import MetricSet
from src.trainer.criterion import terms_of
from src.trainer.task import StepOutput, Task
from src.utils.command import shortage
from src.utils.errors import ConfigError, DataError, KeelError, first_line
from src.utils.own_line import own_line
from src.utils.seed import forked_rng

log = logging.getLogger(__name__)
_OF_CODE = (AttributeError, ImportError, NameError, TypeError)
"""Errors that other rows would not mend."""
_THIS_FILE = "src/trainer/rehearsal/first_output.py"


def try_memory(task: Task) -> None:
    """Ask a task for what it carries, and give it back, as is done before its first `begin`, too.

    Raises:
        ConfigError: It fails; names its line.
    """
    if not hasattr(task, "state_dict"):
        return
    called = "state_dict"
    try:
        state = copy.deepcopy(task.state_dict())
        called = "load_state_dict"
        task.load_state_dict(state)  # type: ignore[attr-defined]
    except Exception as error:
        if isinstance(error, KeelError) or shortage(error):
            raise
        reason = f"{type(error).__name__}: {first_line(error)}{own_line(error, (_THIS_FILE,))}"
        raise ConfigError(
            f"task: {type(task).__name__}.{called} fails: {reason}; it is called before the first `begin`, too: make "
            "what the task carries in `__init__`, or an attribute of the class"
        ) from error


def check_output(task: Task, part: str, output: object) -> None:
    """Refuse what is not the output of a step, and a loss that is not one number.

    Raises:
        DataError: Names what it is, and what to change.
    """
    if not isinstance(output, StepOutput):
        raise DataError(
            f"{part}: `step` of {type(task).__name__} returns a {type(output).__name__}; "
            "StepOutput(loss, outputs, targets, weight) of src.trainer.task is needed"
        )
    loss = output.loss
    terms = terms_of(task.criterion) if type(task).step is Task.step else []
    which = f"loss {terms[0].name}" if len(terms) == 1 else "the loss"
    if not isinstance(loss, Tensor):
        advice = "; leave out `.item()`, it takes the gradient away" if isinstance(loss, float) else ""
        raise DataError(f"{part}: {which} is a {type(loss).__name__}, a tensor of one number is needed{advice}")
    if loss.numel() != 1:
        raise DataError(f"{part}: {which} has shape {list(loss.shape)}, one number is needed; return its `.mean()`")


def warn_of_wrong_scale(task: Task, outputs: object) -> None:
    """Warn of outputs that a loss of labels takes for what they are not: it would train, and badly."""
    if not isinstance(outputs, Tensor) or outputs.dim() < 2 or outputs.shape[1] < 2:
        return
    for term in terms_of(task.criterion):
        if not term.is_of_labels or term.second != "targets":
            continue
        is_of_logs = term.name in ("NLLLoss", "nll_loss")
        if is_of_logs and bool((outputs > 0).any()):
            log.warning(
                "loss   %s wants logarithms, and the model gives numbers above 0: use CrossEntropyLoss", term.name
            )
        sums = outputs.sum(1)
        if not is_of_logs and bool((outputs >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-3):
            log.warning(
                "loss   %s makes probabilities itself, and the model gives some: leave its softmax out", term.name
            )


def try_metrics(metrics: MetricSet, output: StepOutput, more: Callable[[], StepOutput]) -> None:
    """Take in a batch and forget it again.

    Args:
        metrics: Of the run, before it begins.
        output: Of a few rows.
        more: Makes another of more rows, if a metric fails on so few.

    Raises:
        DataError: A metric fails; names it.
    """
    with forked_rng(), warnings.catch_warnings(action="ignore"):  # of a few rows of one class, say
        try:
            try:
                metrics.update(output.outputs, output.targets)
            except DataError:
                metrics.reset()
                several = more()
                metrics.update(several.outputs, several.targets)
            _compute(metrics)
        finally:
            metrics.reset()


def _compute(metrics: MetricSet) -> None:
    """Let pass what may be due to the rows: there is one class among them, say."""
    try:
        metrics.compute()
    except DataError as error:
        if isinstance(error.__cause__, _OF_CODE):
            raise
