"""What is looked at rather than read: counts are exact, pictures are drawn, and watching changes nothing."""

from __future__ import annotations

from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix as sklearn_confusion
from sklearn.metrics import precision_score, recall_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from src.logger.pictures import confusion, labelled
from src.model.figures import NUM_THRESHOLDS
from src.model.metric import MetricSet, accuracy, confusion_matrix, pr_curve
from src.trainer.checkpoints.resume import open_checkpoint
from tests.commands_kit import called
from tests.conftest import ROOT

MODEL = "model={type: mlp.MLP, args: {in_features: 64, hidden: [32], out_features: 10, dropout: 0.5}}"


def run_training(*words: str) -> CompletedProcess[str]:
    given = ["-c", "configs/digits.yaml", "trainer.epochs=2", "lr_scheduler.warmup_steps=0", MODEL, *words]
    return called("train.py", *given, cwd=ROOT)


@given(st.integers(1, 60), st.integers(2, 5), st.integers(1, 25), st.integers(0, 10**6))
def test_a_confusion_matrix_over_ragged_batches_is_that_of_all_rows(n: int, k: int, batch: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    outputs, targets = torch.randn(n, k, generator=generator), torch.randint(k, (n,), generator=generator)
    metrics = MetricSet({"confusion_matrix": confusion_matrix, "accuracy": accuracy})
    for rows in torch.arange(n).split(batch):
        metrics.update(outputs[rows], targets[rows])
    kind, counts = metrics.figures()["confusion_matrix"]
    assert kind == "confusion_matrix"
    assert np.array_equal(counts.numpy(), sklearn_confusion(targets, outputs.argmax(1), labels=range(k)))
    assert list(metrics.compute()) == ["accuracy"]


def test_rows_of_the_ignored_class_are_not_counted() -> None:
    outputs, targets = torch.tensor([[2.0, 1.0], [2.0, 1.0], [0.0, 1.0]]), torch.tensor([0, -1, 1])
    assert confusion_matrix(outputs, targets, ignore_index=-1).tolist() == [[1, 0], [0, 1]]


@given(st.integers(2, 40), st.integers(1, 17), st.booleans(), st.integers(0, 10**6))
def test_a_pr_curve_has_the_precision_and_recall_of_every_threshold(n: int, batch: int, two: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    outputs = torch.randn((n,) if two else (n, 3), generator=generator)
    targets = torch.randint(2 if two else 3, (n,), generator=generator)
    metrics = MetricSet({"pr_curve": pr_curve})
    for rows in torch.arange(n).split(batch):
        metrics.update(outputs[rows], targets[rows])
    _, counts = metrics.figures()["pr_curve"]
    scores = outputs[:, None].double().sigmoid() if two else outputs.softmax(1).double()
    for k in range(len(counts)):
        truth = targets == (1 if two else k)
        for at in (0, 31, 63, NUM_THRESHOLDS - 1):
            chosen = (scores[:, k] * (NUM_THRESHOLDS - 1)).floor() >= at
            hits, misses = counts[k, :, at].tolist()
            assert (hits, misses) == (int((chosen & truth).sum()), int((chosen & ~truth).sum()))
            assert hits / max(hits + misses, 1) == precision_score(truth, chosen, zero_division=0)
            assert hits / max(int(counts[k, 0, 0]), 1) == recall_score(truth, chosen, zero_division=0)


@pytest.mark.parametrize("num_classes", [1, 3, 10, 200])
def test_a_confusion_matrix_is_drawn_green_where_right_and_red_where_wrong(num_classes: int) -> None:
    counts = np.zeros((num_classes, num_classes), dtype=int)
    counts[0, 0] = 7
    counts[-1, 0] += 2
    picture = confusion(counts, [f"a class with a very long name {k}" for k in range(num_classes)])
    colours = {tuple(pixel) for pixel in picture.reshape(-1, 3).tolist()}
    assert picture.dtype == np.uint8 and max(picture.shape) < 1100
    assert (26, 127, 55) in colours or num_classes == 1
    assert (207, 34, 46) in colours or num_classes == 1


def test_a_label_below_an_image_never_makes_it_wider() -> None:
    picture = labelled(np.zeros((2, 1, 8, 8)), ["a label that is far too long for eight pixels", ""], [True, False])
    assert picture.shape == (2, 96 + 17, 96, 3)


def test_watching_changes_nothing_and_every_view_is_in_the_event_files(tmp_path: Path) -> None:
    views = [
        "metrics=[accuracy, confusion_matrix, pr_curve]",
        "hooks=[views.Graph, {type: views.Embedding, args: {module: layers.1, num_rows: 50}}]",
    ]
    plain = ["metrics=[accuracy]", "logger.num_images=0"]
    states = []
    for name, asked in (("watched", views), ("plain", plain)):
        run_training(*asked, f"trainer.save_dir={tmp_path}", f"name={name}").check_returncode()
        path, state = open_checkpoint(next((tmp_path / name).iterdir()))
        states.append(state["model"])
        if name == "watched":
            events = path / "events"
    assert all(torch.equal(a, b) for a, b in zip(*(state.values() for state in states), strict=True))

    val = EventAccumulator(str(events / "val"), {"images": 0, "tensors": 0})
    val.Reload()
    assert set(val.Tags()["images"]) == {"confusion_matrix", "predictions"}
    assert [event.step for event in val.Images("confusion_matrix")] == [40, 80]
    assert set(val.Tags()["tensors"]) == {f"pr_curve/{digit}" for digit in range(10)}
    train = EventAccumulator(str(events / "train"))
    train.Reload()
    assert len(train.Graph().node) > 10
    vectors = (events / "projector" / "val_layers.1.tsv").read_text().splitlines()
    labels = (events / "projector" / "val_layers.1.labels.tsv").read_text().splitlines()
    assert len(vectors) == len(labels) == 50 and {len(line.split("\t")) for line in vectors} == {32}


def test_a_layer_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    hooks = "hooks=[{type: views.Embedding, args: {module: fc1}}]"
    for more in ((), ("--check",)):
        result = run_training(hooks, f"trainer.save_dir={tmp_path / 'runs'}", *more)
        assert result.returncode == 2 and "the model has no module 'fc1'; it has layers, " in result.stderr
        assert result.stderr.startswith("error: command line #") and len(result.stderr.splitlines()) == 1
        assert not (tmp_path / "runs").exists()


def test_a_hook_that_refuses_at_the_start_leaves_no_folder(tmp_path: Path) -> None:
    (tmp_path / "late.py").write_text(
        "from src.trainer.hooks import Hook\nfrom src.utils.errors import ConfigError\n\n\nclass Late(Hook):\n"
        "    def on_fit_start(self, trainer):\n        raise ConfigError('hooks: late.Late: cannot work')\n"
    )
    result = run_training("hooks=[late.Late]", f"trainer.save_dir={tmp_path / 'runs'}", "--trust", f"{tmp_path}/")
    assert result.returncode == 2 and "hooks: late.Late: cannot work" in result.stderr, result.stderr
    assert not (tmp_path / "runs").exists() and "Traceback" not in result.stderr
