"""Two digits: the same or not (Koch et al. 2015). Axes: N batch, D embedding; images [N, 1, H, W]."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from src.data.digits import Digits


class DigitPairs(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Pairs of digits, half of them equal: `(first, second, same)` with images [1, 8, 8] and `same` 0.0 or 1.0.

    Args:
        rows: First and last row of the digits to take from, so that parts share no image.
    """

    def __init__(self, num_pairs: int, rows: tuple[int, int], seed: int = 0) -> None:
        digits, generator = Digits(), torch.Generator().manual_seed(seed)
        images, labels = digits.images[rows[0] : rows[1]], digits.targets[rows[0] : rows[1]]
        self.first = torch.randint(len(images), (num_pairs,), generator=generator)
        self.second = torch.randint(len(images), (num_pairs,), generator=generator)
        for pair in range(0, num_pairs, 2):  # every second pair is of one digit
            same = (labels == labels[self.first[pair]]).nonzero().flatten()
            self.second[pair] = same[torch.randint(len(same), (), generator=generator)]
        self.images, self.targets = images, (labels[self.first] == labels[self.second]).float()

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor, Tensor]:
        return self.images[self.first[row]], self.images[self.second[row]], self.targets[row]


class Siamese(nn.Module):
    """One network for both images, a linear layer on the distance of their embeddings: logits [N] of `same`."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, width)
        )
        self.head = nn.Linear(width, 1)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return self.head((self.body(first) - self.body(second)).abs()).squeeze(1)
