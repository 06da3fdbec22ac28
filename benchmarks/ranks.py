"""A step of two processes: our trainer, and a DistributedDataParallel loop written by hand, on the same batches.

`python -m benchmarks.ranks ROUNDS FILE` is one of the two processes; rank 0 writes the seconds of both to FILE.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import TensorDataset

from benchmarks.steps import tabular_model
from benchmarks.timing import Row, Seconds, clocks, since
from src.data.loading.loader import Loader
from src.data.loading.share import Share
from src.data.parts.part import Part
from src.data.settings import LoaderSettings
from src.model.lenet import LeNet
from src.trainer.hooks import Hook
from src.trainer.settings import TrainerSettings
from src.trainer.task import Task
from src.trainer.trainer import Trainer
from src.utils.processes.launched import find_ranks
from src.utils.processes.ranks import Ranks

ROOT = Path(__file__).resolve().parents[1]
NUM_RANKS = 2
WARM = 10
"""Steps that do not count: the first ones connect the processes and lay out buckets of gradients."""


def two_ranks(rounds: int) -> Iterator[Row]:
    """Yields two rows for each kind of model, by both clocks, measured on rank 0."""
    program = (
        "import sys; from src.utils.processes.launch import launch; sys.exit(launch(sys.argv[2:], int(sys.argv[1]), 0))"
    )
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "seconds.json"
        rank = [sys.executable, "-m", "benchmarks.ranks", str(rounds), str(found)]
        subprocess.run([sys.executable, "-c", program, str(NUM_RANKS), *rank], cwd=ROOT, check=True)
        for work, count, *pairs in json.loads(found.read_text(encoding="utf-8")):
            for which, clock in enumerate(("clock, gloo", "CPU, gloo")):
                ours, hand = ([each[which] for each in way] for way in zip(*pairs, strict=True))
                yield Row(work, "DDP loop by hand, our loader", 1.03, ours, hand, count, "step", clock)


class Race:
    """The same epoch in our trainer and in a loop by hand, from step `WARM` to its end."""

    def __init__(self, make_model: Callable[[], nn.Module], criterion: nn.Module, loader: Loader, ranks: Ranks) -> None:
        self.make_model, self.criterion, self.loader, self.ranks = make_model, criterion, loader, ranks

    def prepare(self) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Return a new model and its optimizer, the same at each call."""
        torch.manual_seed(0)
        model = self.make_model()
        return model, torch.optim.AdamW(model.parameters())

    def by_hand(self) -> Seconds:
        """Train with a loop written by hand: a clean step, and the mean loss of the own rows."""
        model, optimizer = self.prepare()
        replica, total, num_rows, started = DistributedDataParallel(model), 0.0, 0, clocks()
        for number, shared in enumerate(self.loader.batches()):
            inputs, targets = shared.batch
            optimizer.zero_grad()
            loss = self.criterion(replica(inputs), targets)
            loss.backward()
            optimizer.step()
            total += loss.item() * len(inputs)
            num_rows += len(inputs)
            if number == WARM - 1:
                started = clocks()
        assert total / num_rows > 0
        return since(started)

    def ours(self) -> Seconds:
        """Train with the trainer, logging off."""
        model, optimizer = self.prepare()
        optimizers, settings, started = {"optimizer": optimizer}, TrainerSettings(epochs=1), Started()
        Trainer(Task(self.criterion), model, self.loader, optimizers, settings, hooks=[started], ranks=self.ranks).fit()
        return since(started.seen)


class Started(Hook):
    """Looks at the clocks when the buckets of gradients are laid out."""

    def on_step_end(self, trainer: Trainer) -> None:
        """Note the time."""
        if trainer.progress.step == WARM:
            self.seen = clocks()


def main(rounds: int, found: Path) -> None:
    """Measure as one of the ranks."""
    torch.set_num_threads(1)
    ranks = find_ranks()
    ranks.start(torch.device("cpu"), 300.0)
    images = TensorDataset(torch.randn(7680, 1, 28, 28), torch.randint(10, (7680,)))
    table = TensorDataset(torch.randn(409_600, 32), torch.randn(409_600, 1))
    cases: list[tuple[str, Callable[[], nn.Module], nn.Module, TensorDataset, int]] = [
        ("LeNet step, 2 ranks, 64 rows each", LeNet, nn.CrossEntropyLoss(), images, 64),
        ("tabular step, 2 ranks, 1024 rows each", tabular_model, nn.MSELoss(), table, 1024),
    ]
    seconds: list[Any] = []
    for work, make_model, criterion, rows, batch_size in cases:
        share = Share(ranks.rank, ranks.world_size)
        loader = Loader(Part("train", rows), LoaderSettings(batch_size=batch_size), shuffle=True, seed=0, share=share)
        race = Race(make_model, criterion, loader, ranks)
        pairs = [(race.ours(), race.by_hand()) for _ in range(rounds + 1)]
        seconds.append([work, len(loader) - WARM, *pairs[1:]])
    if ranks.is_main:
        found.write_text(json.dumps(seconds), encoding="utf-8")
    ranks.leave(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
