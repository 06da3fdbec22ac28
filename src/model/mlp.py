"""Multi-layer perceptron. Axes: N batch, F features."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class MLP(nn.Module):
    """Linear layers with an activation and dropout between them; inputs of any shape are flattened to [N, F].

    Args:
        in_features: F, values per row after flattening.
        hidden: Width of each hidden layer; an empty list makes a linear model.
        out_features: Values per row that come out.
        dropout: Share of hidden values that is zeroed in training, in [0, 1).
        activation: Name of a class in `torch.nn`.
    """

    def __init__(
        self,
        in_features: int,
        hidden: Sequence[int],
        out_features: int,
        dropout: float = 0.0,
        activation: str = "ReLU",
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        for width_in, width_out in zip([in_features, *hidden], hidden, strict=False):
            layers += [nn.Linear(width_in, width_out), getattr(nn, activation)()]
            if dropout > 0:
                layers.append(nn.Dropout(dropout))
        layers.append(nn.Linear([in_features, *hidden][-1], out_features))
        self.layers = nn.Sequential(*layers)

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs [N, ...] to outputs [N, out_features]."""
        outputs: Tensor = self.layers(inputs)
        return outputs
