"""Every kind of data order, task and precision: stopped twice and resumed, a run ends as if it had not been stopped."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset, WeightedRandomSampler

from src.data.loading.loader import Loader
from src.data.parts.part import Part
from src.data.settings import LoaderSettings
from src.logger.csv_file import CSVFile
from src.logger.logger import Logger
from src.trainer.checkpoints.resume import open_checkpoint
from src.trainer.hooks import Hook
from src.trainer.settings import TrainerSettings
from src.trainer.task import StepOutput, Task
from src.trainer.trainer import Trainer
from tests.chaos import unequal
from tests.trainer_kit import DropoutNet, KillAt, NoisyRows

COMPARED = ("model", "optimizer", "task", "scaler", "progress", "meters", "monitor", "rng")


class SeekableStream(IterableDataset[tuple[Tensor, int]]):
    """Endless noise in 50 samples an epoch, which can begin anywhere."""

    first, epoch = 0, 0

    def __len__(self) -> int:
        return 50

    def set_epoch(self, epoch: int) -> None:
        self.first, self.epoch = 0, epoch

    def seek(self, num_samples: int) -> None:
        self.first = num_samples

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        for number in range(self.first, 50):
            yield torch.randn(6) + random.random() + float(np.random.rand()) + self.epoch, number % 3


class Pair(Task):
    """Two networks against each other, each with an optimizer of its own."""

    def update(self, model: Any, batch: Any, optimizers: Any) -> StepOutput:
        inputs, _ = batch
        fake = model["generator"](torch.randn(len(inputs), 4))
        real, faked = model["discriminator"](inputs), model["discriminator"](fake.detach())
        loss = nn.functional.softplus(-real).mean() + nn.functional.softplus(faked).mean()
        optimizers["discriminator"].zero_grad()
        loss.backward()
        optimizers["discriminator"].step()
        optimizers["generator"].zero_grad()
        against = nn.functional.softplus(-model["discriminator"](fake)).mean()
        against.backward()
        optimizers["generator"].step()
        return StepOutput(loss.detach(), real.detach(), None, float(len(inputs)), {"against": against.detach()})


class Carrying(Task):
    """Adds what is left of the last batch's outputs to the next one's."""

    def __init__(self, criterion: Any) -> None:
        super().__init__(criterion)
        self.carried = torch.zeros(3)

    def step(self, model: Any, batch: Any) -> StepOutput:
        outputs = model(batch[0]) + self.carried
        if model.training:
            self.carried = outputs.detach().mean(0) * 0.5
        loss, scalars = self.loss(outputs, batch[1])
        return StepOutput(loss, outputs, batch[1], self.weigh(outputs, batch[1]), scalars)

    def state_dict(self) -> dict[str, Any]:
        return {"carried": self.carried}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.carried = state["carried"].clone()


def weighted(part: Part, generator: torch.Generator) -> Any:
    return WeightedRandomSampler([1.0 + row % 4 for row in range(len(part))], 40, generator=generator)


def pairs_of_neighbours(part: Part, generator: torch.Generator) -> Any:
    firsts = torch.randperm(len(part) // 2, generator=generator).tolist()
    return [[2 * first, 2 * first + 1] for first in firsts]


SAMPLERS = {"weighted": {"sampler": weighted}, "custom": {"batch_sampler": pairs_of_neighbours}}


def build(kind: str, folder: Path, hook: Hook, num_workers: int, device: str = "cpu", **options: Any) -> Trainer:
    torch.set_num_threads(1)
    for seed in (torch.manual_seed, random.seed, np.random.seed):
        seed(3)
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    part = Part("train", SeekableStream() if kind == "stream" else NoisyRows(), seed=3)
    settings = LoaderSettings(batch_size=8, num_workers=num_workers)
    shuffle = kind not in (*SAMPLERS, "stream")
    loader = Loader(part, settings, shuffle=shuffle, seed=3, **SAMPLERS.get(kind, {}))  # type: ignore[arg-type]
    val = Loader(Part("val", NoisyRows(21), seed=3), settings, shuffle=False, seed=3)
    model: nn.Module = DropoutNet()
    task: Task = Carrying(nn.CrossEntropyLoss()) if kind == "carried" else Task(nn.CrossEntropyLoss())
    if kind == "pair":
        task, model = Pair(), nn.ModuleDict({"generator": nn.Linear(4, 6), "discriminator": nn.Linear(6, 1)})
    named = model.named_children() if kind == "pair" else [("", model)]
    optimizers = {f"optimizer.{name}".rstrip("."): torch.optim.Adam(part.parameters(), lr=0.01) for name, part in named}
    return Trainer(
        task, model, loader, optimizers, TrainerSettings(**{"epochs": 3, "log_every_steps": 3, **options}),
        val_loaders={} if kind == "pair" else {"val": val}, logger=Logger([CSVFile(folder / "metrics.csv")]),
        checkpoints=folder / "checkpoints", hooks=[hook], memory={"task": task} if kind == "carried" else {},  # type: ignore[dict-item]
        device=torch.device(device),
    )  # fmt: skip


def assert_equal_ends(ends: list[dict[str, Any]], folder: Path) -> None:
    first, second = ends
    names = [name for name in first if name.split(".")[0] in COMPARED]
    assert "model" in names and any(name.startswith("optimizer") for name in names)
    assert [path for name in names for path in unequal(first[name], second[name], name)] == []
    assert (folder / "a" / "metrics.csv").read_bytes() == (folder / "b" / "metrics.csv").read_bytes()


def check_stops(kind: str, folder: Path, **options: Any) -> None:
    straight = build(kind, folder / "a", KillAt(None), 0, **options)
    straight.fit()
    ends = [straight.state_dict()]
    for stop, workers in ((2, 0), (9, 1), (None, 0)):
        trainer = build(kind, folder / "b", KillAt(stop), workers, **options)
        if stop != 2:
            torch.manual_seed(99)
            trainer.load_state_dict(open_checkpoint(folder / "b")[1])
        trainer.fit()
    ends.append(trainer.state_dict())
    assert_equal_ends(ends, folder)


@pytest.mark.parametrize("kind", ["weighted", "custom", "stream", "pair", "carried"])
def test_resume_is_exact_for_every_kind_of_order_and_task(kind: str, tmp_path: Path) -> None:
    check_stops(kind, tmp_path)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("amp_dtype", ["fp16", "bf16", None])
def test_resume_is_exact_on_a_gpu_with_a_scaler_too(amp_dtype: str | None, tmp_path: Path) -> None:
    check_stops("shuffled", tmp_path, device="cuda", amp_dtype=amp_dtype)


class Killed(Exception):
    pass


class BreakAfterEvaluation(Hook):
    """Ends the process between an evaluation and the save that follows it, as a kill would."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_evaluation_end(self, trainer: Trainer, values: Any) -> None:
        if trainer.progress.step == self.at:
            raise Killed


@pytest.mark.parametrize("at", [5, 10, 14])
def test_a_run_killed_between_an_evaluation_and_its_save_ends_as_if_it_had_not_been(at: int, tmp_path: Path) -> None:
    options: dict[str, Any] = {"save_every_steps": 4, "patience": 9} | ({} if at == 14 else {"eval_every_steps": 5})
    straight = build("shuffled", tmp_path / "a", KillAt(None), 0, **options)
    straight.fit()
    ends = [straight.state_dict()]
    with pytest.raises(Killed):
        build("shuffled", tmp_path / "b", BreakAfterEvaluation(at), 0, **options).fit()
    trainer = build("shuffled", tmp_path / "b", KillAt(None), 0, **options)
    torch.manual_seed(99)
    trainer.load_state_dict(open_checkpoint(tmp_path / "b")[1])
    trainer.fit()
    ends.append(trainer.state_dict())
    assert_equal_ends(ends, tmp_path)
