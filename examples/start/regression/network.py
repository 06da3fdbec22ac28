"""Yours to change: the network that turns a row of a table into a number.

Axes: N batch, F features.
"""

from __future__ import annotations

from torch import Tensor, nn


class Network(nn.Module):
    """One hidden layer."""

    def __init__(self, num_features: int, hidden: int = 32) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(num_features, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, features: Tensor) -> Tensor:
        """Features [N, F] to numbers [N, 1]."""
        numbers: Tensor = self.layers(features)
        return numbers
