"""The curves of a test report as PNG files, for slides and papers. Axes: N samples, C classes, T targets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
MAX_CURVES, MAX_NAMED = 8, 30


def has_matplotlib() -> bool:
    """Whether pictures can be drawn."""
    return find_spec("matplotlib") is not None


def draw_classes(folder: Path, probabilities: Array, targets: Array, names: Sequence[str]) -> None:
    """Write confusion.png, roc.png, precision_recall.png and calibration.png into `folder`.

    Args:
        folder: Must exist.
        probabilities: [N, C].
        targets: Class ids [N].
        names: Of the classes, [C].
    """
    from sklearn.calibration import CalibrationDisplay
    from sklearn.metrics import ConfusionMatrixDisplay

    predicted = probabilities.argmax(1)
    with _figure(folder / "confusion.png", 5 + len(names) / 5) as axes:
        known = {"labels": range(len(names)), "display_labels": names} if len(names) <= MAX_NAMED else {}
        rotation = "vertical" if max(map(len, names)) > 2 else "horizontal"
        ConfusionMatrixDisplay.from_predictions(
            targets, predicted, ax=axes, cmap="Blues", colorbar=False, xticks_rotation=rotation,
            include_values=len(names) <= MAX_NAMED, **known,
        )  # fmt: skip
    classes = [1] if len(names) == 2 else list(range(len(names)))
    draw_areas(folder, probabilities[:, classes], targets[:, None] == classes, [names[k] for k in classes])
    with _figure(folder / "calibration.png") as axes:
        CalibrationDisplay.from_predictions(
            predicted == targets, probabilities.max(1), n_bins=10, ax=axes, name="largest probability"
        )


def draw_areas(folder: Path, scores: Array, truth: Array, names: Sequence[str]) -> None:
    """Write roc.png and precision_recall.png into `folder`, with the curves of the first classes.

    Args:
        folder: Must exist.
        scores: [N, C].
        truth: Whether a sample is of a class, [N, C] of bool.
        names: Of the classes, [C].
    """
    from sklearn.metrics import PrecisionRecallDisplay, RocCurveDisplay

    drawable = [k for k in range(min(len(names), MAX_CURVES)) if truth[:, k].any() and not truth[:, k].all()]
    for name, display in (("roc", RocCurveDisplay), ("precision_recall", PrecisionRecallDisplay)):
        with _figure(folder / f"{name}.png") as axes:
            for k in drawable:
                display.from_predictions(truth[:, k], scores[:, k], ax=axes, name=names[k])


def draw_values(folder: Path, predicted: Array, true: Array, names: Sequence[str]) -> None:
    """Write predicted.png and residuals.png into `folder`, a column of axes for each target.

    Args:
        folder: Must exist.
        predicted: [N, T].
        true: [N, T].
        names: Of the targets, [T].
    """
    from sklearn.metrics import PredictionErrorDisplay

    for file, kind in (("predicted", "actual_vs_predicted"), ("residuals", "residual_vs_predicted")):
        for k, name in enumerate(names):
            suffix = "" if len(names) == 1 else f"_{k}"
            with _figure(folder / f"{file}{suffix}.png") as axes:
                PredictionErrorDisplay.from_predictions(
                    true[:, k], predicted[:, k], kind=kind, subsample=2000, random_state=0, ax=axes
                )
                axes.set_title(name)


@contextmanager
def _figure(path: Path, inches: float = 5) -> Iterator[Any]:
    """Give axes to draw on, and write them to `path`; no window is opened and no global state of pyplot is touched."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(inches, inches), layout="constrained")
    FigureCanvasAgg(figure)
    yield figure.subplots()
    figure.savefig(path, dpi=150)
