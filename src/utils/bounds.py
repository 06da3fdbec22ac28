"""Ranges for settings, written in the annotation: `lr: Annotated[float, Above(0)]`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AtLeast:
    """The value must be `>= low`."""

    low: float

    def holds(self, value: float) -> bool:
        return value >= self.low

    def __str__(self) -> str:
        return f">= {self.low}"


@dataclass(frozen=True)
class Above:
    """The value must be `> low`."""

    low: float

    def holds(self, value: float) -> bool:
        return value > self.low

    def __str__(self) -> str:
        return f"> {self.low}"


@dataclass(frozen=True)
class Between:
    """The value must be in `[low, high)`."""

    low: float
    high: float

    def holds(self, value: float) -> bool:
        return self.low <= value < self.high

    def __str__(self) -> str:
        return f">= {self.low} and < {self.high}"


Bound = AtLeast | Above | Between
