"""What is made for a run of another length: schedules, warm-ups and phases that will never come to their turn."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from src.trainer.schedule import Schedule, count_epochs, count_steps

if TYPE_CHECKING:
    from src.trainer.trainer import Trainer


def misfits(trainer: Trainer) -> Iterator[str]:
    """Yield what does not fit into the length of the run; every line begins with the key that says so."""
    steps_per_epoch, total_steps = count_steps(trainer.train_loader, trainer.settings)
    if math.isfinite(total_steps):
        for name, schedule in trainer.schedules.items():
            moves = int(total_steps) if schedule.every == "step" else math.ceil(total_steps / steps_per_epoch)
            yield from _of_schedule(name, schedule, moves, int(total_steps))
    yield from trainer.freezing.misfits(count_epochs(trainer.train_loader, trainer.settings))


def _of_schedule(name: str, schedule: Schedule, moves: int, total_steps: int) -> Iterator[str]:
    for key in ("total_steps", "T_max"):
        planned = getattr(schedule.scheduler, key, None)
        if isinstance(planned, int) and planned != moves:
            yield f"{name}.args.{key}: made for {planned:,} moves, and this run makes {moves:,}"
    for key in ("step_size", "milestones"):
        at = getattr(schedule.scheduler, key, None)
        first = at if isinstance(at, int) else min(at, default=0) if at else 0
        if first >= moves:
            yield f"{name}.args.{key}: the rate first changes after {first:,} moves, and this run makes {moves:,}"
    if schedule.warmup_steps >= total_steps:
        steps = f"{schedule.warmup_steps:,} and the run has {total_steps:,} steps"
        yield f"{name}.warmup_steps: is {steps}: it never gets past it"
