"""A step that does not fit into memory is made in pieces, and stays the same step."""

from __future__ import annotations

import logging
import weakref
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from src.data.loading.loader import Loader
from src.data.parts.part import Part
from src.data.settings import LoaderSettings
from src.model.metric import MetricSet, accuracy
from src.trainer.checkpoints.memory import Progress
from src.trainer.checkpoints.resume import open_checkpoint
from src.trainer.evaluate import predict
from src.trainer.faults.out_of_memory import MicroBatches, Pieces, count_rows, is_out_of_memory, sliced
from src.trainer.settings import TrainerSettings
from src.trainer.task import StepOutput, Task
from src.trainer.trainer import Trainer
from src.utils.errors import ResourceError


class FailsBackward(torch.autograd.Function):
    """Runs out of memory on the way back, when gradients of later layers are there already."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, limit: int) -> Tensor:
        ctx.limit = limit
        return inputs.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        check_fits(gradient, ctx.limit)
        return gradient, None


def check_fits(tensor: Any, limit: int) -> None:
    if len(tensor) > limit:
        raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {len(tensor)} GiB.\nMore text")


class Limited(nn.Module):
    """Has memory for so many rows, in forward or in backward; only in training, as a GPU would."""

    def __init__(self, limit: int = 1000, backward: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.limit, self.backward = limit, backward
        self.below, self.above = nn.Linear(5, 8), nn.Linear(8, 4)
        self.dropout = nn.Dropout(dropout)
        self.sizes: list[int] = []

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.dropout(self.below(inputs).tanh())
        if self.training:
            if self.backward:
                hidden = FailsBackward.apply(hidden, self.limit)
            else:
                check_fits(inputs, self.limit)
            self.sizes.append(len(inputs))
        return self.above(hidden)


def make_trainer(
    model: nn.Module, folder: Path | None = None, criterion: Any = None, task: Any = None, **settings: Any
) -> Trainer:
    generator = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(45, 5, generator=generator), torch.randint(4, (45,), generator=generator))
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
    return Trainer(
        task or Task(criterion or nn.CrossEntropyLoss()),
        model,
        Loader(Part("train", data), LoaderSettings(batch_size=14), shuffle=True, seed=0),
        {"optimizer": torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)},
        TrainerSettings(**{"epochs": 3, **settings}),
        metrics=MetricSet({"accuracy": accuracy}),
        checkpoints=folder,
    )


def build(limit: int, **changes: Any) -> Limited:
    torch.manual_seed(1)
    return Limited(limit, **changes)


@pytest.mark.parametrize("limit", [1, 3, 13])
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("settings", [{}, {"accumulate_steps": 3}, {"max_grad_norm": 0.1}])
@pytest.mark.parametrize(
    "criterion",
    [
        nn.CrossEntropyLoss(),
        nn.CrossEntropyLoss(weight=torch.tensor([0.1, 2.0, 5.0, 1.0])),
        nn.CrossEntropyLoss(reduction="sum"),
    ],
    ids=str,
)
def test_weights_and_values_are_those_of_whole_batches_to_rounding(
    limit: int, backward: bool, settings: dict[str, Any], criterion: nn.Module
) -> None:
    whole, cut = build(1000), build(limit, backward=backward)
    expected = make_trainer(whole, criterion=criterion, **settings)
    trainer = make_trainer(cut, criterion=criterion, **settings)
    values, found = expected.fit(), trainer.fit()
    torch.testing.assert_close(dict(cut.state_dict()), dict(whole.state_dict()), rtol=1e-4, atol=1e-6)
    assert found == pytest.approx(values, rel=1e-4)
    ours, theirs = trainer.progress, expected.progress
    assert (ours.step, ours.samples, ours.epoch) == (theirs.step, theirs.samples, theirs.epoch)
    assert ours.micro_batches == {1: 16, 3: 8, 13: 2}[limit]


def test_the_number_is_told_once_and_kept_by_a_resumed_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    straight = build(4, dropout=0.3)
    make_trainer(straight, tmp_path / "a").fit()
    (told,) = [record.message for record in caplog.records if "micro-batches" in record.message][1:]
    assert told == (
        "step 1: memory ran out (CUDA out of memory. Tried to allocate 7 GiB.); from now on a batch of 14 rows is "
        "computed in 4 micro-batches. Steps are the same to rounding, but dropout draws other numbers"
    )
    caplog.clear()
    make_trainer(build(4, dropout=0.3), tmp_path / "b", max_steps=6).fit()
    caplog.clear()
    model = build(4, dropout=0.3)
    resumed = make_trainer(model, tmp_path / "b")
    resumed.load_state_dict(open_checkpoint(tmp_path / "b" / "last.pt")[1])
    resumed.fit()
    assert not caplog.records
    assert max(model.sizes) <= 4
    for name, value in straight.state_dict().items():
        assert torch.equal(value, model.state_dict()[name])


@pytest.mark.parametrize("settings", [{}, {"accumulate_steps": 2}])
def test_nothing_of_a_failed_attempt_is_held_when_the_step_is_made_again(settings: dict[str, Any]) -> None:
    class Watched(Limited):
        def __init__(self) -> None:
            super().__init__(3, backward=True)
            self.alive: list[weakref.ref[Tensor]] = []
            self.held: list[int] = []

        def forward(self, inputs: Tensor) -> Tensor:
            if self.sizes and len(inputs) < self.sizes[-1]:  # the first of smaller pieces
                self.held.append(sum(reference() is not None for reference in self.alive))
            outputs = super().forward(inputs)
            self.alive.append(weakref.ref(outputs))
            return outputs

    model = Watched()
    make_trainer(model, max_steps=1, **settings).fit()
    assert model.held[:2] == [0, 0]


def test_batch_norms_are_told_of(caplog: pytest.LogCaptureFixture) -> None:
    norm = MicroBatches(Progress(), nn.Sequential(nn.BatchNorm1d(3)))
    norm.halve([torch.zeros(9, 3)], torch.OutOfMemoryError("x"))
    assert caplog.messages[0].endswith("numbers, and batch norms see 5 rows at a time")


def test_a_model_for_which_one_row_is_too_much_ends_the_run() -> None:
    with pytest.raises(ResourceError, match=r"step 1: memory ran out with one row at a time \(CUDA out of memory"):
        make_trainer(build(0)).fit()


def test_a_task_with_an_update_of_its_own_gets_advice() -> None:
    class Own(Task):
        def update(self, model: Any, batch: Any, optimizers: Any) -> StepOutput:
            return self.step(model, batch)

    with pytest.raises(ResourceError, match=r"`update` of its own, which cannot be made in pieces; lower"):
        make_trainer(build(3), task=Own(nn.CrossEntropyLoss())).fit()


class Remembers(Task):
    """Carries a value for each row from batch to batch, as a language model does."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@pytest.mark.parametrize(("where", "model"), [("step 1", Limited(3)), ("val", None)])
def test_batches_of_a_task_with_a_memory_are_never_cut(where: str, model: nn.Module | None) -> None:
    trainer = make_trainer(model or Wide(3), task=Remembers(nn.CrossEntropyLoss()))
    part = Part("val", trainer.train_loader.part.dataset)
    trainer.val_loaders["val"] = Loader(part, LoaderSettings(), shuffle=False, seed=0)
    with pytest.raises(ResourceError, match=rf"{where}: memory ran out .* Remembers carries a state from batch"):
        trainer.fit()


def test_other_errors_of_a_step_go_through() -> None:
    class Wrong(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        make_trainer(Wrong(5, 4)).fit()
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))


class Wide(nn.Module):
    """Has memory for so many rows in evaluation."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit, self.sizes = limit, list[int]()
        self.body = nn.Linear(5, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.body(inputs)
        if not self.training:
            check_fits(inputs, self.limit)
            self.sizes.append(len(inputs))
        return outputs


def evaluated(limit: int, folder: Path | None = None, **settings: Any) -> Trainer:
    torch.manual_seed(1)
    trainer = make_trainer(Wide(limit), folder, nn.CrossEntropyLoss(weight=torch.tensor([0.1, 2, 5, 1])), **settings)
    trainer.val_loaders["val"] = trainer.train_loader
    return trainer


@pytest.mark.parametrize("limit", [1, 3, 13])
def test_an_evaluation_that_does_not_fit_is_made_in_pieces_and_gives_the_same_values(limit: int) -> None:
    trainer, expected = evaluated(limit), evaluated(1000)
    assert trainer.fit() == pytest.approx(expected.fit(), rel=1e-6)
    assert {name.split("/")[0] for name in trainer.values} == {"train", "val"}
    assert sum(trainer.model.sizes) == sum(expected.model.sizes) == 3 * 45  # type: ignore[arg-type]
    assert trainer.progress.evaluation_pieces == {1: 16, 3: 8, 13: 2}[limit]
    assert trainer.progress.micro_batches == 1


def test_the_pieces_of_an_evaluation_are_told_once_and_kept_by_a_resumed_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    evaluated(7, tmp_path, epochs=2).fit()
    assert [record.message for record in caplog.records] == [
        "train: memory ran out (CUDA out of memory. Tried to allocate 14 GiB.); from now on a batch of 14 rows is "
        "evaluated in 2 pieces: the same values to rounding"
    ]
    resumed = evaluated(7, tmp_path)
    resumed.load_state_dict(open_checkpoint(tmp_path / "last.pt")[1])
    resumed.fit()
    assert len(caplog.records) == 1 and resumed.model.sizes == [7] * 6 + [1, 2]


def test_predictions_that_do_not_fit_are_made_in_pieces_and_keep_their_order() -> None:
    expected, small = evaluated(1000), evaluated(3)
    made = [
        torch.cat(list(predict(each.task, each.model, each.train_loader, torch.device("cpu"))))
        for each in (expected, small)
    ]
    torch.testing.assert_close(made[0], made[1])


def test_an_evaluation_for_which_one_row_is_too_much_ends_the_run() -> None:
    with pytest.raises(ResourceError, match=r"train: memory ran out with one row at a time \(CUDA out of memory"):
        evaluated(0).fit()
    with pytest.raises(ResourceError, match=r"val: memory ran out, and this batch cannot be cut: .*val\.batch_size"):
        list(Pieces(torch.device("cpu")).outputs("val", [torch.zeros(3), torch.zeros(2)], lambda _: check_fits([1], 0)))


Pair = namedtuple("Pair", "inputs targets")


def test_any_batch_of_tensors_can_be_cut() -> None:
    rows = torch.arange(6).reshape(3, 2)
    batch = {"a": Pair(rows, rows[:, 0]), "texts": ["x", "y", "z"], "scale": torch.tensor(2.0), "both": [rows, rows]}
    assert count_rows(batch) == 3
    part = sliced(batch, slice(1, 3), 3)
    assert torch.equal(part["a"].targets, torch.tensor([2, 4])) and type(part["a"]) is Pair
    assert part["texts"] == ["y", "z"] and part["scale"] == 2 and len(part["both"][1]) == 2


class Graph:
    def to(self, device: torch.device) -> Graph:
        return self


@pytest.mark.parametrize(
    ("batch", "reason"),
    [
        (Graph(), "it is or holds a Graph"),
        ((torch.zeros(3, 2), torch.zeros(2)), "it is a tuple with tensors of 2, 3 rows"),
        (["text"], "it is a list with no tensor with rows"),
    ],
)
def test_a_batch_that_cannot_be_cut_gets_advice(batch: Any, reason: str) -> None:
    with pytest.raises(ResourceError) as caught:
        MicroBatches(Progress(step=4), nn.Identity()).halve([batch], torch.OutOfMemoryError())
    assert str(caught.value) == (
        f"step 5: memory ran out, and this batch cannot be cut: {reason}; "
        "lower loader.batch_size and raise trainer.accumulate_steps alike, which keeps the step as it was"
    )


@pytest.mark.parametrize("numbers", [(1, 2), (2, 4), (8, 16)])
def test_halving_keeps_the_bounds_of_pieces(numbers: tuple[int, int]) -> None:
    """So that what was taken of a step in the making is known after it is cut again."""
    batches = [torch.arange(5), torch.arange(7)]
    ends: list[dict[int, int]] = []
    for number in numbers:
        taken = 0
        places = {}
        for place, piece in MicroBatches(Progress(micro_batches=number), nn.Identity()).cut(batches):
            taken += len(piece)
            places[place] = taken
        ends.append(places)
        assert taken == 12
    coarse, fine = ends
    for place, end in coarse.items():
        assert max(value for key, value in fine.items() if key < 2 * (place + 1)) == end
