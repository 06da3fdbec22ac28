"""Made-up data with a known answer, for tutorials, tests and timing.

Each is a `TensorDataset` of inputs and targets, float32: N rows, F features.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.utils.data import TensorDataset


def line(num_rows: int = 100, slope: float = 2.0, intercept: float = 1.0) -> TensorDataset:
    """`y = slope * x + intercept` for x = 0, 1, 2, ...: inputs [N, 1], targets [N, 1]."""
    x = torch.arange(num_rows, dtype=torch.float32).unsqueeze(1)
    return TensorDataset(x, slope * x + intercept)


def noisy_line(
    num_rows: int = 100, slope: float = 2.0, intercept: float = 1.0, noise: float = 0.1, seed: int = 0
) -> TensorDataset:
    """A line with normal noise of standard deviation `noise`, x uniform in -1..1: inputs [N, 1], targets [N, 1]."""
    generator = torch.Generator().manual_seed(seed)
    x = 2 * torch.rand(num_rows, 1, generator=generator) - 1
    return TensorDataset(x, slope * x + intercept + noise * torch.randn(num_rows, 1, generator=generator))


def noisy_linear(num_rows: int = 1000, num_features: int = 10, noise: float = 0.1, seed: int = 0) -> TensorDataset:
    """`y = x @ weights + bias + noise`, all standard normal: inputs [N, F], targets [N, 1]."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(num_features, 1, generator=generator)
    bias = torch.randn(1, generator=generator)
    x = torch.randn(num_rows, num_features, generator=generator)
    return TensorDataset(x, x @ weights + bias + noise * torch.randn(num_rows, 1, generator=generator))


def sine(num_rows: int = 2000) -> TensorDataset:
    """`sin(x)` for x from -pi to pi: inputs [N], targets [N]."""
    x = _circle(num_rows)
    return TensorDataset(x, x.sin())


def sine_cubic(num_rows: int = 2000) -> TensorDataset:
    """`sin(x)` to be fitted by a cubic: inputs [N, 3] are x, x^2 and x^3, targets [N]."""
    x = _circle(num_rows)
    return TensorDataset(x.unsqueeze(1) ** torch.tensor([1, 2, 3]), x.sin())


def random_regression(
    num_rows: int = 64, num_features: int = 1000, num_targets: int = 10, seed: int = 0
) -> TensorDataset:
    """Nothing to learn but the rows themselves: standard normal inputs [N, F] and targets [N, num_targets]."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num_rows, num_features, generator=generator)
    return TensorDataset(x, torch.randn(num_rows, num_targets, generator=generator))


def _circle(num_rows: int) -> Tensor:
    return torch.linspace(-math.pi, math.pi, num_rows)
