"""Which evaluation is the best so far, and when to stop waiting for a better one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from src.utils.errors import ConfigError


class Monitor:
    """Watches one logged value. A tie or nan is no improvement.

    Args:
        spec: `min val/loss` or `max val/accuracy`; None watches nothing, and nothing is ever the best.
        patience: Evaluations in a row without improvement after which `is_exhausted`; 0 never.
        min_delta: For patience, an improvement must be larger than this. Best means strictly best regardless.
    """

    def __init__(self, spec: str | None, patience: int = 0, min_delta: float = 0.0) -> None:
        self.mode, _, name = (spec or "min").partition(" ")
        self.name = name or None
        self.patience = patience
        self.min_delta = min_delta
        self.best: float | None = None
        self.best_epoch = 0
        self.best_at = ""
        self.num_waited = 0
        self.is_exhausted = False
        """Whether it has waited for longer than `patience`."""
        self._reference: float | None = None

    def update(self, values: Mapping[str, float], epoch: int, at: str = "") -> bool:
        """Take in one evaluation and return whether it is the best so far.

        Args:
            values: By name.
            epoch: Epochs finished.
            at: What people call this moment: `step 30`. Default: by the epoch.

        Raises:
            ConfigError: The watched value is not among `values`.
        """
        if self.name is None:
            return False
        if self.name not in values:
            raise ConfigError(f"trainer.monitor: no value {self.name!r}; this run logs {', '.join(values)}")
        value = values[self.name]
        if self._improves(value, self._reference, self.min_delta):
            self._reference, self.num_waited = value, 0
        else:
            self.num_waited += 1
        self._look_at_patience()
        is_best = self._improves(value, self.best, 0.0)
        if is_best:
            self.best, self.best_epoch, self.best_at = value, epoch, at or f"epoch {epoch}"
        return is_best

    def _improves(self, value: float, reference: float | None, margin: float) -> bool:
        if value != value:
            return False
        if reference is None:
            return True
        return value < reference - margin if self.mode == "min" else value > reference + margin

    def _look_at_patience(self) -> None:
        self.is_exhausted = 0 < self.patience <= self.num_waited

    def state_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "best": self.best,
            "best_epoch": self.best_epoch,
            "best_at": self.best_at,
            "num_waited": self.num_waited,
            "reference": self._reference,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue; after a change of what is watched, start afresh."""
        if state["name"] == self.name:
            self.best, self.best_epoch = _number(state["best"]), state["best_epoch"]
            self.best_at = state.get("best_at", f"epoch {self.best_epoch}")
            self.num_waited, self._reference = state["num_waited"], _number(state["reference"])
            self._look_at_patience()


def _number(value: Any) -> float | None:
    if value is None or type(value) in (int, float):
        return value  # type: ignore[no-any-return]
    raise ValueError(f"a best value is {value!r}, a number is needed")


def default_monitor(val_parts: Iterable[str]) -> str | None:
    """Return what to watch when the config does not say: the loss on the first val part, if there is one."""
    return next((f"min {part}/loss" for part in val_parts), None)
