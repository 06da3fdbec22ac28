"""Graph attention (Velickovic et al. 2018) on one graph. Axes: V nodes, E edges, F features, H heads, D."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

UNKNOWN = -100
"""Target of a node outside of the part: what CrossEntropyLoss leaves out by default."""


class Citations(Dataset[dict[str, Tensor]]):
    """One graph of 600 nodes in four classes, whose edges mostly join nodes of one class; features say little.

    The only sample is `{nodes [V, F], edges [2, E], targets [V]}`; targets outside of `part` are `UNKNOWN`.
    """

    num_classes, num_features = 4, 16

    def __init__(self, part: str, num_nodes: int = 600, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        classes = torch.randint(self.num_classes, (num_nodes,), generator=generator)
        centres = torch.randn(self.num_classes, self.num_features, generator=generator)
        nodes = 0.5 * centres[classes] + torch.randn(num_nodes, self.num_features, generator=generator)
        is_same = classes[:, None] == classes[None, :]
        joined = torch.rand(num_nodes, num_nodes, generator=generator) < torch.where(is_same, 0.02, 0.003)
        joined = joined | joined.T | torch.eye(num_nodes, dtype=torch.bool)
        mask = torch.randperm(num_nodes, generator=generator)
        first, last = {"train": (0, 80), "val": (80, 280), "test": (280, num_nodes)}[part]
        targets = torch.full((num_nodes,), UNKNOWN)
        targets[mask[first:last]] = classes[mask[first:last]]
        self.graph = {"nodes": nodes, "edges": joined.nonzero().T, "targets": targets}

    def __len__(self) -> int:
        return 1

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return self.graph


def whole(samples: list[Any]) -> Any:
    """Collate the one graph: it is a batch already."""
    return samples[0]


class GraphAttention(nn.Module):
    """One layer: each node takes in its neighbours, weighted by attention (eq. 1 to 5)."""

    def __init__(self, in_features: int, out_features: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.project = nn.Linear(in_features, heads * out_features, bias=False)
        self.source = nn.Parameter(0.1 * torch.randn(heads, out_features))
        self.target = nn.Parameter(0.1 * torch.randn(heads, out_features))

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        values = self.project(nodes).unflatten(1, (self.heads, -1))  # [V, H, D]
        source, target = edges
        scores = (values * self.source).sum(-1)[source] + (values * self.target).sum(-1)[target]  # [E, H]
        weights = F.leaky_relu(scores, 0.2).clamp(max=30).exp()
        sums = torch.zeros(len(nodes), self.heads).index_add(0, target, weights)
        weights = weights / sums[target]
        taken = torch.zeros_like(values).index_add(0, target, weights.unsqueeze(-1) * values[source])
        return taken.flatten(1)


class GAT(nn.Module):
    """Two layers of attention: nodes [V, F] and edges [2, E] to logits [V, C]."""

    def __init__(self, num_features: int, num_classes: int, width: int = 8, heads: int = 4) -> None:
        super().__init__()
        self.first = GraphAttention(num_features, width, heads)
        self.second = GraphAttention(width * heads, num_classes, 1)
        self.dropout = nn.Dropout(0.5)

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        hidden = F.elu(self.first(self.dropout(nodes), edges))
        return self.second(self.dropout(hidden), edges)
