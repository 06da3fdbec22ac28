"""How much a model is surprised by what comes next. Axes: N batch, K classes, * any further."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from src.model.accumulate import exact


def perplexity(outputs: Tensor, targets: Tensor, ignore_index: int = -100) -> Tensor:
    """`exp` of the mean cross entropy over all places: among how many alike classes the model is at a loss.

    Args:
        outputs: Logits [N, K, *] or [N, *, K].
        targets: Class ids [N, *].
        ignore_index: Class id that doesn't count, of padding.
    """
    return perplexity_of(surprise(outputs, targets, ignore_index))


@torch.no_grad()
def surprise(outputs: Tensor, targets: Tensor, ignore_index: int) -> Tensor:
    """Sum of the cross entropies of all places, and how many there are: float64 [2]."""
    if outputs.shape[:1] + outputs.shape[2:] != targets.shape:
        outputs = outputs.movedim(-1, 1)
    total = F.cross_entropy(outputs.float(), targets, ignore_index=ignore_index, reduction="sum")
    return exact(torch.stack([total, (targets != ignore_index).sum()]))


def perplexity_of(kept: Tensor) -> Tensor:
    """Perplexity of what `surprise` summed up."""
    return (kept[0] / kept[1]).exp()
