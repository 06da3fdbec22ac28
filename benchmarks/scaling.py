"""What a training job of many GPUs does with its time, by arithmetic: `python -m benchmarks.scaling --gpus 8 64 1024`.

Inputs are what can be measured on one machine (seconds of a step, parameters, bytes of a batch) and what a cluster's
data sheet says (bandwidths, mean time between failures). A second part plays the failures out, as a check of the
formulas: `--play`. docs/scaling.md explains both.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace


@dataclass(frozen=True)
class Job:
    """One training job. The defaults are a language model of 1.3 billion parameters on 8-GPU nodes."""

    gpus: int = 64
    params: float = 1.3e9
    """Parameters of the model."""

    bytes_per_gradient: float = 4.0
    """4 for fp32; 2 when gradients are exchanged in bf16."""

    bytes_per_param_saved: float = 12.0
    """Of a checkpoint: fp32 weights and two moments of Adam."""

    compute_s: float = 1.0
    """Seconds that one GPU computes for one step, alone."""

    sample_bytes: float = 8192.0
    """Read for one sample: 4,096 tokens of two bytes."""

    samples_per_gpu: int = 8
    """Samples of one step on one GPU."""

    gpus_per_node: int = 8
    node_gb_per_s: float = 300.0
    """All-reduce bandwidth within a node, as one GPU sees it (NVLink)."""

    network_gb_per_s: float = 40.0
    """The same between nodes: what all adapters of a node carry together, here 400 Gb/s, less protocol."""

    latency_s: float = 2e-5
    """Of one hop of a ring."""

    buckets: int = 50
    """All-reduces of a step: DDP fills buckets of 25 MiB, and larger models larger ones."""

    overlap: float = 0.8
    """Share of the all-reduce that the backward pass hides."""

    storage_gb_per_s: float = 1.0
    """What rank 0 writes, with checksum and fsync; 0.8 is measured here (docs/performance.md)."""

    gpu_hours_per_failure: float = 50_000.0
    """419 unexpected interruptions in 54 days of 16,384 GPUs: 50,700 (Llama 3, arXiv:2407.21783, table 5)."""

    restart_s: float = 300.0
    """From a failure to the first step after it: noticing, a new node, importing, loading, compiling."""


@dataclass(frozen=True)
class Plan:
    """What becomes of the time of a job."""

    all_reduce_bytes: float
    """Sent by each GPU in each step."""
    all_reduce_s: float
    step_s: float
    scaling: float
    """Share of a step that is computing."""
    read_gb_per_s: float
    save_gb: float
    save_s: float
    failure_s: float
    """Mean time between failures of the whole job."""
    save_every_s: float
    goodput: float
    """Share of the time that goes into steps which are not lost."""

    @property
    def efficiency(self) -> float:
        """Share of all GPU time that computes something that is kept."""
        return self.scaling * self.goodput


def plan(job: Job) -> Plan:
    """Return what the formulas say."""
    size = job.params * job.bytes_per_gradient
    sent = 2 * (job.gpus - 1) / job.gpus * size  # a ring: reduce-scatter, then all-gather
    nodes = math.ceil(job.gpus / job.gpus_per_node)
    between = math.inf if nodes == 1 else job.network_gb_per_s
    bandwidth = 1e9 * min(job.node_gb_per_s, between)  # the slowest link sets the pace
    hops = 2 * (min(job.gpus, job.gpus_per_node) - 1) + 2 * (nodes - 1)
    all_reduce_s = sent / bandwidth + job.buckets * hops * job.latency_s
    step_s = job.compute_s + max((1 - job.overlap) * all_reduce_s, all_reduce_s - job.compute_s * 2 / 3)
    save_gb = job.params * job.bytes_per_param_saved / 1e9
    save_s, failure_s = save_gb / job.storage_gb_per_s, 3600 * job.gpu_hours_per_failure / job.gpus
    every_s = best_interval(save_s, failure_s)
    return Plan(
        all_reduce_bytes=sent,
        all_reduce_s=all_reduce_s,
        step_s=step_s,
        scaling=job.compute_s / step_s,
        read_gb_per_s=job.gpus * job.samples_per_gpu * job.sample_bytes / step_s / 1e9,
        save_gb=save_gb,
        save_s=save_s,
        failure_s=failure_s,
        save_every_s=every_s,
        goodput=goodput(every_s, save_s, job.restart_s, failure_s),
    )


def best_interval(save_s: float, failure_s: float) -> float:
    """Return the seconds of work between two saves that lose least (Daly 2006, eq. 37).

    The first term is Young's of 1974, sqrt(2 save failure). Training is taken to wait while it saves.
    """
    if save_s >= 2 * failure_s:
        return failure_s
    ratio = save_s / (2 * failure_s)
    return math.sqrt(2 * save_s * failure_s) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - save_s


def goodput(every_s: float, save_s: float, restart_s: float, failure_s: float) -> float:
    """Return work done by time passed, for failures that come independently of each other (Daly 2006)."""
    passed = failure_s * math.exp(restart_s / failure_s) * math.expm1((every_s + save_s) / failure_s)
    return every_s / passed


def play(every_s: float, save_s: float, restart_s: float, failure_s: float, saves: int, seed: int) -> float:
    """Return the same by playing it out: failures at random, and all work since the last save is lost."""
    stream = random.Random(seed)  # no secret comes of it  # nosec B311
    passed, done, next_failure = 0.0, 0, stream.expovariate(1 / failure_s)
    while done < saves:
        end = passed + every_s + save_s
        if end <= next_failure:
            passed, done = end, done + 1
            continue
        passed, next_failure = next_failure, next_failure + stream.expovariate(1 / failure_s)
        while next_failure < passed + restart_s:  # failed again before it was up
            passed, next_failure = next_failure, next_failure + stream.expovariate(1 / failure_s)
        passed += restart_s
    return saves * every_s / passed


def table(jobs: Sequence[Job], with_play: bool = False, seed: int = 0) -> list[str]:
    """Return the plans of some jobs as a table in Markdown."""
    rows: dict[str, list[str]] = {"GPUs": [f"{job.gpus:,}" for job in jobs]}
    for job in jobs:
        found = plan(job)
        cells = {
            "sent by each GPU in a step": f"{found.all_reduce_bytes / 1e9:.3g} GB",
            "all-reduce, if nothing hid it": f"{found.all_reduce_s:.3g} s",
            "step": f"{found.step_s:.3g} s",
            "computing / step": f"{found.scaling:.1%}",
            "data read": f"{found.read_gb_per_s * 1e3:.3g} MB/s",
            "checkpoint": f"{found.save_gb:.3g} GB in {found.save_s:.3g} s",
            "a failure every": _time(found.failure_s),
            "best save interval": _time(found.save_every_s),
            "kept work / time": f"{found.goodput:.1%}",
            "both": f"{found.efficiency:.1%}",
        }
        if with_play:
            share = play(found.save_every_s, found.save_s, job.restart_s, found.failure_s, 20_000, seed)
            cells["kept work / time, played out"] = f"{share:.1%}"
        for name, cell in cells.items():
            rows.setdefault(name, []).append(cell)
    head, *others = [f"| {' | '.join([name, *cells])} |" for name, cells in rows.items()]
    return [head, f"|{'---|' * (len(jobs) + 1)}", *others]


def _time(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def main() -> None:
    """Print the table for what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 64, 1024])
    parser.add_argument("--play", action="store_true", help="play failures out as well")
    parser.add_argument("--seed", type=int, default=0, help="of the failures that are played out")
    numbers = [each for each in fields(Job) if each.name != "gpus"]
    for each in numbers:
        parser.add_argument(f"--{each.name.replace('_', '-')}", type=float, default=each.default, metavar="X")
    options = parser.parse_args()
    job = Job(**{each.name: getattr(options, each.name) for each in numbers})
    print(*table([replace(job, gpus=count) for count in options.gpus], options.play, options.seed), sep="\n")


if __name__ == "__main__":
    main()
