"""Laws of what a config takes from the data: class weights of the training rows alone; lists become tensors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.utils.data import TensorDataset

from src.config import config_from_dict
from src.data.arrays import Arrays
from src.data.parts.facts import TrainingData
from src.data.parts.part import Part
from src.run.experiment import Experiment, build_experiment
from src.utils.errors import ConfigError, DataError


@given(classes=st.lists(st.integers(0, 3), min_size=4, max_size=60), others=st.lists(st.integers(0, 3), max_size=20))
def test_class_weights_make_the_classes_of_the_training_rows_count_alike(classes: list[int], others: list[int]) -> None:
    assume(set(classes) == set(range(max(classes + others) + 1)))
    targets = torch.tensor(classes + others)
    data = TrainingData(Part("train", Arrays(torch.zeros(len(targets), 1), targets), torch.arange(len(classes))))
    assert data.class_counts.tolist() == [classes.count(label) for label in sorted(set(classes))]
    per_class = data.class_weights * data.class_counts
    assert torch.allclose(per_class, per_class[:1]) and float(per_class.sum()) == pytest.approx(len(classes))


def test_what_the_dataset_says_goes_first_and_what_is_no_class_is_refused() -> None:
    own = Arrays(torch.zeros(3, 1), torch.tensor([0, 1, 1]))
    own.class_weights = [1.0, 5.0]  # type: ignore[attr-defined]
    assert TrainingData(Part("train", own)).class_weights.tolist() == [1, 5]
    with pytest.raises(DataError, match=r"data.class_counts}: targets are \[3\] of float32, not one class"):
        _ = TrainingData(Part("train", Arrays(torch.zeros(3, 1), torch.zeros(3)))).class_weights
    with pytest.raises(DataError, match="class 1 has no row in train"):
        _ = TrainingData(Part("train", Arrays(torch.zeros(2, 1), torch.tensor([0, 2])))).class_weights
    with pytest.raises(DataError, match="offers no `targets`"):
        _ = TrainingData(Part("train", TensorDataset(torch.zeros(2)))).class_weights


def digits(loss: object) -> Experiment:
    values = {
        "name": "weighted",
        "data": {"type": "digits.Digits", "split": {"val": 0.2}},
        "model": {"type": "mlp.MLP", "args": {"in_features": 64, "hidden": [4], "out_features": 10}},
        "loss": loss,
    }
    return build_experiment(config_from_dict(values), torch.device("cpu"))


@pytest.mark.parametrize("name", ["CrossEntropyLoss", "cross_entropy"])
@pytest.mark.parametrize("weight", [[1, 2, 3, 4, 5, 6, 7, 8, 9, 10], "${data.class_weights}"])
def test_a_loss_takes_weights_from_a_list_or_from_the_data(name: str, weight: object) -> None:
    experiment = digits({"type": name, "args": {"weight": weight}})
    counts = torch.as_tensor(experiment.parts["train"].targets()).bincount()
    weights = (
        torch.tensor(weight).float() if isinstance(weight, list) else len(experiment.parts["train"]) / (10.0 * counts)
    )
    outputs, targets = torch.randn(20, 10), torch.arange(20) % 10
    expected = torch.nn.functional.cross_entropy(outputs, targets, weight=weights)
    assert float(experiment.task.criterion(outputs, targets)) == pytest.approx(float(expected))  # type: ignore[operator]


def test_a_misspelt_value_of_the_data_is_named_with_the_dataset() -> None:
    with pytest.raises(ConfigError, match="Digits has no value `class_weigts`; did you mean `class_weights`"):
        digits({"type": "CrossEntropyLoss", "args": {"weight": "${data.class_weigts}"}})
