"""What a second process brings, and what it costs: `python -m benchmarks.two_processes`.

Two processes with gloo on this machine's loopback, one thread each. Every process has a batch of its own (weak
scaling), so with free communication two would make a step in the time of one. Three loops take turns, round by round,
so that other programs on the machine hit them alike: one process alone while the other waits, both by hand with
DistributedDataParallel, and both in our trainer.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import TensorDataset

from benchmarks.timing import Seconds, clocks
from src.data.loading.loader import Loader
from src.data.loading.share import Share
from src.data.parts.part import Part
from src.data.settings import LoaderSettings
from src.trainer.hooks import Hook
from src.trainer.settings import TrainerSettings
from src.trainer.task import Task
from src.trainer.trainer import Trainer
from src.utils.command import run_command
from src.utils.processes.launch import launch
from src.utils.processes.launched import find_ranks
from src.utils.processes.ranks import Ranks


@dataclass(frozen=True)
class Work:
    """A perceptron and the batch of one process."""

    name: str
    widths: Sequence[int]
    batch_size: int
    steps: int

    def model(self) -> nn.Module:
        """Return the model, the same each time."""
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for narrow, wide in pairwise(self.widths):
            layers += [nn.Linear(narrow, wide), nn.ReLU()]
        return nn.Sequential(*layers[:-1])

    def data(self, num_ranks: int) -> TensorDataset:
        """Return the rows of one epoch of all processes."""
        rows = self.steps * self.batch_size * num_ranks
        return TensorDataset(torch.randn(rows, self.widths[0]), torch.randn(rows, self.widths[-1]))


WORKS = (
    Work("tiny: 21 thousand parameters, batch 64", (64, 200, 40, 10), 64, 200),
    Work("1 million parameters, batch 256", (256, 768, 768, 256), 256, 20),
    Work("4 million parameters, batch 512", (512, 1536, 1536, 512), 512, 6),
)


@dataclass
class Times:
    """Seconds of a step in each round."""

    sent_bytes: int
    """Given to all-reduce in a step."""
    alone: list[Seconds] = field(default_factory=list)
    by_hand: list[Seconds] = field(default_factory=list)
    ours: list[Seconds] = field(default_factory=list)


def measure(ranks: Ranks, work: Work, rounds: int) -> Times:
    """Return the times of one work; all ranks call it."""
    own = TensorDataset(*work.data(1).tensors)
    together = work.data(ranks.world_size)
    by_hand = DistributedDataParallel(work.model())
    times = Times(sent_bytes(work, own))
    train_by_hand(by_hand, work, own)  # the first step lays out the buckets
    for _ in range(rounds):
        dist.barrier()
        if ranks.is_main:
            times.alone.append(train_by_hand(work.model(), work, own))
        dist.barrier()
        times.by_hand.append(train_by_hand(by_hand, work, own))
        dist.barrier()
        times.ours.append(train_ours(ranks, work, together))
    return times


def sent_bytes(work: Work, data: TensorDataset) -> int:
    """Return how many bytes of gradients one step gives to all-reduce."""
    model, sent = DistributedDataParallel(work.model()), [0]

    def count(state, bucket):  # type: ignore[no-untyped-def]  # torch wants annotations that are no text, or none
        sent[0] += bucket.buffer().nbytes
        return allreduce_hook(None, bucket)  # type: ignore[arg-type]  # of all processes

    model.register_comm_hook(None, count)
    train_by_hand(model, work, data)
    return sent[0] // work.steps


def train_by_hand(model: nn.Module, work: Work, data: TensorDataset) -> Seconds:
    """Train an epoch on this process's own rows and return the seconds of a step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    inputs, targets = (torch.split(tensor, work.batch_size) for tensor in data.tensors)
    started = clocks()
    for batch, target in zip(inputs, targets, strict=True):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(batch), target)
        loss.backward()  # type: ignore[no-untyped-call]
        loss.item()
        optimizer.step()
    return per_step(started, clocks(), work)


class Stopwatch(Hook):
    """Looks at the clocks after each epoch."""

    def __init__(self) -> None:
        self.seen: list[Seconds] = []

    def on_epoch_end(self, trainer: Trainer, values: Mapping[str, float]) -> None:
        """Note the time."""
        self.seen.append(clocks())


def train_ours(ranks: Ranks, work: Work, data: TensorDataset) -> Seconds:
    """Train two epochs on this process's share of every batch, and return the seconds of a step of the second."""
    model, watch = work.model(), Stopwatch()
    share = Share(ranks.rank, ranks.world_size)
    loader = Loader(Part("train", data), LoaderSettings(batch_size=work.batch_size), shuffle=False, seed=0, share=share)
    optimizers = {"optimizer": torch.optim.SGD(model.parameters(), lr=1e-3)}
    settings = TrainerSettings(epochs=2, log_every_steps=10**6)
    Trainer(Task(nn.MSELoss()), model, loader, optimizers, settings, hooks=[watch], ranks=ranks).fit()
    started, ended = watch.seen
    return per_step(started, ended, work)


def per_step(started: Seconds, ended: Seconds, work: Work) -> Seconds:
    """Return the seconds of a step."""
    return (ended[0] - started[0]) / work.steps, (ended[1] - started[1]) / work.steps


def cells(work: Work, times: Times) -> Iterator[str]:
    """Yield a row of the table in docs/scaling.md."""
    yield work.name
    yield f"{times.sent_bytes / 1e6:.3g} MB"
    for clock in (0, 1):
        for each in (times.alone, times.by_hand, times.ours):
            yield f"{1e3 * statistics.median(seconds[clock] for seconds in each):.3g}"
    ratios = [alone[0] / both[0] for alone, both in zip(times.alone, times.ours, strict=True)]
    yield f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    costs = [ours[1] / hand[1] for ours, hand in zip(times.ours, times.by_hand, strict=True)]
    yield f"{statistics.median(costs):.2f} ({min(costs):.2f} to {max(costs):.2f})"


def main() -> int:
    """Start both processes; as one of them, measure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.two_processes", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    ranks = find_ranks()
    if ranks.is_alone:
        return launch([sys.executable, "-m", "benchmarks.two_processes", *sys.argv[1:]], 2, max_restarts=0)
    torch.set_num_threads(1)
    ranks.start(torch.device("cpu"), 120.0)
    head = ["work", "all-reduced", "ms alone", "by hand", "ours", "CPU ms alone", "by hand", "ours"]
    lines = [[*head, "alone / ours", "CPU, ours / by hand"], ["---"] * (len(head) + 2)]
    for work in WORKS:
        times = measure(ranks, work, rounds)
        if ranks.is_main:
            lines.append(list(cells(work, times)))
    if ranks.is_main:
        print(*(f"| {' | '.join(line)} |" for line in lines), sep="\n", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
