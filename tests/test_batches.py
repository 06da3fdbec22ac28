"""Batches of any kind are moved, counted and opened; losses and models of any form are called as they need it."""

from __future__ import annotations

from collections import UserDict, namedtuple
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from src.data.loading.collate import collate_samples
from src.data.loading.loader import Loader
from src.data.parts.part import Part
from src.data.settings import LoaderSettings
from src.model.accumulate import num_rows
from src.model.criterion import second_argument
from src.trainer.faults.nonfinite import tensors_in
from src.trainer.faults.out_of_memory import count_rows, sliced
from src.trainer.settings import TrainerSettings
from src.trainer.task import Task
from src.trainer.trainer import Trainer
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


# --- samples of any kind, from a dataset through the loader and the trainer -------------------------------------------


@dataclass
class Pair:
    image: Tensor
    extra: dict[str, Tensor]
    label: int


def graphs(samples: list[Graph]) -> Graph:
    return Graph(torch.stack([sample.x for sample in samples]), torch.stack([sample.y for sample in samples]))


SAMPLES: dict[str, tuple[Any, dict[str, Any]]] = {
    "tensor": (lambda x, y: x, {"criterion": compactness}),
    "pair": (lambda x, y: (x, y), {}),
    "five": (lambda x, y: (x, x, y, 1.0, "word"), {"inputs": 0, "targets": 2}),
    "dict": (lambda x, y: {"image": x, "label": y}, {"inputs": "image", "targets": "label"}),
    "named tuple": (lambda x, y: Row(x, y), {"inputs": "image", "targets": "label"}),
    "dataclass": (lambda x, y: Pair(x, {"mask": x}, int(y)), {"inputs": "image", "targets": "label"}),
    "nested": (lambda x, y: ((x, x), {"label": y}), {"criterion": lambda outputs, batch: outputs.pow(2).mean()}),
    "graph": (lambda x, y: Graph(x, y), {"inputs": "x", "targets": "y"}),
}


class Made(Dataset[Any]):
    def __init__(self, make: Any) -> None:
        self.make = make

    def __len__(self) -> int:
        return 10

    def __getitem__(self, row: int) -> Any:
        generator = torch.Generator().manual_seed(row)
        return self.make(torch.randn(3, generator=generator), torch.tensor(row % 2))


class First(nn.Module):
    """A linear layer on the first tensor of whatever it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, batch: Any) -> Tensor:
        return self.linear(tensors_in(batch)[0])


@pytest.mark.parametrize("name", SAMPLES)
def test_samples_of_any_kind_train(name: str) -> None:
    make, task = SAMPLES[name]
    collate = graphs if name == "graph" else None
    loaders = {
        part: Loader(Part(part, Made(make)), LoaderSettings(batch_size=4), shuffle=False, seed=0, collate_fn=collate)
        for part in ("train", "val")
    }
    model = First()
    trainer = Trainer(
        Task(**{"criterion": nn.CrossEntropyLoss(), **task}), model, loaders["train"],
        {"optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}, TrainerSettings(epochs=3),
        val_loaders={"val": loaders["val"]},
    )  # fmt: skip
    values = trainer.fit()
    assert trainer.progress.samples == 30
    assert values["val/loss"] < values["train/loss"]


def test_a_batch_of_dataclasses_is_one_with_batches_as_fields() -> None:
    batch = collate_samples([Pair(X[row], {"mask": M[row]}, int(Y[row])) for row in range(4)])
    assert isinstance(batch, Pair)
    assert torch.equal(batch.image, X) and torch.equal(batch.extra["mask"], M) and torch.equal(batch.label, Y)


@pytest.mark.parametrize("name", [name for name in BATCHES if name not in ("tensor", "a number first")])
def test_a_batch_of_any_kind_is_cut_into_rows(name: str) -> None:
    pieces = [sliced(BATCHES[name], slice(start, start + 2), 4) for start in (0, 2)]
    assert count_rows(BATCHES[name]) == 4 and [count_rows(piece) for piece in pieces] == [2, 2]
    whole, (first, second) = tensors_in(BATCHES[name]), map(tensors_in, pieces)
    assert all(torch.equal(torch.cat(pair), each) for each, *pair in zip(whole, first, second, strict=True))
