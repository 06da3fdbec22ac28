"""Your own losses: a function of `(outputs, targets)` that returns one number to make small.

Add a function here and name it in the config, `loss: focal_loss` or, with arguments,
`loss: {type: focal_loss, args: {gamma: 1.5}}`. Losses of `torch.nn` need no line here: `loss: CrossEntropyLoss`.

Return the mean over the rows of the batch: the trainer weights batches by their rows, so the mean it reports over
an epoch is then that over all rows, also when the last batch is smaller.

Axes: N batch, K classes, * any further.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def mse(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error of outputs and targets of one and the same shape [N, *]."""
    check_same_shape("mse", outputs, targets)
    return F.mse_loss(outputs, targets)


def mae(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean absolute error of outputs and targets of one and the same shape [N, *]."""
    check_same_shape("mae", outputs, targets)
    return F.l1_loss(outputs, targets)


def focal_loss(outputs: Tensor, targets: Tensor, gamma: float = 2.0) -> Tensor:
    """Cross entropy that counts rows the model already gets right for less (Lin et al. 2017, eq. 4).

    `FL = -(1 - p)^gamma * log(p)`, where p is the probability given to the true class.

    Args:
        outputs: Logits [N, K, *].
        targets: Class ids [N, *].
        gamma: 0 is cross entropy; the larger, the less easy rows count.

    Returns:
        Mean over all rows.
    """
    log_p = -F.cross_entropy(outputs, targets, reduction="none")
    return -((1 - log_p.exp()) ** gamma * log_p).mean()


def check_same_shape(name: str, outputs: Tensor, targets: Tensor) -> None:
    """Refuse shapes that would broadcast: [N] against [N, 1] makes N x N differences and a loss that means nothing.

    Raises:
        ValueError: The shapes differ.
    """
    if outputs.shape != targets.shape:
        hint = ""
        if outputs.numel() == targets.numel():
            hint = f"; reshape the targets to {list(outputs.shape)}, e.g. with `targets.view_as(outputs)`"
        raise ValueError(
            f"{name}: outputs and targets must have the same shape, "
            f"received {list(outputs.shape)} and {list(targets.shape)}{hint}"
        )
