"""The base of their models."""

from __future__ import annotations

from typing import Any

from torch import nn


class BaseModel(nn.Module):
    """A module that says how many parameters it trains when it is printed."""

    def forward(self, *inputs: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} needs a method `forward`")

    def __str__(self) -> str:
        count = sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)
        return f"{super().__str__()}\nTrainable parameters: {count}"
