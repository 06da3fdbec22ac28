"""Batches of any kind are moved, counted and opened; losses and models of any form are called as they need it."""

from __future__ import annotations

from collections import UserDict, namedtuple
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from src.model.accumulate import num_rows
from src.model.criterion import second_argument
from src.trainer.nonfinite import tensors_in
from src.trainer.task import Task
from src.utils.device import to_device
from src.utils.errors import DataError

X, M, Y = torch.randn(4, 3), torch.rand(4, 3), torch.tensor([0, 1, 2, 0])
Row = namedtuple("Row", ["image", "label"])


@dataclass(frozen=True)
class Sample:
    image: Tensor
    words: list[str]
    label: Tensor
    made: int = field(init=False, default=3)


class Graph:
    """A graph object as libraries have them: `to` moves it, and it has no length."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def to(self, device: torch.device) -> Graph:
        return Graph(self.x.to(device), self.y.to(device))


BATCHES: dict[str, Any] = {
    "tensor": X,
    "one": (X,),
    "three": (X, M, Y),
    "list": [X, Y],
    "five": (X, M, Y, 1.0, ["a"] * 4),
    "dict": {"image": X, "label": Y},
    "named tuple": Row(X, Y),
    "dataclass": Sample(X, ["a", "b", "c", "d"], Y),
    "nested": {"views": [X, {"mask": M}], "sample": Sample(X, ["a"] * 4, Y)},
    "a number first": {"temperature": 1.0, "scale": torch.tensor(2.0), "image": X},
}


@pytest.mark.parametrize("name", BATCHES)
def test_a_batch_of_any_kind_is_moved_whole_and_keeps_its_form(name: str) -> None:
    batch = BATCHES[name]
    moved = to_device(batch, torch.device("meta"))
    assert type(moved) is type(batch)
    assert len(tensors_in(moved)) == len(tensors_in(batch)) > 0
    assert {tensor.device.type for tensor in tensors_in(moved)} == {"meta"}
    assert {tensor.device.type for tensor in tensors_in(batch)} == {"cpu"}
    if name == "dataclass":
        assert moved.words == ["a", "b", "c", "d"] and moved.made == 3


@pytest.mark.parametrize("name", BATCHES)
def test_rows_of_a_batch_of_any_kind_are_counted(name: str) -> None:
    assert num_rows(BATCHES[name]) == 4


def test_a_graph_object_is_moved_by_its_own_method() -> None:
    moved = to_device(Graph(X, Y), torch.device("meta"))
    assert moved.x.device.type == moved.y.device.type == "meta"


class OfGraph(nn.Module):
    def forward(self, graph: Graph) -> Tensor:
        return graph.x


def test_a_graph_object_goes_into_the_model_whole() -> None:
    output = Task(nn.CrossEntropyLoss(), targets="y").step(OfGraph(), Graph(X, Y))
    assert torch.equal(output.loss, nn.functional.cross_entropy(X, Y))
    assert output.num_rows == 4


def compactness(outputs: Tensor, *, power: int = 2) -> Tensor:
    return outputs.abs().pow(power).mean()


def masked(outputs: Tensor, batch: Any) -> Tensor:
    return ((outputs - batch["image"]) * batch["mask"]).pow(2).mean()


class Energy(nn.Module):
    def forward(self, outputs: Tensor) -> Tensor:
        return outputs.logsumexp(1).mean()


@pytest.mark.parametrize(
    ("criterion", "second"),
    [
        (nn.CrossEntropyLoss(), "targets"), (nn.CrossEntropyLoss, "targets"), (nn.functional.mse_loss, "targets"),
        (compactness, None), (partial(compactness, power=3), None), (Energy(), None), (Energy, None),
        (masked, "batch"), (lambda outputs, labels=None: outputs, "targets"), (lambda *args: args[0], "targets"),
    ],
)  # fmt: skip
def test_a_loss_is_given_what_its_signature_asks_for(criterion: Any, second: str | None) -> None:
    assert second_argument(criterion) == second


def test_losses_of_outputs_alone_of_targets_and_of_the_whole_batch_are_added() -> None:
    batch = {"image": X, "mask": M, "label": Y}
    terms = {"energy": (Energy(), 0.1), "masked": (masked, 2.0), "class": (nn.CrossEntropyLoss(), 1.0)}
    output = Task(terms, inputs="image", targets="label").step(nn.Tanh(), batch)
    made = X.tanh()
    expected = 0.1 * made.logsumexp(1).mean() + 2 * masked(made, batch) + nn.functional.cross_entropy(made, Y)
    assert torch.allclose(output.loss, expected)
    assert set(output.scalars) == set(terms)


def test_a_loss_of_outputs_alone_needs_no_targets() -> None:
    output = Task(compactness).step(nn.Identity(), X)
    assert torch.equal(output.loss, X.pow(2).mean())
    assert output.weight == 4.0


class OwnLoss(nn.Module):
    """Returns its loss beside its logits, as models of `transformers` do."""

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, image: Tensor, label: Tensor | None = None) -> Any:
        loss = None if label is None else nn.functional.cross_entropy(image, label)
        return self.kind(loss=loss, logits=image)


@dataclass
class Output:
    loss: Tensor | None
    logits: Tensor


@pytest.mark.parametrize("kind", [dict, UserDict, Output, namedtuple("Pair", ["loss", "logits"])])
def test_a_model_may_return_its_own_loss(kind: Any) -> None:
    task = Task(inputs={"image": "image", "label": "label"}, targets="label", outputs="logits")
    output = task.step(OwnLoss(kind), {"image": X, "label": Y})
    assert torch.equal(output.loss, nn.functional.cross_entropy(X, Y))
    assert output.outputs is X and output.targets is Y and output.weight == 4.0
    assert task.predict(OwnLoss(kind), {"image": X, "label": Y}) is X


class Squared(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return image.pow(2).mean()


def test_a_model_may_return_its_loss_alone() -> None:
    output = Task().step(Squared(), (X,))
    assert torch.equal(output.loss, X.pow(2).mean())
    assert output.weight == 4.0


def test_outputs_may_be_a_part_of_what_the_model_returns() -> None:
    class Several(nn.Module):
        def forward(self, image: Tensor) -> dict[str, Tensor]:
            return {"logits": 2 * image, "hidden": image}

    output = Task(nn.CrossEntropyLoss(), outputs="logits").step(Several(), (X, Y))
    assert torch.equal(output.loss, nn.functional.cross_entropy(2 * X, Y))
    with pytest.raises(DataError, match=r"task\.outputs: no 'logit' in what the model returns; .* logits, hidden"):
        Task(nn.CrossEntropyLoss(), outputs="logit").step(Several(), (X, Y))


@pytest.mark.parametrize("model", [nn.Identity(), OwnLoss(Output)], ids=["a tensor", "no loss"])
def test_no_loss_at_all_is_told(model: nn.Module) -> None:
    with pytest.raises(DataError, match="no `loss` in the config, and the model does not return its own"):
        Task().step(model, X)
