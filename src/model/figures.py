"""What an evaluation shows as a picture instead of a number: `metrics: [accuracy, confusion_matrix, pr_curve]`.

Both count on the device, batch by batch, and are exact over all rows of the split.
Axes: N batch, K classes, T thresholds, * any further.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from src.model.accumulate import Counts, Derived, exact, predicted_classes

NUM_THRESHOLDS = 127


@torch.no_grad()
def confusion_matrix(outputs: Tensor, targets: Tensor, ignore_index: int | None = None) -> Tensor:
    """Rows of each class by the class predicted for them: whole numbers [K, K], true class down, predicted across.

    Args:
        outputs: Logits [N, K, *]; [N] or [N, 1] for the positive of two classes.
        targets: Class ids [N, *].
        ignore_index: Class id that doesn't count.
    """
    predicted, num_classes = predicted_classes(outputs, targets)
    predicted, actual = predicted.flatten(), targets.flatten().long()
    if ignore_index is not None:
        counted = actual != ignore_index
        predicted, actual = predicted[counted], actual[counted]
    return torch.bincount(actual * num_classes + predicted, minlength=num_classes**2).view(num_classes, num_classes)


@torch.no_grad()
def pr_curve(outputs: Tensor, targets: Tensor) -> Tensor:
    """Count rows that score at least each threshold 0, 1/126, ..., 1 for a class: whole numbers [K, 2, T].

    `[:, 0]` are rows of the class (true positives), `[:, 1]` the others (false positives). Precision at a threshold is
    `tp / (tp + fp)`, recall `tp / tp[0]`. Two classes with one logit give one curve, of the positive class.

    Args:
        outputs: Logits [N, K]; [N] or [N, 1] for the positive of two classes.
        targets: Class ids [N].
    """
    if outputs.numel() == targets.numel():
        scores, is_class = outputs.reshape(-1, 1).sigmoid(), targets.reshape(-1, 1) > 0
    else:
        scores = outputs.softmax(1)
        is_class = targets.unsqueeze(1) == torch.arange(scores.shape[1], device=scores.device)
    bins = (exact(scores) * (NUM_THRESHOLDS - 1)).long().clamp(0, NUM_THRESHOLDS - 1)
    K = scores.shape[1]
    cells = (torch.arange(K, device=bins.device) * 2 + (~is_class).long()) * NUM_THRESHOLDS + bins
    counts = torch.bincount(cells.flatten(), minlength=K * 2 * NUM_THRESHOLDS).view(K, 2, NUM_THRESHOLDS)
    return counts.flip(2).cumsum(2).flip(2)


class Figure(Derived):
    """A metric that is looked at: it has counts to draw, and no number to log.

    Args:
        count: One of the functions above.
        arguments: For it.
    """

    def __init__(self, count: Callable[..., Tensor], **arguments: Any) -> None:
        super().__init__(Counts(partial(count, **arguments)), lambda counts: counts)
        self.kind: str = getattr(count, "__name__", "")

    def compute(self) -> dict[str, float]:
        return {}

    def counted(self) -> tuple[str, Tensor]:
        """The name of the function, and what it counted since the reset, on the CPU."""
        return self.kind, self.source.value().cpu()  # device sync
