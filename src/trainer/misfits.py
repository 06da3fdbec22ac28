"""What is made for a run of another length: schedules, warm-ups and phases that will never come to their turn."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from src.trainer.schedule import Schedule, count_epochs, count_steps

if TYPE_CHECKING:
    from src.trainer.trainer import Trainer


def misfits(trainer: Trainer) -> Iterator[str]:
    """Yield what does not fit into the length of the run; every line begins with the key that says so."""
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
