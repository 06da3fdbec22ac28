"""What a model gets right and wrong that gives several labels at once. Axes: N samples, C labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from src.logger.report.classes import (
    FEW,
    MAX_CLASSES,
    NUM_SAMPLES,
    Array,
    area_sections,
    calibration_section,
    interval,
    too_few,
)  # fmt: skip
from src.logger.report.html import Html, element, section, table
from src.logger.report.samples import Show, sample_cards


def label_sections(probabilities: Array, truth: Array, names: Sequence[str], show: Show) -> Iterator[Html]:
    """Yield the sections of the report about labels; a label of at least one half is predicted.

    Args:
        probabilities: [N, C].
        truth: Which labels a sample has, [N, C] of bool.
        names: Of the labels, [C].
        show: Returns the sample of a position 0..N-1.
    """
    predicted = probabilities >= 0.5
    yield section("Labels", *_per_label(predicted, truth, names))
    yield area_sections(probabilities, truth, names, "each label")
    yield calibration_section(np.maximum(probabilities, 1 - probabilities).ravel(), (predicted == truth).ravel())

    def says(position: int) -> str:
        told, real = (", ".join(names[k] for k in each[position].nonzero()[0]) or "none" for each in (predicted, truth))
        return f"is {real}, predicted {told}"

    own = np.where(truth, probabilities, 1 - probabilities)
    order = np.argsort(own.min(1), kind="stable")
    wrong = [int(i) for i in order if (predicted[i] != truth[i]).any()][:NUM_SAMPLES]
    text = "Wrong in one label or more, and the surest of it."
    cards = sample_cards(wrong, show, says) if wrong else element("p", "Not one is wrong.")
    yield section("Worst samples", element("p", text, class_="soft"), cards)


def _per_label(predicted: Array, truth: Array, names: Sequence[str]) -> Iterator[Html]:
    has, told, right = truth.sum(0), predicted.sum(0), (predicted & truth).sum(0)
    yield from too_few([f"{names[k]} ({has[k]})" for k in range(len(names)) if has[k] < FEW])
    exact = (predicted == truth).all(1).mean()
    text = f"Every label is right in {exact:.1%} of the samples. A label is predicted from a probability of one half."
    yield element("p", text)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision, recall, f1 = right / told, right / has, 2 * right / (has + told)
    order = range(len(names))
    if len(names) > MAX_CLASSES:
        order = np.argsort(np.nan_to_num(f1, nan=2.0), kind="stable")[:MAX_CLASSES].tolist()
        yield element("p", f"The {MAX_CLASSES} of {len(names)} labels with the lowest F1.")
    rows = [[names[k], has[k], told[k], precision[k], recall[k], interval(right[k], has[k]), f1[k]] for k in order]
    yield table(["label", "samples", "predicted", "precision", "recall", "95 % interval of recall", "F1"], rows)
