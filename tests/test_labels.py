"""Labels that the loss cannot take, in a dataset that does not say beforehand which it has."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from src.data.loading.loader import Loader
from src.data.parts.part import Part
from src.data.settings import LoaderSettings
from src.trainer.rehearsal.rehearse import rehearse
from src.trainer.settings import TrainerSettings
from src.trainer.task import Task
from src.trainer.trainer import Trainer
from src.utils.errors import DataError, KeelError

CPU = torch.device("cpu")


class Labelled(Dataset[tuple[Tensor, int]]):
    """Thirty rows, some of which have another label than 0 or 1."""

    def __init__(self, other: int | None = None, at: Sequence[int] = ()) -> None:
        self.other, self.at = other, at

    def __len__(self) -> int:
        return 30

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return torch.rand(3), row % 2 if self.other is None or row not in self.at else self.other


def trainer_of(train: Labelled, val: Labelled, task: Task | None = None, accumulate_steps: int = 1) -> Trainer:
    model = nn.Linear(3, 2)
    batches = LoaderSettings(batch_size=4)
    return Trainer(
        task or Task(nn.CrossEntropyLoss()),
        model,
        Loader(Part("train", train), batches, shuffle=True, seed=0),
        {"optimizer": torch.optim.SGD(model.parameters(), lr=0.1)},
        TrainerSettings(epochs=1, accumulate_steps=accumulate_steps),
        val_loaders={"val": Loader(Part("val", val), batches, shuffle=False, seed=0)},
    )


@pytest.mark.parametrize("accumulate_steps", [1, 3])
@pytest.mark.parametrize("task", [Task(nn.CrossEntropyLoss()), Task(nn.functional.cross_entropy)], ids=["own", "bare"])
def test_a_label_without_an_output_is_told_with_its_row(task: Task, accumulate_steps: int) -> None:
    with pytest.raises(DataError, match=r"^train row 13: label 7 is out of range: .*, labels are 0 to 1$"):
        trainer_of(Labelled(7, [13]), Labelled(), task, accumulate_steps).fit()
    with pytest.raises(DataError, match=r"^val row 17: label -1 is out of range"):
        trainer_of(Labelled(), Labelled(-1, [17]), task, accumulate_steps).fit()


def test_a_label_that_is_left_out_is_not_the_one_to_blame() -> None:
    outputs, targets = torch.zeros(3, 2), torch.tensor([-100, 1, 5])
    with pytest.raises(DataError, match="label 5 is out of range"):
        Task(nn.CrossEntropyLoss()).loss(outputs, targets)


def test_a_batch_without_any_label_is_told_so() -> None:
    with pytest.raises(
        KeelError, match=r"step 1: no row of the batch has a label, so the loss is nan.*\n.*rows "
    ) as told:
        trainer_of(Labelled(-100, range(30)), Labelled()).fit()
    assert told.value.exit_code == 3


def test_first_rows_without_a_label_are_no_mistake() -> None:
    data = Labelled(-100, range(2))
    rehearse(
        Task(nn.CrossEntropyLoss()),
        nn.Linear(3, 2),
        Loader(Part("train", data), LoaderSettings(), shuffle=False, seed=0),
        CPU,
    )
