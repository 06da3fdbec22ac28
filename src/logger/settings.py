"""What the section `logger` of a config may say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from src.utils.bounds import AtLeast


@dataclass(frozen=True)
class LoggerSettings:
    """Where numbers go."""

    tensorboard: bool = True
    """Write event files; look at them with `tensorboard --logdir saved`."""

    csv: bool = True
    """Write `metrics.csv`, one row per evaluation."""

    bar: bool = True
    """Show a progress bar when the output is a terminal."""

    num_images: Annotated[int, AtLeast(0)] = 8
    """Input images shown once in TensorBoard, when the inputs are images."""

    histograms_every_epochs: Annotated[int, AtLeast(1)] | None = None
    """Write histograms of weights and gradients after every so many epochs."""

    sinks: tuple[Any, ...] = ()
    """Further places for the numbers, e.g. `[{type: my_sink.MySink, args: {...}}]`: any class with calls of `Sink`."""
