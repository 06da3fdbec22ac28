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

from benchmarks.timing import Row, interleave, measured
from src.data.loading.loader import Loader
from src.data.loading.share import Share
from src.data.parts.part import Part
from src.data.settings import LoaderSettings
from src.logger.logger import Logger
from src.model.lenet import LeNet
from src.model.mlp import MLP
from src.trainer.settings import TrainerSettings
from src.trainer.task import Task
from src.trainer.trainer import Trainer
from src.utils.processes.launched import find_ranks

ROOT = Path(__file__).resolve().parents[1]
NUM_RANKS = 2
WORK = ("LeNet step, 2 ranks, 64 rows each", "tabular step, 2 ranks, 1024 rows each")


def two_ranks(rounds: int) -> Iterator[Row]:
    """Yields a row for each kind of model, measured on rank 0."""
    program = (
        "import sys; from src.utils.processes.launch import launch; sys.exit(launch(sys.argv[2:], int(sys.argv[1]), 0))"
    )
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "seconds.json"
        rank = [sys.executable, "-m", "benchmarks.ranks", str(rounds), str(found)]
        subprocess.run([sys.executable, "-c", program, str(NUM_RANKS), *rank], cwd=ROOT, check=True)
        for work, (ours, hand, steps) in json.loads(found.read_text(encoding="utf-8")).items():
            yield Row(work, "DDP loop by hand, our loader", 1.03, ours, hand, steps, "step", "clock, gloo")


def main(rounds: int, found: Path) -> None:
    """Measure as one of the ranks."""
    torch.set_num_threads(1)
    ranks = find_ranks()
    ranks.start(torch.device("cpu"), 300.0)
    images = TensorDataset(torch.randn(5120, 1, 28, 28), torch.randint(10, (5120,)))
    table = TensorDataset(torch.randn(102_400, 32), torch.randn(102_400, 1))
    cases: list[tuple[Callable[[], nn.Module], nn.Module, TensorDataset, int]] = [
        (LeNet, nn.CrossEntropyLoss(), images, 64),
        (lambda: MLP(in_features=32, hidden=[64, 64], out_features=1), nn.MSELoss(), table, 1024),
    ]
    seconds = {}
    for work, (make_model, criterion, rows, batch_size) in zip(WORK, cases, strict=True):
        part, share = Part("train", rows), Share(ranks.rank, ranks.world_size)
        loader = Loader(part, LoaderSettings(batch_size=batch_size), shuffle=True, seed=0, share=share)

        def prepare(make_model: Any = make_model) -> tuple[nn.Module, torch.optim.Optimizer]:
            torch.manual_seed(0)
            model = make_model()
            return model, torch.optim.AdamW(model.parameters())

        def by_hand(prepare: Any = prepare, loader: Any = loader, criterion: Any = criterion) -> float:
            model, optimizer = prepare()
            replica, total, num_rows = DistributedDataParallel(model), 0.0, 0
            with measured() as watch:
                for shared in loader.batches():
                    inputs, targets = shared.batch
                    optimizer.zero_grad()
                    loss = criterion(replica(inputs), targets)
                    loss.backward()
                    optimizer.step()
                    total += loss.item() * len(inputs)
                    num_rows += len(inputs)
            assert total / num_rows > 0
            return watch.wall_s

        def ours(prepare: Any = prepare, loader: Any = loader, criterion: Any = criterion) -> float:
            model, optimizer = prepare()
            optimizers, settings = {"optimizer": optimizer}, TrainerSettings(epochs=1)
            trainer = Trainer(Task(criterion), model, loader, optimizers, settings, logger=Logger(), ranks=ranks)
            with measured() as watch:
                trainer.fit()
            return watch.wall_s

        seconds[work] = (*interleave(ours, by_hand, rounds), len(loader))
    if ranks.is_main:
        found.write_text(json.dumps(seconds), encoding="utf-8")
    ranks.leave(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
