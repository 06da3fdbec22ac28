"""What is made for another run: schedules of another length, more workers than cores, data that may never end."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from src.data.loading.choose_workers import usable_cores
from src.trainer.rehearsal.rehearse import UNKNOWN, describe_length
from src.trainer.schedule import Schedule, count_epochs, count_steps

if TYPE_CHECKING:
    from src.trainer.trainer import Trainer


def misfits(trainer: Trainer) -> Iterator[str]:
    """Yield what does not fit this run, its data or this machine; every line begins with the key that says so."""
    steps_per_epoch, total_steps = count_steps(trainer.train_loader, trainer.settings)
    if math.isfinite(total_steps):
        # Without a length nobody knows the epochs: a schedule that moves with them may fit.
        epochs = total_steps / steps_per_epoch if math.isfinite(steps_per_epoch) else math.inf
        for name, schedule in trainer.schedules.items():
            moves = total_steps if schedule.every == "step" else epochs
            if math.isfinite(moves):
                yield from _of_schedule(name, schedule, math.ceil(moves))
            if schedule.warmup_steps >= total_steps:
                steps = f"{schedule.warmup_steps:,} and the run has {int(total_steps):,} steps"
                yield f"{name}.warmup_steps: is {steps}: it never gets past it"
    yield from trainer.freezing.misfits(count_epochs(trainer.train_loader, trainer.settings))
    for name, loader in trainer.val_loaders.items():
        if describe_length(loader.part) == UNKNOWN:
            yield f"data.{name}: has no __len__: an evaluation ends when these data end, and never if they do not"
    loaders, cores = (trainer.train_loader, *trainer.val_loaders.values()), usable_cores()
    most = max(loader.num_workers for loader in loaders)
    if most > cores:
        yield f"loader.num_workers: {most} workers on {cores} cores: they take turns; use fewer, or auto"


def _of_schedule(name: str, schedule: Schedule, moves: int) -> Iterator[str]:
    for key in ("total_steps", "T_max"):
        planned = getattr(schedule.scheduler, key, None)
        if isinstance(planned, int) and planned != moves:
            yield f"{name}.args.{key}: made for {planned:,} moves, and this run makes {moves:,}"
    for key in ("step_size", "milestones"):
        at = getattr(schedule.scheduler, key, None)
        first = min(at) if isinstance(at, Iterable) and at else at
        if isinstance(first, int) and first >= moves:
            yield f"{name}.args.{key}: the rate first changes after {first:,} moves, and this run makes {moves:,}"
