"""Yours to change: which images there are, and the network that tells them apart.

Axes: N batch, C channels, H W pixels, K classes.
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import TensorDataset


class Images(TensorDataset):
    """Images [1, 8, 8] with values 0..1, and their classes."""

    class_names = [str(digit) for digit in range(10)]

    def __init__(self) -> None:
        digits = load_digits()  # replace by what reads yours; data/images.ImageFolder reads one folder per class
        images = torch.from_numpy(digits.images).float()[:, None] / 16
        self.targets = torch.from_numpy(digits.target).long()
        self.num_classes = 10
        super().__init__(images, self.targets)


class Network(nn.Module):
    """Two convolutions and a linear layer.

    Args:
        num_classes: K.
        size: H and W, a multiple of 4.
        width: Channels of the first convolution.
    """

    def __init__(self, num_classes: int, size: int = 8, width: int = 16) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        self.head = nn.Linear(2 * width * (size // 4) ** 2, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images [N, C, H, W] to logits [N, K]."""
        logits: Tensor = self.head(self.body(images).flatten(1))
        return logits
