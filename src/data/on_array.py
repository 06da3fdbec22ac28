"""Transforms of albumentations in a list with all others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor


class _OnArray:
    """Lets a transform of albumentations work on an image like the others: it takes and gives arrays [H, W, C].

    It draws from streams of its own, which are seeded anew for each image: the same ones in every process.

    Args:
        transform: Called as `transform(image=array)["image"]`.
    """

    def __init__(self, transform: Any) -> None:
        self.transform = transform
        self.__name__ = type(transform).__name__  # for messages

    def __call__(self, image: Tensor) -> Tensor:
        if hasattr(self.transform, "set_random_seed"):
            self.transform.set_random_seed(int(torch.randint(2**31, ())))
        array = np.ascontiguousarray(image.movedim(0, -1).numpy())
        changed = self.transform(image=array)["image"]
        if isinstance(changed, Tensor):
            return changed
        return torch.from_numpy(np.ascontiguousarray(np.moveaxis(changed.reshape(*changed.shape[:2], -1), -1, 0)))


def as_transform(transform: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return `transform` as something that is called with an image [C, H, W]."""
    is_of_albumentations = type(transform).__module__.partition(".")[0] == "albumentations"
    return _OnArray(transform) if is_of_albumentations else transform
