"""Laws of metrics: what they say about many batches is what they would say about all rows at once."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import sklearn.metrics as sk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import train
from src.config import Component
from src.config.build import build
from src.model.accumulate import MeanMetric, Metric
from src.model.metric import (
    MetricSet,
    WholeSplit,
    accuracy,
    as_metric,
    f1,
    mae,
    mse,
    perplexity,
    precision,
    r2,
    recall,
    top_k_accuracy,
    whole_split,
)
from src.trainer.checkpoints.store import load_checkpoint
from src.utils.errors import DataError


@whole_split
def median_error(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).abs().median()


def both_errors(outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    return {"l1": (outputs - targets).abs().mean(), "l2": (outputs - targets).square().mean()}


def classes_data(seed: int, rows: int, num_classes: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(num_classes, (rows,), generator=generator)
    targets[:num_classes] = torch.arange(num_classes)
    logits = torch.randn(rows, num_classes, generator=generator)
    return logits + torch.nn.functional.one_hot(targets, num_classes), targets


def regression_data(seed: int, rows: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    targets = 100 + 5 * torch.randn(rows, 2, generator=generator)
    return targets + torch.randn(rows, 2, generator=generator), targets


def in_batches(metric: Any, outputs: Tensor, targets: Tensor, size: int) -> Any:
    metric = as_metric(metric)
    for start in range(0, len(outputs), size):
        metric.update(outputs[start : start + size], targets[start : start + size])
    return metric.compute()


CLASSIFICATION: list[Any] = [
    accuracy, precision, recall, f1, partial(f1, average="weighted"), partial(f1, average="none"),
    partial(accuracy, ignore_index=1), partial(top_k_accuracy, k=2), sk.f1_score, sk.roc_auc_score, sk.log_loss,
    sk.average_precision_score, sk.balanced_accuracy_score, partial(sk.top_k_accuracy_score, k=2),
    partial(sk.roc_auc_score, multi_class="ovo"), sk.matthews_corrcoef,
]  # fmt: skip
REGRESSION: list[Any] = [mae, mse, r2, sk.r2_score, sk.mean_absolute_error, median_error, both_errors]


@given(seed=st.integers(0, 2**31), data=st.sampled_from(CLASSIFICATION), size=st.sampled_from([1, 7, 100, 1004, 1005]))
@settings(max_examples=60, deadline=None)
def test_a_classification_metric_of_batches_equals_that_of_all_1005_rows(seed: int, data: Any, size: int) -> None:
    outputs, targets = classes_data(seed, 1005)
    assert in_batches(data, outputs, targets, size) == pytest.approx(in_batches(data, outputs, targets, 1005), abs=1e-9)


@given(seed=st.integers(0, 2**31), data=st.sampled_from(REGRESSION), size=st.sampled_from([1, 7, 100, 1004, 1005]))
@settings(max_examples=60, deadline=None)
def test_a_regression_metric_of_batches_equals_that_of_all_1005_rows(seed: int, data: Any, size: int) -> None:
    outputs, targets = regression_data(seed, 1005)
    assert in_batches(data, outputs, targets, size) == pytest.approx(in_batches(data, outputs, targets, 1005), rel=1e-6)


@given(seed=st.integers(0, 2**31), rows=st.integers(8, 300), num_classes=st.integers(3, 6))
@settings(max_examples=40, deadline=None)
def test_own_classification_metrics_say_what_scikit_learn_says(seed: int, rows: int, num_classes: int) -> None:
    outputs, targets = classes_data(seed, rows, num_classes)
    ids, t = outputs.argmax(1).numpy(), targets.numpy()
    options: dict[str, Any] = {"average": "macro", "zero_division": 0}
    assert in_batches(accuracy, outputs, targets, 100) == pytest.approx(sk.accuracy_score(t, ids), rel=1e-12)
    assert in_batches(precision, outputs, targets, 100) == pytest.approx(sk.precision_score(t, ids, **options))
    assert in_batches(recall, outputs, targets, 100) == pytest.approx(sk.recall_score(t, ids, **options))
    assert in_batches(f1, outputs, targets, 100) == pytest.approx(sk.f1_score(t, ids, **options))
    weighted = in_batches(partial(f1, average="weighted"), outputs, targets, 100)
    assert weighted == pytest.approx(sk.f1_score(t, ids, average="weighted", zero_division=0))
    assert in_batches(sk.roc_auc_score, outputs, targets, 100) == pytest.approx(
        sk.roc_auc_score(t, outputs.double().softmax(1).numpy(), multi_class="ovr")
    )


@given(seed=st.integers(0, 2**31), rows=st.integers(2, 300), offset=st.sampled_from([0.0, 1e3, 1e8]))
@settings(max_examples=40, deadline=None)
def test_r2_says_what_scikit_learn_says_also_far_from_zero(seed: int, rows: int, offset: float) -> None:
    outputs, targets = regression_data(seed, rows)
    outputs, targets = outputs.double() + offset, targets.double() + offset
    expected = sk.r2_score(targets.numpy(), outputs.numpy())
    assert in_batches(r2, outputs, targets, 17) == pytest.approx(expected, abs=1e-6)


def test_r2_of_targets_that_are_all_alike_is_0_or_1_and_of_one_row_undefined() -> None:
    same = torch.ones(5, 1)
    assert in_batches(r2, same, same, 2) == 1.0
    assert in_batches(r2, same + 1, same, 2) == 0.0
    assert in_batches(r2, same[:1], same[:1], 2) != in_batches(r2, same[:1], same[:1], 2)  # nan


@pytest.mark.parametrize("shape", [(200,), (200, 1)])
def test_one_logit_per_row_means_two_classes(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(2, (200,), generator=generator)
    logits = torch.randn(200, generator=generator) + targets
    ids, t = (logits > 0).long().numpy(), targets.numpy()
    for metric, expected in (
        (accuracy, sk.accuracy_score(t, ids)),
        (sk.f1_score, sk.f1_score(t, ids)),
        (sk.roc_auc_score, sk.roc_auc_score(t, logits.numpy())),
        (sk.log_loss, sk.log_loss(t, logits.sigmoid().numpy())),
    ):
        assert in_batches(metric, logits.reshape(shape), targets, 33) == pytest.approx(expected, rel=1e-5)
    two = torch.stack([torch.zeros(200), logits], dim=1)
    assert in_batches(sk.roc_auc_score, two, targets, 33) == pytest.approx(sk.roc_auc_score(t, logits.numpy()))


def test_dense_predictions_and_sequences_count_every_place() -> None:
    targets = torch.randint(3, (4, 5, 6), generator=torch.Generator().manual_seed(0))
    logits = torch.randn(4, 3, 5, 6, generator=torch.Generator().manual_seed(1))
    expected = sk.f1_score(targets.flatten(), logits.argmax(1).flatten(), average="macro")
    assert in_batches(f1, logits, targets, 3) == pytest.approx(expected)
    assert in_batches(sk.f1_score, logits, targets, 3) == pytest.approx(expected)
    assert in_batches(f1, logits.movedim(1, -1), targets, 3) == pytest.approx(expected)


def test_a_metric_of_several_values_gives_one_per_name_and_one_per_class() -> None:
    outputs, targets = regression_data(0, 50)
    assert set(in_batches(both_errors, outputs, targets, 7)) == {"l1", "l2"}
    outputs, targets = classes_data(0, 50)
    values = MetricSet({"f1": partial(f1, average="none")})
    values.update(outputs, targets)
    assert list(values.compute()) == ["f1/0", "f1/1", "f1/2", "f1/3"]


def test_metrics_that_need_the_same_share_it() -> None:
    metrics = MetricSet(
        {"a": accuracy, "p": precision, "r": recall, "f": f1, "auc": sk.roc_auc_score, "f1": sk.f1_score}
    )
    outputs, targets = classes_data(3, 1005)
    for rows, labels in zip(outputs.split(100), targets.split(100), strict=True):
        metrics.update(rows, labels)
    assert list(metrics.state_dict()) == ["a", "auc"]
    alone = {
        name: in_batches(m, outputs, targets, 100) for name, m in {"a": accuracy, "f": f1, "f1": sk.f1_score}.items()
    }
    assert {name: metrics.compute()[name] for name in alone} == pytest.approx(alone)


class LargestError:
    """A user's own object, without any state methods."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.largest = torch.tensor(0.0)
        self.seen: list[int] = []

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.largest = torch.maximum(self.largest, (outputs - targets).abs().max())
        self.seen.append(len(outputs))

    def compute(self) -> Tensor:
        return self.largest


@pytest.mark.parametrize("data", [*CLASSIFICATION, *REGRESSION, LargestError])
def test_a_metric_stopped_in_mid_epoch_goes_on_bit_for_bit_from_a_checkpoint(data: Any) -> None:
    outputs, targets = (classes_data if data in CLASSIFICATION else regression_data)(5, 305)

    def fresh() -> Metric:
        return as_metric(data() if isinstance(data, type) else data)

    whole, first, second = fresh(), fresh(), fresh()
    for number, start in enumerate(range(0, 305, 100)):
        batch = outputs[start : start + 100], targets[start : start + 100]
        whole.update(*batch)
        if number == 2:
            file = io.BytesIO()
            torch.save(first.state_dict(), file)
            file.seek(0)
            second.load_state_dict(torch.load(file, weights_only=True))
        (first if number < 2 else second).update(*batch)
    assert second.compute() == whole.compute()


def test_an_object_that_keeps_what_no_checkpoint_can_hold_says_which_attribute() -> None:
    metric = LargestError()
    metric.seen = {1, 2}  # type: ignore[assignment]
    with pytest.raises(TypeError, match="LargestError keeps `seen` of type set"):
        as_metric(metric).state_dict()


def test_reset_forgets_everything_and_no_rows_are_nan() -> None:
    outputs, targets = classes_data(0, 20)
    for metric in (as_metric(f1), as_metric(sk.roc_auc_score), MeanMetric(lambda o, t: o.mean())):
        metric.update(outputs, targets)
        metric.reset()
        assert metric.compute() != metric.compute()  # nan


def test_a_metric_that_is_not_defined_on_these_rows_says_so() -> None:
    with pytest.raises(DataError, match=r"metric f1_score over 3 rows: .*multiclass"):
        in_batches(partial(sk.f1_score, average="binary"), torch.randn(3, 4), torch.tensor([0, 1, 2]), 3)
    with pytest.raises(ValueError, match=r"target class 7 is not in 0\.\.3"):
        as_metric(accuracy).update(torch.randn(2, 4), torch.tensor([1, 7]))
    with pytest.raises(ValueError, match=r"outputs \[2, 4\] and targets \[3\]"):
        as_metric(accuracy).update(torch.randn(2, 4), torch.tensor([1, 2, 3]))
    with pytest.raises(TypeError, match="a metric is a function"):
        as_metric(3)


def test_update_keeps_no_graph_and_whole_split_copies_what_it_keeps() -> None:
    outputs = torch.randn(4, 1, requires_grad=True)
    metric = WholeSplit(median_error)
    metric.update(outputs, torch.zeros(4, 1))
    before = metric.compute()
    with torch.no_grad():
        outputs.zero_()
    assert metric.compute() == before
    mean = MeanMetric(mse)
    mean.update(outputs, torch.zeros(4, 1))
    assert not any(total.requires_grad for total in mean.state_dict()["sums"].values())


@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=5), last=st.booleans(), seed=st.integers(0, 9))
def test_perplexity_is_that_of_all_words_together_whatever_batches_and_padding(
    lengths: list[int], last: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    metric, rows, words = as_metric(partial(perplexity, ignore_index=0)), [], []
    for length in lengths:
        outputs = torch.randn(3, length, 7, generator=generator)
        targets = torch.randint(0, 7, (3, length), generator=generator)
        targets[0, 0] = 1
        metric.update(outputs if last else outputs.movedim(-1, 1), targets)
        rows.append(outputs.flatten(0, 1))
        words.append(targets.flatten())
    every, known = torch.cat(rows), torch.cat(words)
    expected = torch.nn.functional.cross_entropy(every[known != 0], known[known != 0]).exp()
    assert metric.compute() == pytest.approx(float(expected), rel=1e-5)
    assert float(perplexity(every, known, 0)) == pytest.approx(float(expected), rel=1e-5)


def test_values_of_classes_are_called_by_the_names_of_the_classes() -> None:
    outputs, targets = torch.eye(3), torch.tensor([0, 1, 1])
    metrics = MetricSet({"f1": partial(f1, average="none"), "errors": both_errors}, ["ant", "bee", "cow"])
    metrics.update(outputs, torch.nn.functional.one_hot(targets, 3)[:, 0] * 0 + targets)
    assert {name for name in metrics.compute() if name.startswith("f1")} == {"f1/ant", "f1/bee", "f1/cow"}
    assert set(metrics.numbers().compute()) == set(metrics.compute())


RUN = """
name: monitored
data: {{type: scikit.ScikitLearn, args: {{name: iris}}, split: {{val: 0.3, stratify: true}}}}
model: {{type: mlp.MLP, args: {{in_features: 4, hidden: [8], out_features: 3}}}}
loss: CrossEntropyLoss
metrics: [perplexity, {{name: recall, type: recall, args: {{average: none}}}}, {{type: {type}, name: other}}]
optimizer: {{type: Adam, args: {{lr: 0.05}}}}
trainer: {{epochs: 2, device: cpu, save_dir: '{folder}/saved', monitor: {monitor}}}
logger: {{bar: false, tensorboard: false}}
"""


@pytest.mark.parametrize(
    "monitor", ["min val/perplexity", "max val/recall/versicolor", "min train/loss", "max val/other/high"]
)
def test_any_logged_value_may_be_watched(tmp_path: Path, monitor: str) -> None:
    name = f"measures_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(
        "def spread(outputs, targets):\n    return {'high': outputs.amax(1).mean(), 'low': outputs.amin(1).mean()}\n"
    )
    (tmp_path / "run.yaml").write_text(RUN.format(folder=tmp_path, monitor=monitor, type=f"{name}.spread"))
    assert train.main(["-c", str(tmp_path / "run.yaml")]) == 0
    (run,) = tmp_path.glob("saved/monitored/*")
    table = pd.read_csv(run / "metrics.csv")
    mode, column = monitor.split()
    values = table[column]
    best = load_checkpoint(run / "checkpoints" / "best.pt")["progress"]["epoch"]
    assert best == 1 + int(values.argmin() if mode == "min" else values.argmax())
    assert {"val/recall/setosa", "val/other/low", "train/perplexity"} <= set(table.columns)


def test_metrics_of_torchmetrics_are_found_by_name_and_exact() -> None:
    pytest.importorskip("torchmetrics")
    metric = as_metric(build("metrics", Component("torchmetrics.classification.MulticlassF1Score", {"num_classes": 5})))
    outputs, targets = torch.randn(105, 5), torch.randint(0, 5, (105,))
    for rows in torch.arange(105).split(10):
        metric.update(outputs[rows], targets[rows])
    assert metric.compute() == pytest.approx(sk.f1_score(targets, outputs.argmax(1), average="macro"), abs=1e-6)
