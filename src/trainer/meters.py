"""Averages over batches that are exact and do not wait for the device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from src.model.metric import MetricSet
from src.trainer.criterion import TermWeights
from src.trainer.task import StepOutput
from src.utils.alike import check_alike


class Mean:
    """A weighted mean of scalars.

    On the CPU, where reading a tensor costs nothing, the sum is a Python float; elsewhere it stays on the device, in
    float64 (float32 on mps, which has nothing wider). A weight of 0 marks a value that is itself a sum: then the
    result is the sum of all values.
    """

    def __init__(self, device: torch.device) -> None:
        self._is_host = device.type == "cpu"
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self.total: Any = 0.0 if self._is_host else torch.zeros((), dtype=dtype, device=device)
        self.weight: Any = 0.0
        self._lap = (0.0, 0.0)

    def update(self, value: Tensor, weight: float | Tensor) -> None:
        """Add one scalar tensor."""
        if self._is_host:
            if isinstance(weight, Tensor):
                weight = weight.item()
                if weight == 0.0:
                    return  # a mean of nothing
            self.total += value.item() * (weight or 1.0)
        elif isinstance(weight, Tensor):
            self.total += torch.where(weight > 0, value.detach() * weight, 0.0)
        else:
            self.total.add_(value.detach(), alpha=weight or 1.0)
        self.weight = self.weight + weight

    def compute(self) -> float:
        """Return the mean so far; 0 when nothing was added. Waits for the device."""
        return float(self.total) / (float(self.weight) or 1.0)  # device sync

    def lap(self) -> float:
        """Return the mean of what was added since the last lap. Waits for the device."""
        total, weight = self._read()
        mean = (total - self._lap[0]) / ((weight - self._lap[1]) or 1.0)
        self._lap = (total, weight)
        return mean

    def _read(self) -> tuple[float, float]:
        return float(self.total), float(self.weight)  # device sync

    def state_dict(self) -> dict[str, Any]:
        total, weight = self._read()
        return {"total": total, "weight": weight, "lap": self._lap}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        check_alike({"total": 0.0, "weight": 0.0, "lap": (0.0, 0.0)}, state, "mean")
        self.total, self.weight, self._lap = self.total * 0 + state["total"], state["weight"], tuple(state["lap"])


class LossMean(Mean):
    """The mean of a loss; of one whose terms count each in its own way, the sum of their means."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.terms: dict[str, tuple[float, Mean]] = {}
        """Factor and mean of each term; what is counted here itself is then the rest."""

    def compute(self) -> float:
        rest = super().compute()
        return rest + sum(factor * mean.compute() for factor, mean in self.terms.values()) if self.terms else rest

    def lap(self) -> float:
        return super().lap() + sum(factor * mean.lap() for factor, mean in self.terms.values())

    def state_dict(self) -> dict[str, Any]:
        factors = {name: factor for name, (factor, _) in self.terms.items()}
        return {**super().state_dict(), **({"factors": factors} if factors else {})}


class Meters:
    """Loss, further scalars and metrics of one pass over one part of the data."""

    def __init__(self, metrics: MetricSet, device: torch.device) -> None:
        self.metrics = metrics
        self.device = device
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.num_batches = 0
        self.loss = LossMean(self.device)
        self.scalars: dict[str, Mean] = {}
        self.metrics.reset()

    def update(self, output: StepOutput) -> None:
        """Add one batch."""
        self.count(output)
        self.metrics.update(output.outputs, output.targets)

    def count(self, output: StepOutput) -> None:
        """Add the loss and scalars of one batch."""
        self.num_batches += 1
        weight = output.weight
        if isinstance(weight, TermWeights):
            self._count_terms(output, weight)
            return
        self.loss.update(output.loss, weight)
        for name, value in output.scalars.items():
            self.scalars.setdefault(name, Mean(self.device)).update(value, weight)

    def _count_terms(self, output: StepOutput, weight: TermWeights) -> None:
        self.loss.update(weight.rest(output.loss, output.scalars), weight.rows)
        for name, value in output.scalars.items():
            mean = self.scalars.setdefault(name, Mean(self.device))
            mean.update(value, weight.terms.get(name, weight.rows))
            if name in weight.factors:
                self.loss.terms[name] = weight.factors[name], mean

    def compute(self) -> dict[str, float]:
        """Return all values by name. Waits for the device."""
        scalars = {name: mean.compute() for name, mean in self.scalars.items()}
        return {"loss": self.loss.compute(), **scalars, **self.metric_values()}

    def metric_values(self) -> dict[str, float]:
        """Return the metrics of all rows, by name."""
        return self.metrics.compute()

    def figures(self) -> dict[str, tuple[str, Tensor]]:
        """Return what metrics that are looked at have counted in all rows, by name."""
        return self.metrics.figures()

    def metric_state(self) -> dict[str, Any]:
        """Return what the metrics have kept of all rows."""
        return self.metrics.state_dict()

    def state_dict(self) -> dict[str, Any]:
        return {
            "num_batches": self.num_batches,
            "loss": self.loss.state_dict(),
            "scalars": {name: mean.state_dict() for name, mean in self.scalars.items()},
            "metrics": self.metric_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        check_alike({"num_batches": 0, "loss": {}, "scalars": {}, "metrics": {}}, state, "meters")
        self.reset()
        self.num_batches = state["num_batches"]
        self.loss.load_state_dict(state["loss"])
        for name, mean in state["scalars"].items():
            self.scalars.setdefault(name, Mean(self.device)).load_state_dict(mean)
        factors = state["loss"].get("factors", {})
        self.loss.terms = {name: (factor, self.scalars[name]) for name, factor in factors.items()}
        self.metrics.load_state_dict(state["metrics"])
