"""The smallest model. Axes: N batch, F features."""

from __future__ import annotations

from torch import Tensor, nn


class Linear(nn.Module):
    """`outputs = inputs @ weight.T + bias`; inputs of any shape are flattened to [N, F] first.

    Linear regression with a squared loss, logistic regression with cross entropy.
    """

    def __init__(self, in_features: int, out_features: int = 1, bias: bool = True) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features, bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs [N, ...] to outputs [N, out_features]."""
        outputs: Tensor = self.linear(inputs.flatten(1))
        return outputs
