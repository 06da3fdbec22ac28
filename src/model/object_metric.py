"""Objects with `update`, `compute` and `reset` that were not written for this project, e.g. of torchmetrics."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from src.model.accumulate import State, to_plain

_PLAIN = (bool, int, float, str, type(None), Tensor)


class ObjectMetric:
    """Gives any object with `update`, `compute` and `reset` a state that fits a checkpoint, and plain values.

    An object without a `state_dict` of its own is saved by its attributes: tensors, numbers, text, and lists and
    dicts of those.
    """

    def __init__(self, metric: Any) -> None:
        self._metric = metric
        if isinstance(metric, nn.Module) and callable(persistent := getattr(metric, "persistent", None)):
            persistent(True)  # torchmetrics leaves its sums out of the state unless told
            vars(metric)["sync_on_compute"] = False  # between processes the rows travel, not the sums

    @torch.no_grad()
    def update(self, outputs: Any, targets: Any) -> None:
        if isinstance(self._metric, nn.Module) and isinstance(outputs, Tensor):
            self._metric.to(outputs.device)
        self._metric.update(outputs, targets)

    def compute(self) -> float | dict[str, float]:
        return to_plain(self._metric.compute())

    def reset(self) -> None:
        self._metric.reset()

    def state_dict(self) -> State:
        if hasattr(self._metric, "state_dict"):
            return dict(self._metric.state_dict())
        kept = {name: value for name, value in vars(self._metric).items() if not callable(value)}
        for name, value in kept.items():
            if not _is_plain(value):
                raise TypeError(
                    f"metric {type(self._metric).__name__} keeps `{name}` of type {type(value).__name__}, which a "
                    "checkpoint can't hold; keep tensors and plain data, or add state_dict and load_state_dict"
                )
        return copy.deepcopy(kept)

    def load_state_dict(self, state: State) -> None:
        if hasattr(self._metric, "load_state_dict"):
            self._metric.load_state_dict(state)
        else:
            vars(self._metric).update(copy.deepcopy(state))


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item) for item in value)
    if isinstance(value, dict):
        return all(_is_plain(item) for item in value.values())
    return isinstance(value, _PLAIN)
