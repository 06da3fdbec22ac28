"""Small real parts to train with: seconds on a CPU, every source of randomness that a run can have."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from src.data.loading.loader import Loader
from src.data.parts.part import Part
from src.data.settings import LoaderSettings
from src.logger.csv_file import CSVFile
from src.logger.logger import Logger
from src.model.metric import MetricSet, accuracy
from src.trainer.hooks import Hook
from src.trainer.schedule import Schedule
from src.trainer.settings import TrainerSettings
from src.trainer.task import Task
from src.trainer.trainer import Trainer

NUM_ROWS = 50


class NoisyRows(Dataset[tuple[Tensor, int]]):
    """Rows with noise from all three random streams at every read."""

    def __init__(self, num_rows: int = NUM_ROWS) -> None:
        generator = torch.Generator().manual_seed(7)
        self.inputs = torch.randn(num_rows, 6, generator=generator)
        self.targets = torch.randint(3, (num_rows,), generator=generator)

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        noise = 0.1 * torch.randn(6) + 0.1 * random.random() + 0.1 * float(np.random.rand())
        return self.inputs[index] + noise, int(self.targets[index])


class DropoutNet(nn.Sequential):
    """Draws from the global stream in every forward pass, and has buffers."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))


class KillAt(Hook):
    """Sends this process SIGTERM after a step: the trainer saves and leaves."""

    def __init__(self, step: int | None) -> None:
        self.step = step

    def on_step_end(self, trainer: Trainer) -> None:
        if trainer.progress.step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def make_trainer(
    folder: Path | None = None,
    kill_at: int | None = None,
    num_workers: int = 0,
    schedule: str = "OneCycleLR",
    seed: int = 3,
    num_steps: int = 35,
    hooks: tuple[Hook, ...] = (),
    **settings: Any,
) -> Trainer:
    """Return a trainer of 50 noisy rows in batches of 8 (7 a pass); by default 5 passes."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
    model = DropoutNet()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler: Any = {
        "OneCycleLR": lambda: torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.05, total_steps=num_steps),
        "CosineAnnealingLR": lambda: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=5),
        "ReduceLROnPlateau": lambda: torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0),
        "none": lambda: None,
    }[schedule]()
    warmup_steps = 4 if schedule == "CosineAnnealingLR" else 0
    loader = LoaderSettings(batch_size=8, num_workers=num_workers)
    sinks = []
    if folder is not None:
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        sinks = [CSVFile(folder / "metrics.csv")]
    return Trainer(
        Task(nn.CrossEntropyLoss()),
        model,
        Loader(Part("train", NoisyRows(), seed=seed), loader, shuffle=True, seed=seed),
        {"optimizer": optimizer},
        TrainerSettings(**{"epochs": 5, "log_every_steps": 3, **settings}),
        schedules={"lr_scheduler": Schedule(optimizer, scheduler, warmup_steps=warmup_steps, monitor="val/loss")},
        val_loaders={"val": Loader(Part("val", NoisyRows(21), seed=seed), loader, shuffle=False, seed=seed)},
        metrics=MetricSet({"accuracy": accuracy}),
        logger=Logger(sinks),
        checkpoints=folder / "checkpoints" if folder else None,
        hooks=[KillAt(kill_at), *hooks],
    )


def weights(trainer: Trainer) -> dict[str, Tensor]:
    """Return a copy of all weights, averaged ones included."""
    state = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    if trainer.ema:
        state |= {f"ema.{name}": value.clone() for name, value in trainer.ema.model.state_dict().items()}
    return state


def assert_same_weights(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), f"{name} differs"
