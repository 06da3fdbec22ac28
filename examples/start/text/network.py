"""Yours to change: the network that reads a text.

Axes: N batch, L tokens, D embedding, K classes.
"""

from __future__ import annotations

from torch import Tensor, nn


class Network(nn.Module):
    """The mean of the words' vectors, then a linear layer."""

    def __init__(self, num_tokens: int, num_classes: int, width: int = 32, dropout: float = 0.3) -> None:
        super().__init__()
        self.words = nn.EmbeddingBag(num_tokens, width, padding_idx=0)
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(width, num_classes))

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids [N, L], 0 behind short texts, to logits [N, K]."""
        logits: Tensor = self.head(self.words(tokens))
        return logits
