"""What must not grow: a step and a resume with the rows of the data, a start with the runs beside it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset

from benchmarks.commands import SHORTEST, command_s
from benchmarks.steps import SGD, Case
from benchmarks.timing import Row, interleave, measured
from src.data.loading.loader import Loader
from src.data.parts.part import Part

FEW, MANY = 10**3, 10**8
RUNS = 10**4
GOAL = 1.1


def rows_of_data(rounds: int) -> Iterator[Row]:
    """A shuffled step, and the first batch of a resume, with a hundred thousand times the rows (800 MB)."""
    few, many = (case_of(num_rows) for num_rows in (FEW, MANY))
    times = interleave(many.ours, few.ours, rounds)
    yield Row("tiny shuffled step, 100,000,000 rows", "1,000 rows", GOAL, *times, 3000, "step")
    middle = len(many.loader) // 2
    times = interleave(lambda: first_batch_s(many.loader, middle), lambda: first_batch_s(many.loader, 0), 5 * rounds)
    yield Row("first batch of a resume after 50,000,000 rows", "first batch of the epoch", GOAL, *times)


def case_of(num_rows: int) -> Case:
    """Return a regression of one number on another in batches of 32, 3000 steps whatever the number of rows."""
    part = Part("train", TensorDataset(torch.randn(num_rows, 1), torch.randn(num_rows, 1)))
    endless = {"max_steps": 3000}
    return Case(lambda: nn.Linear(1, 1), nn.MSELoss(), SGD, part, 32, epochs=10**6, settings=endless)


def first_batch_s(loader: Loader, start: int) -> float:
    """Return the seconds until batch `start` is there."""
    with measured() as watch:
        next(iter(loader.batches(0, start)))
    return watch.cpu_s


def runs_beside(rounds: int) -> Iterator[Row]:
    """The start of a run in a folder of 10,000 runs, which are links to the files of one."""
    with tempfile.TemporaryDirectory() as alone, tempfile.TemporaryDirectory() as crowded:
        command_s("train.py", *SHORTEST, f"trainer.save_dir={crowded}")
        (first,) = Path(crowded).glob("line/*/config.yaml")
        for number in range(1, RUNS):
            shutil.copytree(first.parent, first.parent.with_name(f"run{number}"), copy_function=os.link)
        ours, few = interleave(
            lambda: command_s("train.py", *SHORTEST, f"trainer.save_dir={crowded}"),
            lambda: command_s("train.py", *SHORTEST, f"trainer.save_dir={alone}"),
            min(rounds, 3),
        )
    yield Row("start to the end of four steps, 10,000 runs in `saved/`", "next to none", GOAL, ours, few)
