"""The test report of a run: what a model gave for each row, and how sure one can be of the numbers.

Axes: N samples, C classes, T targets.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from src.data.parts.part import Part
from src.logger.report.classes import class_sections
from src.logger.report.html import Html
from src.logger.report.labels import label_sections
from src.logger.report.page import warning, write_page
from src.logger.report.run import about, curves, results
from src.logger.report.samples import Sample, Show
from src.logger.report.values import value_sections
from src.model.metric import MetricSet
from src.trainer.meters import Meters
from src.trainer.results.pictures import draw_areas, draw_classes, draw_values, has_matplotlib
from src.trainer.results.predictions import Decode, Meaning, named, row_names
from src.trainer.results.slices import slice_sections
from src.trainer.task import StepOutput, Task

NUM_RESAMPLES, MIN_RESAMPLES, MAX_SECONDS = 1000, 100, 5.0
MAX_KEPT = 100_000_000
"""Numbers that are kept at most, 400 MB; beyond that there are no details."""
FEW_ROWS = 100
OWN_UNITS = "metrics are in the target's own units; the loss, and all numbers of the training, are of the scaled target"
MAX_SHOWN_NUMBERS = 12


class KeptMeters(Meters):
    """Meters that keep outputs [N], [N, C] and targets [N], [N, T] of every batch, on the CPU.

    Args:
        metrics: Of the run.
        device: Where sums are kept.
        decode: Puts outputs and targets into the target's own units, in which metrics are; the loss stays as trained.
    """

    def __init__(self, metrics: MetricSet, device: torch.device, decode: Decode | None = None) -> None:
        self.decode = decode
        self._kept: list[tuple[Tensor, Tensor]] | None = []
        self._num_kept = 0
        super().__init__(metrics, device)

    def reset(self) -> None:
        super().reset()
        self._kept, self._num_kept = [], 0

    def update(self, output: StepOutput) -> None:
        """Add one batch."""
        pair = output.outputs, output.targets
        own = in_own_units(*pair, self.decode)
        super().update(replace(output, outputs=own[0], targets=own[1]))
        fits = all(isinstance(each, Tensor) and each.dim() in (1, 2) for each in pair)
        if self._kept is not None and fits and len(pair[0]) == len(pair[1]):
            self._num_kept += pair[0].numel() + pair[1].numel()
            self._kept.append((pair[0].detach().cpu(), pair[1].detach().cpu()))  # device sync
        else:
            self._kept = None
        if self._num_kept > MAX_KEPT:
            self._kept = None

    def rows(self) -> tuple[Tensor, Tensor] | None:
        """Return all outputs and targets, or None where they are not one row per sample."""
        if not self._kept:
            return None
        outputs, targets = zip(*self._kept, strict=True)
        return torch.cat(outputs), torch.cat(targets)


def in_own_units(outputs: Any, targets: Any, decode: Decode | None) -> tuple[Any, Any]:
    """Return outputs and targets in the target's own units, if there are such and there is an output per target."""
    if decode is None or not (isinstance(outputs, Tensor) and isinstance(targets, Tensor)):
        return outputs, targets
    if outputs.numel() != targets.numel():
        return outputs, targets
    dtype = torch.float32 if outputs.device.type == "mps" else torch.float64
    one, other = (
        torch.as_tensor(decode(each), dtype=dtype, device=each.device).reshape(each.shape)
        for each in (outputs, targets)
    )
    return one, other


def bootstrap(
    task: Task, metrics: MetricSet, outputs: Tensor, targets: Tensor, decode: Decode | None = None
) -> tuple[dict[str, tuple[float, float]], int]:
    """Return the 95 % percentile interval of loss and metrics by name, and the number of resamples.

    Each resample draws N of the N rows with replacement; a metric that has no value for one (a class is missing) is
    left out there. Stops early when it takes long.
    """
    generator = np.random.default_rng(0)  # the rows that the sections about numbers draw
    own_outputs, own_targets = in_own_units(outputs, targets, decode)
    drawn: dict[str, list[float]] = {}
    device = next((each.device for each in getattr(task.criterion, "buffers", list)()), torch.device("cpu"))
    started_s = time.perf_counter()
    num_resamples = 0
    has_usual_loss = type(task).step is Task.step and task.is_of_rows  # else only the task knows what it is made of
    while num_resamples < NUM_RESAMPLES:
        if num_resamples >= MIN_RESAMPLES and time.perf_counter() - started_s > MAX_SECONDS:
            break
        rows = torch.from_numpy(generator.integers(len(outputs), size=len(outputs)))
        some_outputs, some_targets = outputs[rows].to(device), targets[rows].to(device)
        num_resamples += 1
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that a class is missing among these rows
                metrics.reset()
                metrics.update(own_outputs[rows].to(device), own_targets[rows].to(device))
                loss = {"loss": float(task.loss(some_outputs, some_targets)[0])} if has_usual_loss else {}
                values = {**loss, **metrics.compute()}
        except (ValueError, RuntimeError):  # the ways of scikit-learn and torchmetrics to say: there is no such value
            continue
        for name, value in values.items():
            if value == value:
                drawn.setdefault(name, []).append(value)
    enough = {name: values for name, values in drawn.items() if len(values) >= MIN_RESAMPLES // 2}
    ends = {name: np.percentile(values, [2.5, 97.5]) for name, values in enough.items()}
    return {name: (float(low), float(high)) for name, (low, high) in ends.items()}, num_resamples


def write_report(
    path: Path, run: Path, title: str, subtitle: str, part: Part, task: Task, meters: KeptMeters,
    values: Mapping[str, float], meaning: Meaning, slices: Sequence[str] = (),
) -> dict[str, tuple[float, float]]:  # fmt: skip
    """Write the report on `part`, one HTML file and its figures beside it, and return the intervals of its numbers.

    Args:
        path: The file; it is replaced.
        run: The run's folder.
        title: Heading.
        subtitle: Line below it.
        part: What was tested.
        task: How it was tested.
        meters: What `evaluate` filled.
        values: What `evaluate` returned.
        meaning: Of the outputs.
        slices: Columns of the data by whose values the results are shown too.

    Raises:
        DataError: There is no such column.
    """
    kept = meters.rows()
    if kept and not part.is_iterable and len(kept[0]) != len(part):
        kept = None
    intervals, num_resamples = (
        bootstrap(task, meters.metrics, *kept, meters.decode) if kept and len(kept[0]) > 1 else ({}, 0)
    )
    sections: list[Html] = []
    if kept and len(kept[0]) < FEW_ROWS:
        sections.append(
            warning(f"Only {len(kept[0])} samples: take every number below as rough, and see its interval.")
        )
    sections.append(results(values, intervals, num_resamples))
    if kept:
        figures = path.parent / part.name
        figures.mkdir(parents=True, exist_ok=True)
        sections += slice_sections(part, slices, meters.metrics, *in_own_units(*kept, meters.decode))
        sections += _detailed(part, meaning, *kept, figures)
    elif slices:
        sections.append(warning("No slices: outputs are not one row per sample."))
    write_page(path, title, subtitle, [*sections, *curves(run / "metrics.csv"), *about(run)])
    return intervals


def _detailed(part: Part, meaning: Meaning, outputs: Tensor, targets: Tensor, folder: Path) -> Iterator[Html]:
    probabilities = meaning.probabilities(outputs)
    show = _shower(part)
    if probabilities is not None:
        labels = targets.reshape(len(targets), -1)
        num_classes = probabilities.shape[1]
        if labels.shape[1] != 1:
            return  # soft labels
        known = (labels[:, 0] >= 0) & (labels[:, 0] < num_classes)  # others are ignored by the loss
        names = named(meaning.class_names, num_classes)
        positions = known.nonzero()[:, 0].tolist()
        if positions:
            chosen = probabilities[known].double().numpy(), labels[known, 0].long().numpy()
            yield from class_sections(*chosen, names, lambda position: show(positions[position]))
            if has_matplotlib():
                draw_classes(folder, *chosen, names)
    elif meaning.kind(outputs) == "binary" and outputs.shape == targets.shape:
        if bool(((targets == 0) | (targets == 1)).all()):  # else soft labels
            names = named(meaning.class_names, outputs.shape[1])
            judged = torch.sigmoid(outputs.double()).numpy(), (targets == 1).numpy()
            yield from label_sections(*judged, names, show)
            if has_matplotlib():
                draw_areas(folder, *judged, names)
    elif outputs.numel() == targets.numel() and meaning.kind(outputs) == "values":
        decode = getattr(part.dataset, "decode", None)
        pair = [values.float().reshape(len(values), -1) for values in (outputs, targets)]
        predicted, true = (np.asarray(decode(each) if decode else each, dtype=float) for each in pair)
        names = list(getattr(part.dataset, "target_names", None) or [])
        if len(names) != true.shape[1]:
            names = ["target"] if true.shape[1] == 1 else [f"target {k}" for k in range(true.shape[1])]
        yield from value_sections(predicted, true, names, show)
        if has_matplotlib():
            draw_values(folder, predicted, true, names)


def _shower(part: Part) -> Show:
    """Return the function that shows a sample of `part`: its image, table row, text or numbers."""

    def show(position: int) -> Sample:
        name = row_names(part, position, 1)[0]
        if part.is_iterable:
            return Sample(name)
        row, dataset = int(part.row_ids()[position]), part.dataset
        if hasattr(dataset, "cells"):
            return Sample(name, cells=dataset.cells(row))
        sample = dataset[row]
        inputs = sample[0] if isinstance(sample, (tuple, list)) and len(sample) else sample
        if isinstance(inputs, str):
            return Sample(name, cells={"text": inputs})
        array = np.asarray(inputs) if isinstance(inputs, (Tensor, np.ndarray)) else None
        if array is None:
            return Sample(name)
        if array.ndim == 3 and (array.shape[0] in (1, 3, 4) or array.shape[2] in (1, 3, 4)):
            return Sample(name, image=array)
        if array.ndim == 2 and getattr(dataset, "is_image", False):
            return Sample(name, image=array[None])
        numbers = array.reshape(-1)[:MAX_SHOWN_NUMBERS].tolist()
        return Sample(name, cells={f"input {k}": value for k, value in enumerate(numbers)})

    return show
