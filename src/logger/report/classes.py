"""What a classifier gets right and wrong. Axes: N samples, C classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from src.logger.report.chart import Series, chart
from src.logger.report.html import Html, element, readable, section, table
from src.logger.report.page import warning
from src.logger.report.samples import Show, sample_cards

Array = np.ndarray[Any, Any]

FEW = 30
"""With fewer samples a share is known to no better than about 18 percentage points."""
MAX_CLASSES = 30
NUM_BINS, NUM_SAMPLES, NUM_CURVES = 10, 12, 8


def class_sections(probabilities: Array, targets: Array, names: Sequence[str], show: Show) -> Iterator[Html]:
    """Yield the sections of the report about classes.

    Args:
        probabilities: [N, C].
        targets: Class ids [N], each in 0..C-1.
        names: Of the classes, [C].
        show: Returns the sample of a position 0..N-1.
    """
    predicted = probabilities.argmax(1)
    confusion = np.zeros((len(names), len(names)), dtype=int)
    np.add.at(confusion, (targets, predicted), 1)
    yield section("Classes", *_per_class(confusion, names))
    yield section("Confusion", *_confusion(confusion, names))
    of = f"class {names[1]}" if len(names) == 2 else "each class against all others"
    classes = [1] if len(names) == 2 else list(range(len(names)))
    yield area_sections(probabilities[:, classes], targets[:, None] == classes, [names[k] for k in classes], of)
    yield calibration_section(probabilities.max(1), predicted == targets)

    own = probabilities[np.arange(len(targets)), targets]
    two = np.sort(probabilities, 1)[:, -2:]

    def says(position: int) -> str:
        guess = predicted[position]
        return f"is {names[targets[position]]}, predicted {names[guess]} ({probabilities[position, guess]:.0%})"

    wrong = [int(i) for i in np.argsort(own, kind="stable") if predicted[i] != targets[i]][:NUM_SAMPLES]
    text = "Wrong, and the surest of it: the true class was given the lowest probability."
    cards = sample_cards(wrong, show, says) if wrong else element("p", "Not one is wrong.")
    yield section("Worst samples", element("p", text, class_="soft"), cards)
    doubtful = np.argsort(two[:, 1] - two[:, 0], kind="stable")[:NUM_SAMPLES].tolist()
    text = "The two most probable classes were nearly equal."
    yield section("Most confused samples", element("p", text, class_="soft"), sample_cards(doubtful, show, says))


def _per_class(confusion: Array, names: Sequence[str]) -> Iterator[Html]:
    counts, predicted, right = confusion.sum(1), confusion.sum(0), confusion.diagonal()
    yield from too_few([f"{names[i]} ({counts[i]})" for i in range(len(names)) if counts[i] < FEW])
    with np.errstate(invalid="ignore", divide="ignore"):
        precision, recall = right / predicted, right / counts
        f1 = 2 * right / (counts + predicted)
    order: Any = range(len(names))
    if len(names) > MAX_CLASSES:
        order = np.argsort(np.nan_to_num(f1, nan=2.0), kind="stable")[:MAX_CLASSES]
        yield element("p", f"The {MAX_CLASSES} of {len(names)} classes with the lowest F1.")
    rows = [
        [names[i], counts[i], predicted[i], precision[i], recall[i], interval(right[i], counts[i]), f1[i]]
        for i in order
    ]
    head = ["class", "samples", "predicted", "precision", "recall", "95 % interval of recall", "F1"]
    yield table(head, rows)


def too_few(listed: Sequence[str]) -> Iterator[Html]:
    """Yield a warning that names the classes, if there are any, of which there are too few samples."""
    if listed:
        shown = ", ".join(listed[:12]) + (f" and {len(listed) - 12} more" if len(listed) > 12 else "")
        yield warning(f"Too few samples to judge these classes (fewer than {FEW}): {shown}.")


def wilson(right: int, count: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share; honest for few samples, and for shares of 0 and 1."""
    if count == 0:
        return 0.0, 1.0
    z, share = 1.959964, right / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * np.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return max(0.0, middle - half), min(1.0, middle + half)


def interval(right: int, count: int) -> str:
    """Return Wilson's interval as words."""
    low, high = wilson(right, count)
    return f"{low:.3f} to {high:.3f}"


def _confusion(confusion: Array, names: Sequence[str]) -> Iterator[Html]:
    wrong = confusion - np.diag(confusion.diagonal())
    if len(names) <= MAX_CLASSES:
        yield element("p", "Rows are the true class, columns the predicted one.", class_="soft")
        head = element("tr", element("th", "true \\ predicted"), *(element("th", name, scope="col") for name in names))
        shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
        rows = []
        for i, name in enumerate(names):
            cells = [
                element("td", confusion[i, j] or "", style=_shade(shares[i, j], i == j)) for j in range(len(names))
            ]
            rows.append(element("tr", element("th", name, scope="row"), *cells))
        yield element("div", element("table", head, *rows, class_="confusion"), class_="wide")
    order = np.argsort(-wrong, axis=None, kind="stable")[:10]
    pairs = [(*divmod(int(k), len(names)), int(wrong.flat[k])) for k in order if wrong.flat[k]]
    if pairs:
        yield element("h3", "Most frequent mistakes")
        yield table(["true", "predicted as", "times"], [[names[i], names[j], count] for i, j, count in pairs])


def _shade(share: float, is_right: bool) -> str:
    color = "0,114,178" if is_right else "213,94,0"
    return f"background:rgba({color},{0.75 * share**0.5:.2f})" if share else ""


def area_sections(scores: Array, truth: Array, names: Sequence[str], of: str) -> Html:
    """Return the section about ROC and precision-recall.

    Args:
        scores: [N, C].
        truth: Whether a sample is of a class, [N, C] of bool.
        names: Of the classes, [C].
        of: What the curves are of, in words.
    """
    return section("ROC and precision-recall", *_curves(scores, truth, names, of))


def _curves(scores: Array, truth: Array, names: Sequence[str], of: str) -> Iterator[Html]:
    from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

    areas = [
        (k, float(roc_auc_score(truth[:, k], scores[:, k])), float(average_precision_score(truth[:, k], scores[:, k])))
        for k in range(len(names))
        if truth[:, k].any() and not truth[:, k].all()
    ]
    if not areas:
        yield element("p", "Only one class is among the samples: there is nothing to tell apart.")
        return
    drawn = sorted(areas, key=lambda each: each[1])[:NUM_CURVES]
    shown = f" Drawn: the {len(drawn)} with the smallest area." if len(drawn) < len(areas) else ""
    mean_roc, mean_pr = np.mean([each[1] for each in areas]), np.mean([each[2] for each in areas])
    yield element(
        "p",
        f"For {of}. Mean area under ROC {mean_roc:.4f}, mean average precision {mean_pr:.4f}.{shown}",
        class_="soft",
    )
    roc, recalls = [], []
    for k, roc_area, precision_area in drawn:
        false_rate, true_rate, _ = roc_curve(truth[:, k], scores[:, k])
        roc.append(Series(f"{names[k]}: {roc_area:.3f}", false_rate, true_rate))
        precision, recall, _ = precision_recall_curve(truth[:, k], scores[:, k])
        recalls.append(Series(f"{names[k]}: {precision_area:.3f}", recall, precision))
    ends = (0.0, 1.0)
    yield chart("ROC", "false positive rate", "true positive rate", roc, ends, ends, diagonal=True)
    yield chart("Precision and recall", "recall", "precision", recalls, ends, ends)


def calibration(confidence: Array, is_right: Array) -> tuple[float, list[tuple[float, float, int]]]:
    """Return the expected calibration error and, for each bin that holds samples, (confidence, accuracy, samples).

    Guo et al. 2017, https://arxiv.org/abs/1706.04599, eq. 3, with ten bins of equal width.
    """
    bins = np.minimum((confidence * NUM_BINS).astype(int), NUM_BINS - 1)
    found = []
    for k in range(NUM_BINS):
        inside = bins == k
        if inside.any():
            found.append((float(confidence[inside].mean()), float(is_right[inside].mean()), int(inside.sum())))
    error = sum(count * abs(mean - accuracy) for mean, accuracy, count in found) / max(len(confidence), 1)
    return error, found


def calibration_section(confidence: Array, is_right: Array) -> Html:
    """Return the section about how sure the model is of its choices, and how often they are right, [N] each."""
    return section("Calibration", *_calibration(confidence, is_right))


def _calibration(confidence: Array, is_right: Array) -> Iterator[Html]:
    error, bins = calibration(confidence, is_right)
    mean, share = confidence.mean(), is_right.mean()
    verdict = "too sure of itself" if mean > share + 0.02 else "too modest" if mean < share - 0.02 else "about right"
    yield element(
        "p",
        f"Expected calibration error {error:.3f}. On average the model gives its choice {mean:.1%} and is right in "
        f"{share:.1%}: {verdict}. Each point is a tenth of the scale; on the dashed line, claims and results agree.",
    )
    titles = [f"{count} samples: claims {x:.1%}, right in {y:.1%}" for x, y, count in bins]
    points = Series("bins", [each[0] for each in bins], [each[1] for each in bins], "line", titles)
    yield chart("Calibration", "probability given", "share that is right", [points], (0, 1), (0, 1), diagonal=True)
    heads = [(k + 0.5) / NUM_BINS for k in range(NUM_BINS)]
    sizes, _ = np.histogram(confidence, NUM_BINS, (0, 1))
    bars = Series("samples", heads, sizes.tolist(), "bars", [f"{readable(float(size))} samples" for size in sizes])
    yield chart("How sure the model is", "probability given", "samples", [bars], (0, 1), (0, float(sizes.max())))
