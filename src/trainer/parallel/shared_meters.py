"""What several processes measure together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from src.model.metric import MetricSet
from src.trainer.meters import Meters
from src.trainer.task import StepOutput
from src.utils.processes.ranks import Ranks


@dataclass(slots=True)
class SharedOutput(StepOutput):
    """What one batch gave to all processes: loss, weight and scalars are of the whole batch, outputs of this share."""

    rows: int = 0
    is_borrowed: bool = False
    """Whether there was no share for this process: its outputs are of another's row."""

    @property
    def num_rows(self) -> int:
        """Rows of all shares."""
        return self.rows


class SharedMeters(Meters):
    """Meters of a pass that several processes make together; they take what `SharedStep.meet` returns.

    Losses and scalars arrive as those of the whole batch. Metrics are kept for the own rows and put together when they
    are asked for; one that cannot be put together sees the rows of all, batch by batch, on rank 0.
    """

    def __init__(self, metrics: MetricSet, device: torch.device, ranks: Ranks) -> None:
        self.ranks = ranks
        super().__init__(metrics, device)

    def update(self, output: StepOutput) -> None:
        """Add one batch, of which `output` holds this process's share."""
        assert isinstance(output, SharedOutput)
        self.count(output)
        if not output.is_borrowed:
            self.metrics.update_own(output.outputs, output.targets)
        if self.metrics.needs_rows:
            rows = None if output.is_borrowed else (output.outputs, output.targets)
            for each in self.ranks.gather(rows):
                if each is not None:
                    self.metrics.update_others(*each)

    def metric_values(self) -> dict[str, float]:
        values: dict[str, float] = self.ranks.broadcast(self._of_all(self.metrics.compute))
        return values

    def figures(self) -> dict[str, tuple[str, Tensor]]:
        return self._of_all(self.metrics.figures)

    def metric_state(self) -> dict[str, Any]:
        return self._of_all(self.metrics.state_dict)

    def _of_all(self, answer: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return what the metrics of all rows answer, on rank 0; they go on as they were."""
        own = self.metrics.state_dict()
        states = self.ranks.gather(own)
        if not self.ranks.is_main:
            return {}
        self.metrics.merge(states)
        try:
            return answer()
        finally:
            self.metrics.load_state_dict(own)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        if not self.ranks.is_main:  # rank 0 goes on with what all had kept
            self.metrics.reset()
