"""What is kept from batch to batch so that a metric of many batches is that of all rows at once.

Nothing here waits for the device in `update`: sums stay where the outputs are; `# device sync` marks where they are
read.
Axes: N batch, K classes, D values per row, * any further.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from src.model.loss import check_same_shape
from src.utils.alike import check_tensor
from src.utils.errors import CheckpointError
from src.utils.nested import parts_of

State = dict[str, Any]
"""Tensors and plain data only."""


@runtime_checkable
class Metric(Protocol):
    """A number, or several by name, over all rows since the last reset."""

    def update(self, outputs: Any, targets: Any) -> None: ...
    def compute(self) -> float | dict[str, float]: ...
    def reset(self) -> None: ...
    def state_dict(self) -> State: ...
    def load_state_dict(self, state: State) -> None: ...


class Accumulator(Protocol):
    """What several metrics may share. Those with equal keys keep the same thing; `value` is what was kept."""

    @property
    def key(self) -> Hashable: ...
    def update(self, outputs: Any, targets: Any) -> None: ...
    def value(self) -> Any: ...
    def reset(self) -> None: ...
    def state_dict(self) -> State: ...
    def load_state_dict(self, state: State) -> None: ...


def num_rows(batch: Any) -> int:
    """Rows of a batch: the length of the first tensor in it that has one, or of a list of words or numbers."""
    if isinstance(batch, Tensor):
        return batch.shape[0] if batch.dim() else 1
    if isinstance(batch, (tuple, list)) and batch and isinstance(batch[0], (int, float, str)):
        return len(batch)
    parts = parts_of(batch)
    if parts:
        return num_rows(next((part for part in parts if _has_rows(part)), None))
    return len(batch) if hasattr(batch, "__len__") else 1


def _has_rows(part: Any) -> bool:
    return part.dim() > 0 if isinstance(part, Tensor) else not isinstance(part, (int, float, str, type(None)))


def exact(tensor: Tensor) -> Tensor:
    """The tensor in the type that sums are kept in: float64, or float32 on MPS, which has no other."""
    return tensor.detach().to(torch.float32 if tensor.device.type == "mps" else torch.float64)


def to_plain(value: Any) -> float | dict[str, float]:
    """One float, or one per name or index."""
    if isinstance(value, Mapping):
        return {str(name): float(item) for name, item in value.items()}  # device sync
    if getattr(value, "ndim", 0):
        return {str(index): float(item) for index, item in enumerate(value.tolist())}  # device sync
    return float(value)  # device sync


class MeanMetric:
    """Mean over rows of a function that gives the mean over the rows of a batch.

    Args:
        function: `f(outputs, targets)` that returns a number, one number per row [N], or several numbers by name.
    """

    def __init__(self, function: Callable[[Any, Any], Any]) -> None:
        self.function = function
        self.reset()

    def reset(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._rows = 0

    @torch.no_grad()
    def update(self, outputs: Any, targets: Any) -> None:
        values = self.function(outputs, targets)
        rows = num_rows(targets if targets is not None else outputs)
        for name, value in (values if isinstance(values, Mapping) else {"": values}).items():
            mean = exact(torch.as_tensor(value)).mean()
            total = self._sums.get(name)
            self._sums[name] = mean * rows if total is None else total.to(mean.device) + mean * rows
        self._rows += rows

    def compute(self) -> float | dict[str, float]:
        if self._rows == 0:
            return float("nan")
        means = to_plain({name: total / self._rows for name, total in self._sums.items()})
        assert isinstance(means, dict)
        return means.get("", means)

    def state_dict(self) -> State:
        return {"sums": dict(self._sums), "rows": self._rows}

    def load_state_dict(self, state: State) -> None:
        self._sums, self._rows = {name: check_tensor(each) for name, each in state["sums"].items()}, state["rows"]


class Derived:
    """A metric that is worked out at the end from what its accumulator kept."""

    def __init__(self, source: Accumulator, finish: Callable[[Any], Any]) -> None:
        self.source = source
        self._finish = finish

    def update(self, outputs: Any, targets: Any) -> None:
        self.source.update(outputs, targets)

    def compute(self) -> float | dict[str, float]:
        kept = self.source.value()
        return float("nan") if kept is None else to_plain(self._finish(kept))

    def reset(self) -> None:
        self.source.reset()

    def state_dict(self) -> State:
        return self.source.state_dict()

    def load_state_dict(self, state: State) -> None:
        self.source.load_state_dict(state)


def predicted_classes(outputs: Tensor, targets: Tensor) -> tuple[Tensor, int]:
    """Class ids in the shape of `targets`, and the number of classes.

    Args:
        outputs: Logits, [N, K, *] or [N, *, K]; or of the positive class alone, [N, *] or [N, 1].
        targets: Class ids [N, *].

    Raises:
        ValueError: The shapes don't fit together.
    """
    if outputs.shape == targets.shape:
        return (outputs > 0).long(), 2
    for axis in (1, -1):
        if outputs.dim() == targets.dim() + 1 and outputs.shape[:axis] + outputs.shape[axis:][1:] == targets.shape:
            if outputs.shape[axis] == 1:
                return (outputs.squeeze(axis) > 0).long(), 2
            return outputs.argmax(axis), outputs.shape[axis]
    raise ValueError(
        "classification metric: needs logits [N, K] and class ids [N], or two shapes that are equal; "
        f"received outputs {list(outputs.shape)} and targets {list(targets.shape)}"
    )


@torch.no_grad()
def class_counts(outputs: Tensor, targets: Tensor, ignore_index: int | None = None) -> Tensor:
    """Rows of each class that are rightly predicted, predicted, and there: [3, K], whole numbers.

    It is what accuracy, precision, recall and F1 need of a confusion matrix, in 3 * K instead of K * K numbers.
    """
    predicted, num_classes = predicted_classes(outputs, targets)
    predicted, actual = predicted.flatten(), targets.flatten().long()
    counted = torch.ones_like(actual)
    if ignore_index is not None:
        counted = (actual != ignore_index).long()
        actual = actual * counted
    if actual.device.type == "cpu" and actual.numel() and not 0 <= int(actual.min()) <= int(actual.max()) < num_classes:
        wrong = actual[(actual < 0) | (actual >= num_classes)][0]
        raise ValueError(f"classification metric: target class {int(wrong)} is not in 0..{num_classes - 1}")
    counts = torch.zeros(3, num_classes, dtype=torch.int64, device=actual.device)
    counts[0].index_add_(0, actual, counted * (predicted == actual))
    counts[1].index_add_(0, predicted, counted)
    counts[2].index_add_(0, actual, counted)
    return counts


class Counts:
    """Keeps the sum of what a function counts in each batch.

    Args:
        count: `f(outputs, targets)`, whole numbers in a tensor whose shape stays; or a `functools.partial` of one.
    """

    def __init__(self, count: Callable[..., Tensor]) -> None:
        self._count = count
        self.key: Hashable = (getattr(count, "func", count), *getattr(count, "keywords", {}).items())
        self.reset()

    def reset(self) -> None:
        self._counts: Tensor | None = None

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        counts = self._count(outputs, targets)
        if self._counts is not None and self._counts.shape != counts.shape:
            raise CheckpointError(f"metrics: counted {list(self._counts.shape)} so far, {list(counts.shape)} now")
        self._counts = counts if self._counts is None else self._counts.to(counts.device) + counts

    def value(self) -> Tensor | None:
        return self._counts

    def state_dict(self) -> State:
        return {"counts": self._counts}

    def load_state_dict(self, state: State) -> None:
        self._counts = None if state["counts"] is None else check_tensor(state["counts"])


class Residuals:
    """Keeps, per column, squared errors and squared distances of the targets from their mean: [2, D].

    Means are merged batch by batch (Chan et al. 1983, eq. 2.1), which loses no digits when the mean is large.
    """

    key: Hashable = "residuals"

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._rows = 0
        self._sums: Tensor | None = None  # [3, D]: squared errors, squared distances, mean

    @torch.no_grad()
    def update(self, outputs: Tensor, targets: Tensor) -> None:
        check_same_shape("r2", outputs, targets)
        rows = targets.shape[0]
        y = exact(targets).reshape(rows, -1)
        error = (exact(outputs).reshape(rows, -1) - y).square().sum(0)
        mean = y.mean(0)
        distance = (y - mean).square().sum(0)
        if self._sums is not None:
            old_error, old_distance, old_mean = self._sums.to(y.device)
            share = rows / (self._rows + rows)
            delta = mean - old_mean
            error = error + old_error
            distance = distance + old_distance + delta.square() * (self._rows * share)
            mean = old_mean + delta * share
        self._sums = torch.stack([error, distance, mean])
        self._rows += rows

    def value(self) -> Tensor | None:
        return self._sums[:2] if self._sums is not None and self._rows > 1 else None

    def state_dict(self) -> State:
        return {"rows": self._rows, "sums": self._sums}

    def load_state_dict(self, state: State) -> None:
        self._rows, self._sums = state["rows"], None if state["sums"] is None else check_tensor(state["sums"])


class KeptRows:
    """Keeps outputs and targets of every batch, on their device, for what needs all rows at once."""

    key: Hashable = "kept rows"

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._outputs: list[Tensor] = []
        self._targets: list[Tensor] = []

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        for name, tensor in (("outputs", outputs), ("targets", targets)):
            if not isinstance(tensor, Tensor):
                raise TypeError(
                    f"a metric of the whole split needs {name} as one tensor, received {type(tensor).__name__}"
                )
        self._outputs.append(outputs.detach().clone())  # a compiled model may write its next outputs over these
        self._targets.append(targets.detach().clone())

    def value(self) -> tuple[Tensor, Tensor] | None:
        """Outputs and targets of all rows, on the CPU."""
        if not self._outputs:
            return None
        return _join(self._outputs), _join(self._targets)

    def state_dict(self) -> State:
        return {"outputs": list(self._outputs), "targets": list(self._targets)}

    def load_state_dict(self, state: State) -> None:
        self._outputs, self._targets = [*map(check_tensor, state["outputs"])], [*map(check_tensor, state["targets"])]


def _join(batches: list[Tensor]) -> Tensor:
    rows = torch.cat([batch.to(batches[-1].device) for batch in batches]).cpu()  # device sync
    return rows.float() if rows.dtype in (torch.float16, torch.bfloat16) else rows
