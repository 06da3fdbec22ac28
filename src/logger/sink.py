"""What a place for numbers can be told. Your own is a class with any of these calls, named under `logger.sinks`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

FLUSH_EVERY_S = 2.0
"""Numbers are written out as soon as so long has passed since the last time: at once where epochs are longer."""


class Sink:
    """Does nothing with anything; a sink overrides the calls it cares for.

    Calls come from the training loop: a slow one is time that the device waits. None may change what it is given.
    """

    def scalars(self, values: Mapping[str, float], step: int, epoch: int | None) -> None:
        """Take numbers by name.

        Args:
            values: `part/name` to number, e.g. `train/loss`; names starting with `step/` belong to a single step.
            step: Optimizer updates finished.
            epoch: Epochs finished; None when the numbers don't stand for whole epochs.
        """

    def text(self, tag: str, text: str) -> None:
        """Take a text in Markdown."""

    def images(self, tag: str, images: np.ndarray[Any, Any], step: int) -> None:
        """Take images [N, C, H, W] or [N, H, W, C] or [N, H, W], whole numbers in 0..255 or any real range."""

    def histogram(self, tag: str, values: np.ndarray[Any, Any], step: int) -> None:
        """Take numbers of any shape, to be shown as a distribution."""

    def pr_curves(self, tag: str, counts: np.ndarray[Any, Any], names: Sequence[str], step: int) -> None:
        """Take, for K classes and T thresholds from 0 to 1, true and false positives [K, 2, T], whole numbers."""

    def graph(self, definition: bytes) -> None:
        """Take the operations of a model, a serialized `GraphDef`."""

    def embedding(self, tag: str, vectors: np.ndarray[Any, Any], labels: Sequence[str]) -> None:
        """Take vectors [N, D] and a label for each; there may be no labels. A later call with this tag replaces it."""

    def hparams(self, values: Mapping[str, Any]) -> None:
        """Take the run's settings: dotted name to bool, number or text."""

    def state_dict(self) -> dict[str, Any]:
        """Where this sink stands, so that a run that is resumed from here writes nothing twice."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Forget everything that was written after `state_dict` was called."""

    def flush(self) -> None:
        """Write out what waits to be written."""

    def close(self) -> None:
        """Finish. No call comes after."""
