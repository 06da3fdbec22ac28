"""Your own metrics: a function of `(outputs, targets)`, or an object with `update`, `compute` and `reset`.

Add a function here and name it in the config, `metrics: [accuracy, my_metric]`. What it returns for a batch must be
the mean over its rows, then the value over many batches is that of all rows at once. Where a mean of batches would be
wrong (a ratio, a rank, a median) mark it `@whole_split`: it is then called once, with all rows.
Functions of `sklearn.metrics` need no line here: `metrics: [roc_auc_score, f1_score]`.

Axes: N batch, K classes, * any further.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from src.model.accumulate import (
    Counts,
    Derived,
    KeptRows,
    MeanMetric,
    Metric,
    Residuals,
    State,
    class_counts,
    exact,
)
from src.model.failed_metric import raise_named
from src.model.figures import Figure, confusion_matrix, pr_curve
from src.model.loss import mae, mse
from src.model.merge import can_merge, merged
from src.model.object_metric import ObjectMetric
from src.model.perplexity import perplexity, perplexity_of, surprise
from src.model.sklearn_metric import sklearn_value

__all__ = [
    "accuracy", "confusion_matrix", "f1", "mae", "mse", "perplexity", "pr_curve", "precision", "r2", "recall",
    "top_k_accuracy",
]  # fmt: skip

Average = Literal["macro", "weighted", "none"]
Function = TypeVar("Function", bound=Callable[..., Any])

_whole_split: set[Callable[..., Any]] = set()


def whole_split(function: Function) -> Function:
    """Mark `f(outputs, targets)` to be called once with all rows of the split, as CPU tensors."""
    _whole_split.add(function)
    return function


def accuracy(outputs: Tensor, targets: Tensor, ignore_index: int | None = None) -> Tensor:
    """Share of class ids that the largest logit names.

    Args:
        outputs: Logits [N, K, *]; [N] or [N, 1] for the positive of two classes.
        targets: Class ids [N, *].
        ignore_index: Class id that doesn't count.
    """
    return _accuracy(class_counts(outputs, targets, ignore_index))


def precision(outputs: Tensor, targets: Tensor, average: Average = "macro", ignore_index: int | None = None) -> Tensor:
    """Of the rows predicted as a class, the share that is of it; 0 where none is predicted. Shapes as `accuracy`.

    Args:
        average: `macro` counts classes alike, `weighted` by their rows, `none` gives one value per class.
    """
    return _precision(class_counts(outputs, targets, ignore_index), average)


def recall(outputs: Tensor, targets: Tensor, average: Average = "macro", ignore_index: int | None = None) -> Tensor:
    """Of the rows of a class, the share that is predicted as it; 0 where there is none. Arguments as `precision`."""
    return _recall(class_counts(outputs, targets, ignore_index), average)


def f1(outputs: Tensor, targets: Tensor, average: Average = "macro", ignore_index: int | None = None) -> Tensor:
    """Harmonic mean of each class's precision and recall. Arguments as `precision`."""
    return _f1(class_counts(outputs, targets, ignore_index), average)


def top_k_accuracy(outputs: Tensor, targets: Tensor, k: int = 5) -> Tensor:
    """Share of class ids that are among the k largest logits.

    Args:
        outputs: Logits [N, K, *].
        targets: Class ids [N, *].
    """
    return exact((outputs.topk(k, dim=1).indices == targets.unsqueeze(1)).any(dim=1)).mean()


def r2(outputs: Tensor, targets: Tensor) -> Tensor:
    """Coefficient of determination: `1 - squared errors / squared distances from the mean`, mean over columns.

    Args:
        outputs: [N, *].
        targets: [N, *], the same shape; at least two rows.
    """
    residuals = Residuals()
    residuals.update(outputs, targets)
    kept = residuals.value()
    return torch.tensor(float("nan")) if kept is None else _r2(kept)


def _accuracy(counts: Tensor) -> Tensor:
    counts = exact(counts)
    return counts[0].sum() / counts[2].sum()


def _precision(counts: Tensor, average: Average) -> Tensor:
    return _averaged(exact(counts[0]) / counts[1].clamp(min=1), counts, average)


def _recall(counts: Tensor, average: Average) -> Tensor:
    return _averaged(exact(counts[0]) / counts[2].clamp(min=1), counts, average)


def _f1(counts: Tensor, average: Average) -> Tensor:
    return _averaged(exact(2 * counts[0]) / (counts[1] + counts[2]).clamp(min=1), counts, average)


def _averaged(per_class: Tensor, counts: Tensor, average: Average) -> Tensor:
    """Mean over the classes that were there or were predicted, as scikit-learn has it."""
    if average == "none":
        return per_class
    weights = counts[2] if average == "weighted" else (counts[1] + counts[2] > 0)
    return (per_class * weights).sum() / weights.sum()


def _r2(residuals: Tensor) -> Tensor:
    error, distance = residuals
    score = 1 - error / torch.where(distance > 0, distance, 1)
    return torch.where(distance > 0, score, (error == 0).to(score.dtype)).mean()


def _class_counts(ignore_index: int | None) -> Counts:
    return Counts(partial(class_counts, ignore_index=ignore_index))


def _counted(finish: Callable[..., Tensor]) -> Callable[..., Metric]:
    def build(ignore_index: int | None = None, average: Average = "macro") -> Metric:
        if average not in ("macro", "weighted", "none"):
            raise ValueError(f"average must be macro, weighted or none, received {average!r}")
        return Derived(_class_counts(ignore_index), partial(finish, average=average))

    return build


_EXACT: dict[Callable[..., Any], Callable[..., Metric]] = {
    accuracy: lambda ignore_index=None: Derived(_class_counts(ignore_index), _accuracy),
    precision: _counted(_precision),
    recall: _counted(_recall),
    f1: _counted(_f1),
    perplexity: lambda ignore_index=-100: Derived(Counts(partial(surprise, ignore_index=ignore_index)), perplexity_of),
    r2: lambda: Derived(Residuals(), _r2),
    confusion_matrix: lambda ignore_index=None: Figure(confusion_matrix, ignore_index=ignore_index),
    pr_curve: lambda: Figure(pr_curve),
}


class WholeSplit(Derived):
    """A function of all rows of a split at once: exact for areas under curves, ranks, medians.

    Keeps outputs and targets of every batch; several of these in one `MetricSet` keep them once.

    Args:
        function: Of `sklearn.metrics`, or `f(outputs, targets)` of CPU tensors; `functools.partial` of either.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        call = partial(sklearn_value, function) if _is_sklearn(function) else function
        super().__init__(KeptRows(), lambda rows: call(*rows))


def as_metric(metric: Any) -> Metric:
    """Make a metric of what a config may name: a function, a `functools.partial` of one, or an object.

    Raises:
        TypeError: It is none of these.
    """
    if isinstance(metric, (MeanMetric, Derived, ObjectMetric)):
        return metric
    is_class = isinstance(metric, type)
    if not is_class and all(callable(getattr(metric, name, None)) for name in ("update", "compute", "reset")):
        return ObjectMetric(metric)
    function = _unwrapped(metric)
    if function in _EXACT:
        return _EXACT[function](**(metric.keywords if isinstance(metric, partial) else {}))
    if function in _whole_split or _is_sklearn(metric):
        return WholeSplit(metric)
    if callable(metric) and not is_class:
        return MeanMetric(metric)
    raise TypeError(
        f"a metric is a function of (outputs, targets) or an object with update, compute and reset, received {metric!r}"
    )


def _unwrapped(function: Any) -> Any:
    return function.func if isinstance(function, partial) else function


def _is_sklearn(function: Any) -> bool:
    return str(getattr(_unwrapped(function), "__module__", "")).startswith("sklearn.")


class MetricSet:
    """Metrics by name, updated together; those that keep the same thing keep it once.

    Accuracy, precision, recall and F1 share one table of counts; all metrics of the whole split share its rows.

    Args:
        metrics: Name to anything that `as_metric` takes.
        class_names: What the values of a metric with one per class are called; default: 0, 1, ...
    """

    def __init__(self, metrics: Mapping[str, Any], class_names: Sequence[str] | None = None) -> None:
        self._class_names = dict(zip(map(str, range(len(class_names or ()))), class_names or (), strict=True))
        self._metrics = {name: as_metric(metric) for name, metric in metrics.items()}
        shared: dict[Any, Derived] = {}
        self._updated: dict[str, Metric] = {}
        for name, metric in self._metrics.items():
            if isinstance(metric, Derived):
                first = shared.setdefault(metric.source.key, metric)
                metric.source = first.source
                if first is not metric:
                    continue
            self._updated[name] = metric

    def update(self, outputs: Any, targets: Any) -> None:
        """Take in a batch, without waiting for the device; a metric that fails is named in a `DataError`."""
        for name, metric in self._updated.items():
            try:
                metric.update(outputs, targets)
            except Exception as error:
                raise_named(name, error)

    @property
    def needs_rows(self) -> bool:
        """Whether some metric cannot be put together from what several processes kept: one must see all rows."""
        return any(not can_merge(metric) for metric in self._updated.values())

    def update_own(self, outputs: Any, targets: Any) -> None:
        """Take in one process's share of a batch, where `merge` can put the shares together."""
        self._update_some(outputs, targets, mergeable=True)

    def update_others(self, outputs: Any, targets: Any) -> None:
        """Take in a share of a batch where `update_own` did not; one process does so for all."""
        self._update_some(outputs, targets, mergeable=False)

    def _update_some(self, outputs: Any, targets: Any, mergeable: bool) -> None:
        for name, metric in self._updated.items():
            try:
                if can_merge(metric) == mergeable:
                    metric.update(outputs, targets)
            except Exception as error:
                raise_named(name, error)

    def merge(self, states: Sequence[State]) -> None:
        """Become what one process would be that had seen all rows, given the states of all in the order of shares."""
        for name, metric in self._updated.items():
            if can_merge(metric):
                metric.load_state_dict(merged(metric, [state[name] for state in states]))

    def compute(self) -> dict[str, float]:
        """Name to value over all batches since the reset; `name/part` for a metric of several values."""
        values: dict[str, float] = {}
        for name, metric in self._metrics.items():
            try:
                value = metric.compute()
            except Exception as error:
                raise_named(name, error)
            if isinstance(value, dict) and value.keys() == self._class_names.keys():
                value = {self._class_names[part]: v for part, v in value.items()}
            values |= {f"{name}/{part}": v for part, v in value.items()} if isinstance(value, dict) else {name: value}
        return values

    def figures(self) -> dict[str, tuple[str, Tensor]]:
        """Of metrics that are looked at, by name: what kind they are, and their counts on the CPU."""
        return {name: metric.counted() for name, metric in self._metrics.items() if isinstance(metric, Figure)}

    def numbers(self) -> MetricSet:
        """The others, as a set of their own."""
        others = {name: metric for name, metric in self._metrics.items() if not isinstance(metric, Figure)}
        return MetricSet(others, list(self._class_names.values()))

    def reset(self) -> None:
        for metric in self._updated.values():
            metric.reset()

    def state_dict(self) -> State:
        return {name: metric.state_dict() for name, metric in self._updated.items()}

    def load_state_dict(self, state: State) -> None:
        for name, metric in self._updated.items():
            metric.load_state_dict(state[name])
