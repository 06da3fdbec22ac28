"""An exponential moving average of a model's weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


class AveragedWeights:
    """Keeps `average = decay * average + (1 - decay) * weights`; buffers are copied.

    Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", 1992. Starts at the model's weights.
    `torch.optim.swa_utils.AveragedModel` does the same but waits for the device at every update.

    Args:
        decay: In [0, 1); 0.999 averages over about 1000 steps.
        average: A copy of `model` to keep them in. Default: one is made.
    """

    def __init__(self, model: nn.Module, decay: float, average: nn.Module | None = None) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).requires_grad_(False) if average is None else average
        """The model with the averaged weights."""
        self._floats, self._others = self._pairs(model)

    def update(self) -> None:
        """Take in the present weights of the model."""
        averages, weights = self._floats
        torch._foreach_lerp_(averages, weights, 1.0 - self.decay)
        for copied, buffer in self._others:
            copied.copy_(buffer)

    def _pairs(self, model: nn.Module) -> tuple[tuple[list[Any], list[Any]], list[tuple[Any, Any]]]:
        weights = [parameter.detach() for parameter in model.parameters()]
        return (list(self.model.parameters()), weights), list(zip(self.model.buffers(), model.buffers(), strict=True))

    def state_dict(self) -> dict[str, Any]:
        return {"model": self.model.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
