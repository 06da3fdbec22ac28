"""Commands and files: starting up, and saving."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import Row, interleave, measured
from src.trainer.checkpoints.saving import Saver
from src.trainer.checkpoints.store import CheckpointStore

ROOT = Path(__file__).resolve().parents[1]

BY_HAND = """
import torch
from torch import nn
x = torch.rand(100, 1); y = 2 * x + 1
model, criterion = nn.Linear(1, 1), nn.MSELoss()
optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
for i in range(4):
    optimizer.zero_grad()
    loss = criterion(model(x[32 * i : 32 * i + 32]), y[32 * i : 32 * i + 32])
    loss.backward()
    optimizer.step()
"""
SHORTEST = ("-c", "configs/line.yaml", "trainer.epochs=1", "logger.tensorboard=false")


def command_s(*arguments: str) -> float:
    """Return the CPU seconds of a Python process, its libraries kept to one thread."""
    before = os.times()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, check=True, capture_output=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def help_seconds(rounds: int) -> Iterator[Row]:
    """The time to `--help`."""
    command_s("train.py", "--help")
    times = [command_s("train.py", "--help") for _ in range(rounds)]
    yield Row("`train.py --help`, CPU seconds", "", 0.15, times)


def structural_check(rounds: int) -> Iterator[Row]:
    """A config read and checked as far as can be without importing torch: what comes first in every command."""
    words = ("train.py", "-c", "configs/digits.yaml", "--print-config")
    command_s(*words)
    times = [command_s(*words) for _ in range(rounds)]
    yield Row("keys and values of a config checked, CPU seconds", "", 0.3, times, note="`--print-config`")


def start(rounds: int) -> Iterator[Row]:
    """The whole of a run that makes four steps: the time is that of imports."""
    with tempfile.TemporaryDirectory() as folder:
        ours, by_hand = interleave(
            lambda: command_s("train.py", *SHORTEST, f"trainer.save_dir={folder}"),
            lambda: command_s("-c", BY_HAND),
            min(rounds, 3),
        )
    note = "checks, run folder and checkpoint included"
    yield Row("start to the end of four steps", "script by hand", 1.0, ours, by_hand, note=note)


def saving(rounds: int) -> Iterator[Row]:
    """A checkpoint of 300 MB, in CPU time and on the clock."""
    state = large_state()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        store = CheckpointStore(folder, keep=1)
        seconds: dict[str, list[float]] = {"ours": [], "hand": []}

        def ours() -> float:
            with measured() as watch:
                store.save(state, len(seconds["ours"]), is_best=True)
            seconds["ours"].append(watch.wall_s)
            return watch.cpu_s

        def by_hand() -> float:
            with measured() as watch:
                torch.save(state, folder / "plain.pt")
            seconds["hand"].append(watch.wall_s)
            return watch.cpu_s

        times = interleave(ours, by_hand, min(rounds, 5))
    hand = "torch.save, no fsync, no checksum"
    yield Row("save 300 MB, a new best, CPU", hand, 1.0, *times, note="fsync, checksum, atomic, best.pt a link")
    yield Row(
        "save 300 MB, a new best, clock", hand, 1.0, seconds["ours"][1:], seconds["hand"][1:], note="waits for the disk"
    )


def saving_in_background(rounds: int) -> Iterator[Row]:
    """For how long training stands still while the same state is saved in the background."""
    state = large_state()
    with tempfile.TemporaryDirectory() as made, Saver(Path(made), keep=1, in_background=True) as saver:
        saver.save(lambda: state, 0, is_best=True, is_last_chance=False)  # is waited for
        step = 0

        def ours() -> float:
            nonlocal step
            step += 1
            with measured() as watch:
                saver.save(lambda: state, step, is_best=True, is_last_chance=False)
            assert saver.has_saved(step)
            return watch.wall_s

        def by_hand() -> float:
            with measured() as watch:
                torch.save(state, Path(made) / "plain.pt")
            return watch.wall_s

        times = interleave(ours, by_hand, min(rounds, 7))
    yield Row(
        "save 300 MB in the background, standstill, clock", "torch.save", 0.15, *times, note="one copy of the state"
    )


def large_state() -> dict[str, Any]:
    """Return the sizes of 25 layers and their two moments of Adam: 300 MB."""
    torch.manual_seed(0)
    names = [f"layer{i}.{kind}" for i in range(25) for kind in ("weight", "mean", "square")]
    return {"format": 1, "model": {name: torch.randn(1024, 1024) for name in names}}
