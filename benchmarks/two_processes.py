"""What a second process brings, and what it costs: `python -m benchmarks.two_processes`.

A loop by hand with DistributedDataParallel over gloo, on this machine's loopback, one thread a process. Each process
has a batch of its own (weak scaling), so that with free communication two would make a step in the time of one.
Processes take turns in being alone and together, round by round: other programs on the machine hit both alike.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from tempfile import TemporaryDirectory

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

WARM_UP = 3


@dataclass
class Work:
    """A model and the batch of one process."""

    name: str
    widths: Sequence[int]
    batch_size: int
    steps: int

    def model(self) -> nn.Module:
        """Return a perceptron of these widths."""
        layers: list[nn.Module] = []
        for narrow, wide in zip(self.widths, self.widths[1:], strict=False):
            layers += [nn.Linear(narrow, wide), nn.ReLU()]
        return nn.Sequential(*layers[:-1])


@dataclass
class Times:
    """Seconds of a step in each round."""

    num_params: int
    sent_bytes: int
    """Given to all-reduce in a step."""
    alone_s: list[float] = field(default_factory=list)
    together_s: list[float] = field(default_factory=list)


WORKS = (
    Work("21 thousand parameters, batch 64", (64, 200, 40, 10), 64, 200),
    Work("1 million parameters, batch 256", (256, 768, 768, 256), 256, 20),
    Work("4 million parameters, batch 512", (512, 1536, 1536, 512), 512, 6),
)


def measure(rank: int, folder: str, rounds: int) -> None:
    """Measure all works as one of two processes; rank 0 prints."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    for work in WORKS:
        times = measure_work(work, rounds)
        if rank == 0:
            print(line(work, times), flush=True)
    dist.destroy_process_group()


def measure_work(work: Work, rounds: int) -> Times:
    """Return the times of one work; both processes call it."""
    torch.manual_seed(0)
    alone, together = work.model(), DistributedDataParallel(work.model())
    times = Times(sum(each.numel() for each in alone.parameters()), sent_bytes(work))
    run(alone, work, WARM_UP)
    run(together, work, WARM_UP)  # the first step lays out the buckets
    for _ in range(rounds):
        for rank in (0, 1):  # alone: the other process waits
            dist.barrier()
            if dist.get_rank() == rank:
                seconds = run(alone, work, work.steps)
                if rank == 0:
                    times.alone_s.append(seconds)
        dist.barrier()
        times.together_s.append(run(together, work, work.steps))
    return times


def sent_bytes(work: Work) -> int:
    """Return how many bytes of gradients one step gives to all-reduce."""
    model, sent = DistributedDataParallel(work.model()), [0]

    def count(state, bucket):  # type: ignore[no-untyped-def]  # torch wants annotations that are no text, or none
        sent[0] += bucket.buffer().nbytes
        return allreduce_hook(None, bucket)

    model.register_comm_hook(None, count)
    run(model, work, 1)
    return sent[0]


def run(model: nn.Module, work: Work, steps: int) -> float:
    """Train for some steps and return the seconds of one."""
    inputs, targets = torch.randn(work.batch_size, work.widths[0]), torch.randn(work.batch_size, work.widths[-1])
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    started_s = time.perf_counter()
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(inputs), targets).backward()
        optimizer.step()
    return (time.perf_counter() - started_s) / steps


def line(work: Work, times: Times) -> str:
    """Return a row of the table in docs/scaling.md."""
    ratios = [alone / together for alone, together in zip(times.alone_s, times.together_s, strict=True)]
    alone, together = (statistics.median(each) for each in (times.alone_s, times.together_s))
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    cells = (
        work.name,
        f"{times.sent_bytes / 1e6:.3g} MB",
        f"{1e3 * alone:.3g} ms",
        f"{1e3 * together:.3g} ms",
        f"{statistics.median(ratios):.2f} ({spread})",
    )
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Start both processes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.two_processes", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    print("| work | all-reduced in a step | step alone | step of two | efficiency (spread) |\n|---|---|---|---|---|")
    with TemporaryDirectory(prefix="keel-two-") as folder:
        spawn(measure, (folder, options.rounds), nprocs=2)


if __name__ == "__main__":
    main()
