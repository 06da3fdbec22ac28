"""One call, many places: numbers, texts and images go to every sink."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from src.logger.csv_file import CSVFile
from src.logger.settings import LoggerSettings
from src.logger.tensorboard import TensorBoard, check_installed
from src.utils.secrets import masked

LOG = logging.getLogger(__name__)


def check_sinks(settings: LoggerSettings) -> None:
    """Find out before a run folder is made whether what the settings switch on is installed.

    Raises:
        ConfigError: TensorBoard is asked for and not installed.
    """
    if settings.tensorboard:
        check_installed()


def standard_sinks(settings: LoggerSettings, run_path: Path) -> list[Any]:
    """The sinks that the settings switch on.

    Raises:
        ConfigError: TensorBoard is asked for and not installed.
    """
    sinks: list[Any] = []
    if settings.csv:
        sinks.append(CSVFile(run_path / "metrics.csv"))
    if settings.tensorboard:
        sinks.append(TensorBoard(run_path / "events"))
    return sinks


class Logger:
    """Hands every call to every sink. A sink that fails is reported once and left out from then on.

    A sink is any object with some of the calls of `src.logger.sink.Sink`.
    """

    def __init__(self, sinks: Sequence[Any] = ()) -> None:
        self._sinks: dict[str, Any] = {}
        for sink in sinks:
            name = type(sink).__name__
            number = sum(key.split("#")[0] == name for key in self._sinks)
            self._sinks[f"{name}#{number + 1}" if number else name] = sink

    def scalars(self, values: Mapping[str, float], step: int, epoch: int | None = None) -> None:
        """Log numbers named `part/name`.

        Args:
            values: `train/loss`, `val/accuracy`, `time/samples_per_s`, `lr`, ... after an evaluation or epoch;
                `step/loss`, `step/lr`, ... within one.
            step: Optimizer updates finished.
            epoch: Epochs finished; None for numbers that don't stand for whole epochs.

        Raises:
            TypeError: A value isn't a number. A tensor's `item()` belongs where the trainer waits for the device.
        """
        plain: dict[str, float] = {}
        for name, value in values.items():
            if type(value) is not float and not isinstance(value, Real):
                raise TypeError(f"logger: {name} must be a number, received {type(value).__name__}")
            plain[name] = float(value)
        self._tell("scalars", plain, step, epoch)

    def text(self, tag: str, text: str) -> None:
        """Log a text in Markdown, e.g. the config."""
        self._tell("text", tag, text)

    def images(self, tag: str, images: np.ndarray[Any, Any], step: int) -> None:
        """Log images [N, C, H, W], [N, H, W, C] or [N, H, W] as one picture; whole numbers 0..255 or any real range."""
        self._tell("images", tag, _array("images", tag, images), step)

    def histogram(self, tag: str, values: np.ndarray[Any, Any], step: int) -> None:
        """Log the distribution of numbers of any shape."""
        self._tell("histogram", tag, _array("histogram", tag, values), step)

    def pr_curves(self, tag: str, counts: np.ndarray[Any, Any], names: Sequence[str], step: int) -> None:
        """Log precision-recall curves: rows that score at least each of T thresholds from 0 to 1, [K, 2, T].

        Args:
            counts: For each class true positives, then false positives; whole numbers.
            names: Of the K curves.
        """
        self._tell("pr_curves", tag, _array("pr_curves", tag, counts), list(names), step)

    def graph(self, definition: bytes) -> None:
        """Log the operations of a model, a serialized `GraphDef`."""
        self._tell("graph", definition)

    def embedding(self, tag: str, vectors: np.ndarray[Any, Any], labels: Sequence[str] = ()) -> None:
        """Log vectors [N, D] with a label for each; a later call with the same tag replaces them."""
        self._tell("embedding", tag, _array("embedding", tag, vectors), list(labels))

    def hparams(self, values: Mapping[str, Any]) -> None:
        """Log the run's settings, a nested mapping or dotted names to values, so that runs can be compared by them."""
        self._tell("hparams", dict(_flat(masked(values))))

    def state_dict(self) -> dict[str, Any]:
        """Where each sink stands, for a checkpoint."""
        states = {}
        for name, sink in list(self._sinks.items()):
            if hasattr(sink, "state_dict"):
                state = self._call(name, "state_dict")
                if name in self._sinks:
                    states[name] = state
        return states

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take every sink back to where it stood; call it before anything is logged."""
        for name in list(self._sinks):
            if name in state:
                self._call(name, "load_state_dict", state[name])

    def flush(self) -> None:
        """Write out what waits to be written."""
        self._tell("flush")

    def close(self) -> None:
        """Finish every sink."""
        self._tell("close")
        self._sinks = {}

    def _tell(self, call: str, *args: Any) -> None:
        for name in list(self._sinks):
            self._call(name, call, *args)

    def _call(self, name: str, call: str, *args: Any) -> Any:
        function = getattr(self._sinks[name], call, None)
        if function is None:
            return None
        try:
            return function(*args)
        except Exception as error:
            del self._sinks[name]
            LOG.warning(
                "%s failed in %s and is left out from now on; training goes on (%s: %s)",
                name, call, type(error).__name__, error,
            )  # fmt: skip
            return None


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _array(call: str, tag: str, values: Any) -> np.ndarray[Any, Any]:
    if not isinstance(values, np.ndarray):
        raise TypeError(f"logger: {call} {tag!r} must be a NumPy array, received {type(values).__name__}")
    return values
