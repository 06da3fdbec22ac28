"""The same models, batches and arithmetic in other trainers, as far as they are installed (extra `bench`).

Each trains twice: with all its logging off, and as it logs where a user says nothing about that.
"""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from benchmarks.steps import ADAMW, SGD, Case, shuffled, tabular_model
from benchmarks.timing import measured
from src.data.parts.part import Part
from src.model.lenet import LeNet

Train = Callable[[Case, "Batches", bool], float]
"""Trains, with the trainer's default logging if that is asked for, and returns the CPU seconds of it."""
LOGGING = "tiny regression step, each with its default logging"


class Batches:
    """What every trainer here gets for a loader: whole batches in a new order at each pass."""

    def __init__(self, inputs: Tensor, targets: Tensor, batch_size: int) -> None:
        self.inputs, self.targets, self.batch_size = inputs, targets, batch_size

    def __len__(self) -> int:
        return -(-len(self.inputs) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(shuffled(self.inputs, self.targets, self.batch_size)(0))


def by_hand(case: Case, batches: Batches, logs: bool) -> float:
    """Train with the loop that the others are compared with; it never logs."""
    del batches, logs
    return case.by_hand()


def ours(case: Case, batches: Batches, logs: bool) -> float:
    """Train with this project. By default: TensorBoard every 50 steps, CSV, a bar."""
    del batches
    return case.ours_with_defaults() if logs else case.ours()


def fabric(case: Case, batches: Batches, logs: bool) -> float:
    """Train with Lightning Fabric, in a loop of one's own."""
    del logs  # nothing by default
    from lightning.fabric import Fabric

    runner = Fabric(accelerator="cpu", devices=1)
    model, optimizer = runner.setup(*case.prepare())
    total = 0.0
    with measured() as watch:
        model.train()
        for inputs, targets in batches:
            optimizer.zero_grad()
            loss = case.criterion(model(inputs), targets)
            runner.backward(loss)
            optimizer.step()
            total += loss.item()
    return watch.cpu_s


def lightning(case: Case, batches: Batches, logs: bool) -> float:
    """Train with Lightning. By default: TensorBoard or CSV every 50 steps, a bar, a summary of the model."""
    import lightning

    model, optimizer = case.prepare()

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: Any, _: int) -> Tensor:
            loss: Tensor = case.criterion(self.model(batch[0]), batch[1])
            if logs:
                self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return optimizer

    kinds = ("logger", "enable_progress_bar", "enable_model_summary")
    with tempfile.TemporaryDirectory() as folder:
        trainer = lightning.Trainer(
            max_epochs=1, accelerator="cpu", devices=1, default_root_dir=folder, enable_checkpointing=False,
            **dict.fromkeys(kinds, logs),
        )  # fmt: skip
        with measured() as watch:
            trainer.fit(Module(), batches)
    return watch.cpu_s


def ignite(case: Case, batches: Batches, logs: bool) -> float:
    """Train with Ignite, with the mean loss as its users keep it."""
    del logs  # nothing by default
    from ignite.engine import create_supervised_trainer
    from ignite.metrics import RunningAverage

    trainer = create_supervised_trainer(*case.prepare(), case.criterion)
    RunningAverage(output_transform=lambda loss: loss).attach(trainer, "loss")
    with measured() as watch:
        trainer.run(batches, max_epochs=1)
    return watch.cpu_s


def skorch(case: Case, batches: Batches, logs: bool) -> float:
    """Train with skorch. By default: a printed line for each epoch."""
    from skorch import NeuralNet

    model, optimizer = case.prepare()
    net = NeuralNet(
        model,
        criterion=case.criterion,
        optimizer=lambda *_, **__: optimizer,
        max_epochs=1,
        train_split=None,
        iterator_train=lambda *_, **__: batches,
        **({} if logs else {"callbacks__print_log": None}),
    )
    with measured() as watch:
        net.fit(batches.inputs, batches.targets)
    return watch.cpu_s


def accelerate(case: Case, batches: Batches, logs: bool) -> float:
    """Train with Accelerate, in a loop of one's own."""
    del logs  # nothing by default
    from accelerate import Accelerator

    runner = Accelerator(cpu=True)
    model, optimizer = runner.prepare(*case.prepare())
    total = 0.0
    with measured() as watch:
        model.train()
        for inputs, targets in batches:
            with runner.accumulate(model):
                optimizer.zero_grad()
                loss = case.criterion(model(inputs), targets)
                runner.backward(loss)
                optimizer.step()
                total += loss.item()
    return watch.cpu_s


def hf_trainer(case: Case, batches: Batches, logs: bool) -> float:
    """Train with the Trainer of Transformers. By default: a bar, and a printed line every 500 steps."""
    from transformers import Trainer, TrainingArguments

    inner, optimizer = case.prepare()

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
            return {"loss": case.criterion(self.inner(inputs), labels)}

    class OnBatches(Trainer):
        def get_train_dataloader(self) -> Any:
            return Dicts(batches)

    class Dicts:
        def __init__(self, batches: Batches) -> None:
            self.batches, self.batch_size, self.dataset = batches, batches.batch_size, batches.inputs

        def __len__(self) -> int:
            return len(self.batches)

        def __iter__(self) -> Iterator[dict[str, Tensor]]:
            return ({"inputs": inputs, "labels": targets} for inputs, targets in self.batches)

    with tempfile.TemporaryDirectory() as folder:
        options = TrainingArguments(
            folder, num_train_epochs=1, save_strategy="no", use_cpu=True, max_grad_norm=0.0,
            **({} if logs else {"report_to": [], "logging_strategy": "no", "disable_tqdm": True}),
        )  # fmt: skip
        schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
        trainer = OnBatches(Model(), options, train_dataset=batches.inputs, optimizers=(optimizer, schedule))
        with measured() as watch:
            trainer.train()
    return watch.cpu_s


def keras(case: Case, batches: Batches, logs: bool) -> float:
    """Train with Keras on torch; its layers and optimizer, as it takes no others. By default: a bar."""
    os.environ["KERAS_BACKEND"] = "torch"
    import keras

    model, optimizer = case.prepare()
    sizes = [layer.out_features for layer in model.modules() if isinstance(layer, nn.Linear)]
    layers = [keras.layers.Dense(size, activation="relu") for size in sizes[:-1]] + [keras.layers.Dense(sizes[-1])]
    twin = keras.Sequential([keras.Input((batches.inputs.shape[1],)), *layers])
    made = keras.optimizers.SGD(0.01) if isinstance(optimizer, torch.optim.SGD) else keras.optimizers.AdamW(1e-3)
    twin.compile(optimizer=made, loss="mse")
    with measured() as watch:
        twin.fit(iter(batches), steps_per_epoch=len(batches), epochs=1, verbose="auto" if logs else 0)
    return watch.cpu_s


TRAINERS: dict[str, Train] = {
    "by hand": by_hand,
    "Keel": ours,
    "Fabric": fabric,
    "Ignite": ignite,
    "skorch": skorch,
    "Accelerate": accelerate,
    "HF Trainer": hf_trainer,
    "Lightning": lightning,
    "Keras": keras,
}


LOG_NOTHING = ("Fabric", "Ignite", "Accelerate")
"""Trainers that log only what a user's own code does."""


def workloads() -> Iterator[tuple[str, list[tuple[Case, Batches]]]]:
    """Yield what is trained, steps of nothing but overhead and of two models of usual size: much of it, and little."""
    for work, make, criterion, optimizer, row_shape, batch_size, num_steps in (
        ("tiny regression step", lambda: nn.Linear(8, 1), nn.MSELoss(), SGD, (8,), 32, 3000),
        (LOGGING, lambda: nn.Linear(8, 1), nn.MSELoss(), SGD, (8,), 32, 3000),
        ("tabular step, batch 1024", tabular_model, nn.MSELoss(), ADAMW, (32,), 1024, 400),
        ("LeNet step, batch 128", LeNet, nn.CrossEntropyLoss(), ADAMW, (1, 28, 28), 128, 60),
    ):
        pairs = []
        for steps in (num_steps, num_steps // 10):
            inputs = torch.randn(steps * batch_size, *row_shape)
            is_image = len(row_shape) == 3
            targets = torch.randint(10, (len(inputs),)) if is_image else torch.randn(len(inputs), 1)
            batches = Batches(inputs, targets, batch_size)
            part = Part("train", TensorDataset(inputs, targets))
            case = Case(make, criterion, optimizer, part, batch_size, partial(_batches_of, batches))
            pairs.append((case, batches))
        yield work, pairs


def _batches_of(batches: Batches, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    del epoch
    return iter(batches)


def compare(rounds: int) -> Iterator[tuple[str, dict[str, list[float]]]]:
    """Yield each work with the ratios of every trainer to the loop by hand, round by round.

    All take their turn in every round. What is compared is the time of many steps less that of a tenth of them, so that
    nobody pays for a slow start. A trainer that is not installed, or cannot do the work, is left out.
    """
    for work, pairs in workloads():
        seconds: dict[str, list[float]] = {}
        for name in TRAINERS:
            if not (name == "Keras" and "LeNet" in work) and not (name in LOG_NOTHING and work == LOGGING):
                try:
                    _cost(name, pairs, work == LOGGING)  # this round does not count
                    seconds[name] = []
                except ImportError as error:
                    print(f"{name} is left out: {error}")
        for _ in range(rounds):
            for name, costs in seconds.items():
                costs.append(_cost(name, pairs, work == LOGGING))
        hand = seconds.pop("by hand")
        yield work, {name: [a / b for a, b in zip(costs, hand, strict=True)] for name, costs in seconds.items()}


def _cost(name: str, pairs: list[tuple[Case, Batches]], logs: bool) -> float:
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, warnings.catch_warnings():
        nowhere.isatty = lambda: True  # type: ignore[method-assign]  # bars are drawn
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            with redirect_stdout(nowhere), redirect_stderr(nowhere):
                much, little = (TRAINERS[name](*pair, logs) for pair in pairs)
        finally:
            logging.disable(logging.NOTSET)
    return much - little
