"""What a GPU must show. Ratios of times taken in turn in one run; `make test-gpu` runs them all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from src.data.loading.loader import Loader
from src.data.parts.part import Part
from src.data.settings import LoaderSettings
from src.model.lenet import LeNet
from src.model.mlp import MLP
from src.trainer.checkpoints.saving import Saver
from src.trainer.settings import TrainerSettings
from src.trainer.task import Task
from src.trainer.trainer import Trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DEVICE = torch.device("cuda")
ROUNDS = 5
MANY = 1000
"""Epochs of a run: each call of `_train_epoch` makes the next one, with the graphs of those before."""


def wait() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize(DEVICE)


def seconds(work: Callable[[], Any]) -> float:
    wait()
    began_s = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - began_s


def ratio(first: Callable[[], Any], second: Callable[[], Any]) -> float:
    """Return the median time of the first by that of the second, after each has run once."""
    first()
    second()
    return statistics.median(seconds(first) / seconds(second) for _ in range(ROUNDS))


class Case:
    """A model and batches that live on the device, for a trainer and for a loop by hand."""

    def __init__(self, model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor, batch_size: int) -> None:
        self.model = model.to(DEVICE)
        part = Part("train", TensorDataset(inputs, targets))
        settings = LoaderSettings(batch_size=batch_size)
        self.loader = Loader(part, settings, shuffle=True, seed=0, pin_memory=True, device=DEVICE)
        self.epoch = 0

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.model.parameters(), lr=1e-4, momentum=0.9)

    def trainer(self, **settings: Any) -> Trainer:
        every = TrainerSettings(**{"epochs": MANY, "log_every_steps": 1000, **settings})
        task, optimizers = Task(nn.CrossEntropyLoss()), {"optimizer": self.optimizer()}
        return Trainer(task, self.model, self.loader, optimizers, every, device=DEVICE)

    def by_hand(self, optimizer: torch.optim.Optimizer, forward: Any, amp: Any) -> Callable[[], None]:
        """Return an epoch as it is written by hand: whole batches on the device, no waits, the mean loss kept."""
        criterion, total = nn.CrossEntropyLoss(), torch.zeros((), device=DEVICE)

        def train() -> None:
            self.epoch += 1
            for inputs, targets in self.loader.batches(self.epoch):
                optimizer.zero_grad()
                with amp():
                    loss = criterion(forward(inputs), targets)
                loss.backward()
                optimizer.step()
                total.add_(loss.detach())

        return train


def tiny() -> Case:
    return Case(MLP(16, [32, 32], 10), torch.randn(16 * 300, 16), torch.randint(10, (16 * 300,)), 16)


def images() -> Case:
    body = nn.Sequential(*(layer for i in (1, 2, 3) for layer in block(3 if i == 1 else 64 * (i - 1), 64 * i)))
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(192, 10))
    model = nn.Sequential(body, head).to(memory_format=torch.channels_last)
    return Case(model, torch.randn(4096, 3, 64, 64), torch.randint(10, (4096,)), 256)


def block(channels: int, out_channels: int) -> list[nn.Module]:
    conv = nn.Conv2d(channels, out_channels, 3, padding=1, bias=False)
    return [conv, nn.BatchNorm2d(out_channels), nn.ReLU(), nn.MaxPool2d(2)]


def test_a_tiny_model_is_replayed_from_graphs_three_times_as_fast_as_a_loop_by_hand() -> None:
    ours, theirs = tiny(), tiny()
    trainer = ours.trainer(compile=True)
    found = ratio(trainer._train_epoch, theirs.by_hand(theirs.optimizer(), theirs.model, torch.enable_grad))
    assert found <= 1 / 3


def test_images_in_bf16_compiled_are_trained_as_fast_as_by_a_tuned_loop() -> None:
    ours, theirs = images(), images()
    trainer = ours.trainer(compile=True, amp_dtype="bf16", channels_last=True)
    amp = lambda: torch.autocast(DEVICE.type, torch.bfloat16)  # noqa: E731
    hand = theirs.by_hand(theirs.optimizer(), torch.compile(theirs.model), amp)
    assert ratio(trainer._train_epoch, hand) <= 1 / 0.98


def test_a_save_in_the_background_holds_training_up_for_a_small_part_of_a_plain_one(tmp_path: Path) -> None:
    names = [f"layer{i}" for i in range(75)]
    state: dict[str, Any] = {"format": 1, "model": {name: torch.randn(1024, 1024, device=DEVICE) for name in names}}
    with Saver(tmp_path, keep=1, in_background=True) as saver:
        saver.save(lambda: state, 0, is_best=False, is_last_chance=False)
        found = []
        for step in range(1, 1 + ROUNDS):
            stall_s = seconds(lambda step=step: saver.save(lambda: state, step, False, False))  # type: ignore[misc]
            assert saver.has_saved(step)
            found.append(stall_s / seconds(lambda: torch.save(state, tmp_path / "plain")))
    assert statistics.median(found) <= 0.15


@pytest.mark.parametrize("settings", [{}, {"compile": True}], ids=["eager", "compiled"])
@pytest.mark.parametrize("keep_on_device", [True, False], ids=["resident", "sent ahead"])
def test_memory_does_not_grow_over_a_thousand_steps(settings: dict[str, Any], keep_on_device: bool) -> None:
    part = Part("train", TensorDataset(torch.randn(32 * 250, 1, 28, 28), torch.randint(10, (32 * 250,))))
    kept = LoaderSettings(batch_size=32, keep_on_device=keep_on_device)
    loader = Loader(part, kept, shuffle=True, seed=0, pin_memory=True, device=DEVICE)
    model = LeNet()
    optimizers: Any = {"optimizer": torch.optim.AdamW(model.parameters())}
    every = TrainerSettings(epochs=MANY, **settings)
    trainer = Trainer(Task(nn.CrossEntropyLoss()), model, loader, optimizers, every, device=DEVICE)
    trainer._train_epoch()
    wait()
    before = torch.cuda.memory_allocated(DEVICE)
    for _ in range(4):
        trainer._train_epoch()
    wait()
    assert torch.cuda.memory_allocated(DEVICE) <= before + (1 << 20)
