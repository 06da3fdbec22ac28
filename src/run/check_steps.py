"""What `--check` finds out by training a few steps: losses, time, memory, traffic, dead parameters."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from src.config.settings import Config
from src.run.experiment import Experiment
from src.trainer.evaluate import evaluating
from src.trainer.faults.nonfinite import tensors_in
from src.trainer.optimizers import parameters_of
from src.trainer.parallel.choose import is_cut
from src.trainer.schedule import count_steps
from src.trainer.task import StepOutput, Task, undisturbed
from src.trainer.trainer import Trainer
from src.utils.device import to_device

NUM_STEPS = 3
_UNITS = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))


def try_steps(trainer: Trainer, experiment: Experiment, config: Config, mistrusted: list[str]) -> Iterator[str]:
    """Trains a few steps on the first batch, and evaluates on it before and after.

    Args:
        trainer: As it would begin.
        experiment: Of it.
        config: Of the run.
        mistrusted: What is odd is added here.
    """
    group = tuple(islice(trainer.train_loader.batches(), config.trainer.accumulate_steps))
    own = trainer.parallel.own(group)
    trains_alone = hasattr(trainer.task, "update") and type(trainer.task).step is Task.step  # it has no step to try
    is_divided = is_cut(trainer.settings, trainer.ranks)
    before = None if trains_alone else _evaluate_once(trainer, own[0])
    traffic: Any = getattr(trainer.ranks, "traffic", nullcontext())
    times = []
    trainer.freezing.begin(0)
    trainer.task.begin("train", 0)
    trainer.model.train()
    for number in range(NUM_STEPS):
        started_s = time.perf_counter()
        with traffic if number == NUM_STEPS - 1 else nullcontext():  # counting takes time
            trainer.step.make(group)
        times.append(time.perf_counter() - started_s)
    trainer.progress.step += NUM_STEPS
    if before is not None:
        yield f"shapes     batch {_shapes(own[0])} -> outputs {_shapes(before.outputs)}"
    if is_divided:
        yield "loss       not told: it takes the weights of all ranks; --check without --world-size tells it"
    elif before is not None:
        yield _describe_change(before, _evaluate_once(trainer, own[0]), mistrusted)
    for name, loader in ({} if is_divided else experiment.val_loaders).items():
        (batch,) = trainer.parallel.own([next(iter(loader.batches()))])
        output = _evaluate_once(trainer, batch)
        yield f"{name:<10} loss {float(output.loss):.5g} on its first batch"
    steps_per_epoch, _ = count_steps(experiment.loaders["train"], config.trainer)
    epoch = f", about {min(times) * steps_per_epoch:.3g} s an epoch" if math.isfinite(steps_per_epoch) else ""
    yield f"time       {min(times) * 1000:.3g} ms a step{epoch}, without reading data and evaluating"
    yield f"memory     {_memory(trainer)}" + ("" if trainer.ranks.is_alone else ", on each rank")
    if not trainer.ranks.is_alone:
        compresses = trainer.settings.parallel_settings.compress is not None
        yield f"traffic    {traffic.describe(trainer.ranks.world_size, compresses)}"
    if not is_divided:  # gradients are of pretended weights there
        mistrusted += _dead_parameters(trainer)


def _describe_change(before: StepOutput, after: StepOutput, mistrusted: list[str]) -> str:
    loss = (float(before.loss), float(after.loss))
    if loss[0] == loss[1]:
        mistrusted.append(f"the loss does not change: {loss[0]:.5g} before and after {NUM_STEPS} steps")
    return f"loss       {loss[0]:.5g} on the first batch, {loss[1]:.5g} after {NUM_STEPS} steps on it"


def _evaluate_once(trainer: Trainer, batch: Any) -> StepOutput:
    with evaluating(trainer.model), undisturbed(trainer.task), torch.no_grad(), trainer.step.amp():
        return trainer.task.step(trainer.model, to_device(batch, trainer.device))


def _shapes(value: Any) -> str:
    named = ((list(each.shape), str(each.dtype).removeprefix("torch.")) for each in tensors_in(value))
    return " ".join(f"{shape} {dtype}" for shape, dtype in named)


def _dead_parameters(trainer: Trainer) -> Iterator[str]:
    """Yields which parameters got no gradient in the last step, or one of nothing but zeros."""
    trains = {name: each for name, each in trainer.model.named_parameters() if each.requires_grad}
    held = {id(each) for optimizer in trainer.optimizers.values() for each in parameters_of(optimizer)}
    groups = {
        "in no optimizer": [name for name, each in trains.items() if id(each) not in held],
        "never used: no gradient reaches them": [name for name, each in trains.items() if each.grad is None],
        "dead: their gradient is zero": [
            name for name, each in trains.items() if each.grad is not None and not each.grad.any()
        ],
    }
    for what, names in groups.items():
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            yield f"parameters {what}: {', '.join(names[:5])}{more}"


def _memory(trainer: Trainer) -> str:
    parameters = list(trainer.model.parameters())
    states = [state for optimizer in trainer.optimizers.values() for state in optimizer.state.values()]
    kept = [value for state in states for value in state.values() if isinstance(value, Tensor)]
    sizes = {
        "weights": sum(_held(each).nbytes for each in parameters),
        "gradients": sum(_held(each.grad).nbytes for each in parameters if each.grad is not None),
        "optimizer": sum(_held(each).nbytes for each in kept),
    }
    return ", ".join(f"{name} {shown_size(size)}" for name, size in sizes.items())


def _held(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this rank holds."""
    part: Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return part


def shown_size(num_bytes: int) -> str:
    """Return a number of bytes as text."""
    unit, count = next(((unit, count) for unit, count in _UNITS if num_bytes >= count), ("B", 1))
    return f"{num_bytes / count:.4g} {unit}"
