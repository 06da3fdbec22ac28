"""Functions of `sklearn.metrics` as metrics of the whole split: what each wants to be given.

Axes: N rows, K classes, * any further.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from src.model.accumulate import predicted_classes
from src.utils.errors import DataError

_AVERAGED = {"f1_score", "fbeta_score", "jaccard_score", "precision_score", "recall_score"}
_LABELLED = {"brier_score_loss", "d2_log_loss_score", "log_loss", "roc_auc_score", "top_k_accuracy_score"}
WANTS_PROBABILITIES = _LABELLED | {"average_precision_score"}
WANTS_CLASS_IDS = _AVERAGED | {
    "accuracy_score",
    "balanced_accuracy_score",
    "cohen_kappa_score",
    "hamming_loss",
    "matthews_corrcoef",
    "zero_one_loss",
}


def sklearn_value(function: Callable[..., Any], outputs: Tensor, targets: Tensor) -> Any:
    """Call a function of `sklearn.metrics` with what it wants of logits and targets.

    Class ids for `f1_score` and its like, probabilities for `roc_auc_score` and its like (of the positive class when
    there are two), and the outputs as they are for every other, e.g. `r2_score`. With more than two classes,
    `average` is "macro" and `multi_class` "ovr" unless given.

    Args:
        function: The function, or a `functools.partial` of it.
        outputs: Logits [N, K, *]; [N] or [N, 1] for two classes; for regression [N, *].
        targets: Class ids [N, *]; several labels per row [N, K]; for regression [N, *].

    Raises:
        DataError: The function refuses these rows, e.g. the area under the curve of one class.
    """
    plain, given = (function.func, function.keywords) if isinstance(function, partial) else (function, {})
    name = plain.__name__
    scores, options = outputs, {}
    if name in WANTS_CLASS_IDS or name in WANTS_PROBABILITIES:
        outputs, targets = _one_row_each(outputs, targets)
        classes, num_classes = predicted_classes(outputs, targets)
        scores = classes if name in WANTS_CLASS_IDS else _probabilities(outputs, targets)
        options = _defaults(name, num_classes if targets.dim() == 1 else targets.shape[1], targets.dim() > 1)
    try:
        return plain(targets.numpy(), scores.numpy(), **(options | given))
    except ValueError as error:
        raise DataError(f"metric {name} over {len(targets)} rows: {error}") from error


def _one_row_each(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [rows, K] and class ids [rows] also of dense predictions; several labels per row [N, K] stay."""
    if outputs.shape == targets.shape:
        has_several_labels = outputs.dim() == 2 and outputs.shape[1] > 1
        return (outputs, targets) if has_several_labels else (outputs.flatten(), targets.flatten())
    if outputs.dim() > 2 and outputs.shape[:-1] != targets.shape:
        outputs = outputs.movedim(1, -1)
    return outputs.reshape(-1, outputs.shape[-1]), targets.flatten()


def _probabilities(outputs: Tensor, targets: Tensor) -> Tensor:
    if outputs.shape == targets.shape:
        return outputs.sigmoid()
    if outputs.shape[1] == 1:
        return outputs[:, 0].sigmoid()
    probabilities = torch.softmax(outputs.double(), dim=1)
    return probabilities[:, 1] if outputs.shape[1] == 2 else probabilities


def _defaults(name: str, num_classes: int, several_labels: bool) -> dict[str, Any]:
    if num_classes == 2 and not several_labels:
        return {"labels": [0, 1]} if name in _LABELLED - {"roc_auc_score"} else {}
    options: dict[str, Any] = {}
    if name in _AVERAGED:
        options["average"] = "macro"
    if name in _LABELLED and not several_labels:
        options["labels"] = list(range(num_classes))
    if name == "roc_auc_score" and not several_labels:
        options["multi_class"] = "ovr"
    return options
