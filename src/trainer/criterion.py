"""What a loss is to the trainer: how it is called, what it weighs in an average, and what its outputs mean."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from src.model.accumulate import num_rows
from src.model.criterion import second_argument
from src.utils.errors import ConfigError, DataError, first_line
from src.utils.own_line import own_line

Criterion = Callable[..., Tensor]
Criteria = Criterion | Mapping[str, tuple[Criterion, float]] | None
Weight = float | Tensor
Kind = Literal["classes", "binary", "values"]
ELEMENTWISE = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.BCELoss, nn.BCEWithLogitsLoss)
"""Losses that would broadcast outputs of another shape than the targets to a wrong number."""
OF_LABELS = (nn.CrossEntropyLoss, nn.NLLLoss)
OF_VALUES = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.PoissonNLLLoss, nn.GaussianNLLLoss, nn.BCELoss)


class Term:
    """A loss of one term: a function or a module.

    Args:
        criterion: Called as its signature has it, see `second_argument`.
    """

    def __init__(self, criterion: Criterion) -> None:
        self.criterion = criterion
        function = criterion.func if isinstance(criterion, functools.partial) else criterion
        self.name: str = getattr(function, "__name__", type(function).__name__)
        self.second = second_argument(criterion)
        self.is_elementwise = isinstance(criterion, ELEMENTWISE)
        self.is_of_labels = isinstance(criterion, OF_LABELS) or self.name in ("cross_entropy", "nll_loss")
        is_binary = isinstance(criterion, nn.BCEWithLogitsLoss) or self.name == "binary_cross_entropy_with_logits"
        self.kind: Kind | None = "classes" if self.is_of_labels else "binary" if is_binary else None
        """What its outputs mean; None where only the data can tell."""
        if isinstance(criterion, OF_VALUES) or self.name in ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"):
            self.kind = "values"
        self.is_sum = self.option("reduction", "mean") == "sum"
        self.is_by_rows = not (self.is_of_labels or self.is_sum)
        """Whether it is a mean over the rows of a batch: no sum, and no row counts more than another."""

    def option(self, name: str, default: Any) -> Any:
        """Return what the loss was made with."""
        if isinstance(self.criterion, functools.partial):
            return self.criterion.keywords.get(name, default)
        return getattr(self.criterion, name, default)

    @property
    def ignore_index(self) -> int:
        """The label that a loss of labels leaves out."""
        return int(self.option("ignore_index", -100))

    def call(self, outputs: Any, targets: Any, batch: Any) -> Tensor:
        """Return the scalar.

        Raises:
            DataError: It fails, or there are no targets; says why in the user's terms.
        """
        if targets is None and self.second == "targets":
            raise DataError(
                "a batch holds no targets, and the loss needs them: let the dataset give (input, target), or say what "
                "of a batch they are, as in `task: {inputs: 0, targets: 0}`"
            )
        try:
            if self.second is None:
                return self.criterion(outputs)
            return self.criterion(outputs, targets if self.second == "targets" else batch)
        except torch.OutOfMemoryError:
            raise
        except (IndexError, RuntimeError, ValueError, TypeError) as error:
            raise self._explained(outputs, targets, error) from error

    def has_no_label(self, targets: Any) -> bool:
        """Return whether the loss leaves out every row of a batch, so that its mean is nan."""
        return self.is_of_labels and are_labels(targets) and bool((targets == self.ignore_index).all())

    def _explained(self, outputs: Any, targets: Any, error: Exception) -> DataError:
        """Return in the user's terms why `criterion(outputs, targets)` failed."""
        if outputs is None:
            return DataError(f"loss {self.name} failed: the model returns None; has its `forward` a `return`?")
        if isinstance(targets, list | tuple) and targets and isinstance(targets[0], str):
            return DataError(
                f"loss {self.name} failed: targets are texts such as {targets[0]!r}; let the dataset give the number "
                "of each class, from 0"
            )
        reason = first_line(error) + own_line(error, ("src/trainer/criterion.py",))
        if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor):
            return DataError(
                f"loss {self.name} failed on {type(outputs).__name__} and {type(targets).__name__}: {reason}"
            )
        if self.is_of_labels and targets.is_floating_point() and targets.shape != outputs.shape:
            return DataError(
                f"loss {self.name} needs whole-number labels; targets are {targets.dtype} of shape "
                f"{list(targets.shape)}: let the dataset give int64, or use a loss of values such as MSELoss"
            )
        if self.is_of_labels and are_labels(targets) and outputs.dim() > 1:
            classes = outputs.shape[1]
            wrong = ((targets < 0) | (targets >= classes)) & (targets != self.ignore_index)
            if wrong.any():
                first = wrong.nonzero()[0]
                return DataError(
                    f"label {int(targets[tuple(first)])} is out of range: the model has {classes} outputs, labels are "
                    f"0 to {classes - 1}",
                    position=int(first[0]) if len(first) else 0,
                )
        return DataError(
            f"loss {self.name} failed on outputs {list(outputs.shape)} {outputs.dtype} and targets "
            f"{list(targets.shape)} {targets.dtype}: {reason}"
        )

    def weigh(self, outputs: Any, targets: Any) -> Weight:
        """Return how much a batch counts in an average: its rows, or the sum of their class weights; 0.0 for a sum."""
        if self.is_sum:
            return 0.0
        if self.is_of_labels and are_labels(targets):
            valid: Tensor = targets != self.ignore_index
            class_weights = self.option("weight", None)
            if class_weights is not None:
                weights: Tensor = class_weights[torch.where(valid, targets, 0)] * valid
                return weights.sum()
            return valid.sum(dtype=torch.float32 if valid.device.type == "mps" else torch.float64)
        return float(num_rows(targets if targets is not None else outputs))


def terms_of(criterion: Criteria) -> list[Term]:
    """Return the terms of a loss; none where the model returns its own."""
    if criterion is None:
        return []
    return [Term(each) for each, _ in criterion.values()] if isinstance(criterion, Mapping) else [Term(criterion)]


@dataclass(frozen=True, slots=True)
class TermWeights:
    """How much a loss of several terms counts in an average, where not every term counts by rows.

    The mean of such a loss is the weighted sum of the means of its terms; what else is in it counts by rows.
    """

    rows: Weight
    terms: Mapping[str, Weight]
    factors: Mapping[str, float]
    """What each term is multiplied by in the loss."""

    def __add__(self, other: TermWeights) -> TermWeights:
        terms = {name: weight + other.terms[name] for name, weight in self.terms.items()}
        return TermWeights(self.rows + other.rows, terms, self.factors)

    def tensor(self, device: torch.device) -> Tensor:
        """Return the weights of rows and terms [1 + K] to be added up; that of a sum is 0."""
        weights = [self.rows, *self.terms.values()]
        return torch.stack([torch.as_tensor(each, dtype=torch.float64, device=device) for each in weights])

    def of(self, tensor: Tensor) -> TermWeights:
        """Return the same with the weights in `tensor` [1 + K]."""
        rows, *others = tensor.unbind()
        named = zip(self.terms.items(), others, strict=True)
        terms = {name: own if type(own) is float and own == 0.0 else other for (name, own), other in named}
        return TermWeights(rows, terms, self.factors)

    def rest(self, loss: Tensor, scalars: Mapping[str, Tensor]) -> Tensor:
        """Return what is in a loss besides its terms: 0, unless a task has added something."""
        return loss.detach() - sum(factor * scalars[name].detach() for name, factor in self.factors.items())

    def scaled(self, loss: Tensor, scalars: Mapping[str, Tensor], total: TermWeights | None) -> Tensor:
        """Return what `loss`, of a batch that weighs this, adds to the loss of all batches, that weigh `total`.

        Raises:
            ConfigError: Nobody knows what all weigh.
        """
        if total is None:
            raise ConfigError(
                "trainer.accumulate_steps: terms of the loss count by other things than rows, so what a step weighs "
                "must be known before its first backward pass; a task with a `step` of its own does not tell: use 1"
            )
        by_rows = _portion(self.rows, total.rows)
        scaled = loss * by_rows
        for name, factor in self.factors.items():
            scaled = scaled + factor * (_portion(self.terms[name], total.terms[name]) - by_rows) * scalars[name]
        return scaled


def _portion(own: Weight, total: Weight) -> Weight:
    if isinstance(total, Tensor):
        return own / torch.where(total > 0, total, 1)
    return own / total if total else 1.0  # sums are just added


def are_labels(targets: Any) -> bool:
    """Return whether targets are whole numbers in a tensor."""
    return isinstance(targets, Tensor) and not targets.is_floating_point()
