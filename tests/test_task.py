"""Batches of any shape reach the model and the loss as the config says."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from src.trainer.task import Task
from src.utils.errors import DataError

X, M, Y = torch.randn(4, 3), torch.rand(4, 3), torch.tensor([0, 1, 2, 0])
Row = namedtuple("Row", ["image", "mask", "label"])


class TwoInputs(nn.Module):
    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        return image * mask


class Named:
    def __init__(self) -> None:
        self.image, self.mask, self.label = X, M, Y


@pytest.mark.parametrize(
    ("batch", "task"),
    [
        ({"image": X, "mask": M, "label": Y}, {"inputs": ["image", "mask"], "targets": "label"}),
        ({"image": X, "mask": M, "label": Y}, {"inputs": {"mask": "mask", "image": "image"}, "targets": "label"}),
        ((X, Y, M), {"inputs": [0, 2], "targets": 1}),
        (Row(X, M, Y), {"inputs": ["image", "mask"], "targets": "label"}),
        (Named(), {"inputs": ["image", "mask"], "targets": "label"}),
    ],
)
def test_parts_of_a_batch_go_where_the_config_says(batch: Any, task: dict[str, Any]) -> None:
    output = Task(nn.CrossEntropyLoss(), **task).step(TwoInputs(), batch)
    assert torch.equal(output.outputs, X * M)
    assert torch.equal(output.targets, Y)
    assert torch.equal(output.loss, nn.functional.cross_entropy(X * M, Y))


def test_several_targets_come_as_a_dict_by_the_names_of_a_mapping() -> None:
    def both(outputs: Tensor, targets: dict[str, Tensor]) -> Tensor:
        return (outputs - targets["size"]).abs().mean() + nn.functional.cross_entropy(outputs, targets["kind"])

    task = Task(both, inputs="image", targets={"kind": "label", "size": "mask"})
    output = task.step(nn.Identity(), {"image": X, "label": Y, "mask": M})
    assert output.targets.keys() == {"kind", "size"} and torch.equal(output.targets["size"], M)
    assert torch.equal(output.loss, (X - M).abs().mean() + nn.functional.cross_entropy(X, Y))
    with pytest.raises(DataError, match=r"task.targets: no 'mask' in a batch; it is a dict with image, label"):
        task.step(nn.Identity(), {"image": X, "label": Y})


def test_several_losses_are_added_with_their_weights_and_logged_by_name() -> None:
    terms = {"mse": (nn.MSELoss(), 0.5), "mae": (nn.L1Loss(), 2.0)}
    output = Task(terms).step(nn.Identity(), (X, M))
    mse, mae = nn.functional.mse_loss(X, M), nn.functional.l1_loss(X, M)
    assert torch.allclose(output.loss, 0.5 * mse + 2.0 * mae)
    assert output.scalars == {"mse": mse, "mae": mae}


def test_prediction_needs_no_targets() -> None:
    assert torch.equal(Task(nn.CrossEntropyLoss()).predict(nn.Identity(), [X]), X)
    assert torch.equal(Task(nn.CrossEntropyLoss(), inputs="a", targets="b").predict(nn.Identity(), {"a": X}), X)


@pytest.mark.parametrize(
    ("task", "batch", "message"),
    [
        ({}, {"text": X, "label": Y}, r"a batch is a mapping with text, label; say what is what.*inputs: text"),
        ({"inputs": "img"}, {"image": X}, r"task.inputs: no 'img' in a batch; it is a dict with image"),
        ({"inputs": 3}, (X, Y), r"task.inputs: no 3 in a batch; it is a tuple with 2 elements"),
        ({}, (X,), r"a batch holds no targets, and the loss needs them"),
        ({"inputs": 0, "targets": 7}, (X, Y), r"task.targets: no 7 in a batch; it is a tuple with 2 elements"),
        (
            {"inputs": "image", "targets": "lable"},
            {"image": X, "label": Y},
            r"task.targets: no 'lable' in a batch; it is a dict with image, label; did you mean `label`\?",
        ),
        ({"inputs": "image", "targets": ["label", "b"]}, {"image": X, "label": Y}, r"task.targets: no 'b' in a batch"),
    ],
)
def test_a_batch_that_is_not_as_said_is_named_with_what_it_holds(task: Any, batch: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Task(nn.CrossEntropyLoss(), **task).step(nn.Identity(), batch)


def test_a_loss_that_fails_without_a_word_is_named_with_its_error() -> None:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        raise ValueError

    with pytest.raises(DataError, match=r"loss loss failed on outputs \[4, 3\].*: ValueError"):
        Task(loss).step(nn.Identity(), (X, Y))
