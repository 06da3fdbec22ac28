"""Learning rates over time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from src.data.loading.loader import Loader
from src.trainer.checkpoints.trial import check_next_move
from src.trainer.settings import TrainerSettings
from src.utils.alike import check_alike
from src.utils.errors import ConfigError

PER_STEP = ("OneCycleLR", "CyclicLR")
"""Schedules that torch documents as stepped after every batch; all others default to epochs."""

OF_THE_MOMENT = ("OneCycleLR", "CyclicLR", "LambdaLR")
"""Schedules of torch that work a rate out from the number of moves alone."""

MAX_FOLLOWED, NUM_SAMPLED = 20_000, 2_000
"""Moves of a schedule that are followed one by one to draw it, and steps that are drawn of a longer one."""

MADE_FOR_A_LENGTH = ("OneCycleLR", "CosineAnnealingLR", "PolynomialLR", "LinearLR")
"""Schedules that the run tells its own length where the config does not."""


class Schedule:
    """Steps one torch scheduler at the right moments, after a linear warm-up of `warmup_steps` steps.

    Args:
        optimizer: Whose rates are set.
        scheduler: None keeps the rates as they are, apart from the warm-up.
        every: When the scheduler moves on: after each `step` or each `epoch`; a plateau scheduler after each
            evaluation instead, with the value of `monitor`.
        warmup_steps: During these the scheduler's rate is multiplied by (step + 1) / warmup_steps.
        monitor: Logged value for `ReduceLROnPlateau`, e.g. `val/loss`.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        scheduler: LRScheduler | None = None,
        every: Literal["step", "epoch"] | None = None,
        warmup_steps: int = 0,
        monitor: str | None = None,
    ) -> None:
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.is_plateau = isinstance(scheduler, ReduceLROnPlateau)
        self.every = every or ("step" if type(scheduler).__name__ in PER_STEP else "epoch")
        self.warmup_steps = warmup_steps
        self.monitor = monitor
        self.num_steps = 0
        self._moves_on_step = scheduler is not None and self.every == "step" and not self.is_plateau
        self._full_rates = [float(group["lr"]) for group in optimizer.param_groups]
        self._warm()

    def rates_at(self, steps: Sequence[int], steps_per_epoch: float) -> list[list[float]]:
        """Return the rates of all groups in steps far apart, counted from 0 and rising; uses the schedule up.

        Returns:
            Nothing where the schedule would have to be followed through too many moves.
        """
        last = getattr(self.scheduler, "total_steps", None) or math.inf  # where such a schedule stays
        moves = [int(min(last, step if self._moves_on_step else step // steps_per_epoch)) for step in steps]
        formula = self._formula()
        if moves[-1] > MAX_FOLLOWED and formula is None:
            return []
        self._set(self._full_rates)
        rates: list[list[float]] = []
        for step, move in zip(steps, moves, strict=True):
            if self.scheduler is not None and moves[-1] > MAX_FOLLOWED:
                assert formula is not None
                self.scheduler.last_epoch = move
                self._full_rates = [float(rate) for rate in formula()]
            elif self.scheduler is not None and not self.is_plateau:
                while self.scheduler.last_epoch < move:
                    self.scheduler.step()
                self._full_rates = [float(group["lr"]) for group in self.optimizer.param_groups]
            factor = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
            rates.append([factor * rate for rate in self._full_rates])
        return rates

    def _formula(self) -> Callable[[], Sequence[Any]] | None:
        """Return what gives the full rates of `last_epoch`, whatever they were before; None where there is no such."""
        if self.scheduler is None or self.is_plateau:
            return lambda: self._full_rates
        if type(self.scheduler).__name__ in OF_THE_MOMENT:
            return self.scheduler.get_lr
        return getattr(self.scheduler, "_get_closed_form_lr", None)

    def after_step(self) -> None:
        """Move on by one optimizer step."""
        self.num_steps += 1
        if self._moves_on_step:
            self._move()
        elif self.num_steps <= self.warmup_steps:
            self._warm()

    def after_epoch(self) -> None:
        """Move on by one epoch."""
        if self.scheduler is not None and self.every == "epoch" and not self.is_plateau:
            self._move()

    def after_evaluation(self, values: Mapping[str, float]) -> None:
        """Give a plateau scheduler its value."""
        if self.is_plateau and self.monitor is not None and self.monitor in values:
            self._move(values[self.monitor])

    def _move(self, *value: float) -> None:
        assert self.scheduler is not None
        total = getattr(self.scheduler, "total_steps", None)
        if total is not None and self.scheduler.last_epoch >= total:
            return  # the schedule has ended; torch would raise
        is_warming = self.num_steps <= self.warmup_steps
        if is_warming:  # chainable schedulers go on from the group's rate: give them the full one
            self._set(self._full_rates)
        self.scheduler.step(*value)  # type: ignore[arg-type]
        if is_warming:
            self._full_rates = [float(group["lr"]) for group in self.optimizer.param_groups]
            self._warm()

    def _warm(self) -> None:
        if self.warmup_steps:
            factor = min(1.0, (self.num_steps + 1) / self.warmup_steps)
            self._set([factor * rate for rate in self._full_rates])

    def _set(self, rates: list[float]) -> None:
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate

    def state_dict(self) -> dict[str, Any]:
        scheduler = {} if self.scheduler is None else self.scheduler.state_dict()
        return {"num_steps": self.num_steps, "full_rates": list(self._full_rates), "scheduler": scheduler}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` stopped; a schedule whose length the config changed keeps its new length."""
        check_alike(self.state_dict(), state, "schedule", is_counted=False)
        self.num_steps, self._full_rates = state["num_steps"], list(state["full_rates"])
        if self.scheduler is not None:
            lengths = {key: value for key, value in self.scheduler.state_dict().items() if key in LENGTHS}
            self.scheduler.load_state_dict({**state["scheduler"], **lengths})
            if any(state["scheduler"].get(key) != value for key, value in lengths.items()):
                self._take_new_curve()
            check_next_move(self.scheduler, self.optimizer)

    def take_settings(self, before: Schedule, after: Schedule) -> None:
        """Go on, from the place reached, with what differs between two schedules that have not moved yet.

        Args:
            before: As the config made it so far.
            after: As the config makes it now.
        """
        is_warm = self.num_steps >= self.warmup_steps
        reached = [float(group["lr"]) for group in self.optimizer.param_groups] if is_warm else self._full_rates
        was, given, now = (each.state_dict()["scheduler"] for each in (before, after, self))
        if was == given and before._full_rates == after._full_rates:
            return
        if self.scheduler is not None:
            self.scheduler.load_state_dict(merged(now, was, given))
        rates = zip(reached, before._full_rates, after._full_rates, strict=True)
        self._full_rates = [rate * new / old if old else new for rate, old, new in rates]
        self._take_new_curve()

    def _take_new_curve(self) -> None:
        """Move the rates onto a curve that has changed: torch's schedulers go on from the rate of the old one."""
        closed_form = getattr(self.scheduler, "_get_closed_form_lr", None)
        if closed_form is not None:
            self._full_rates = [float(rate) for rate in closed_form()]
        if self.scheduler is not None:
            self.scheduler._last_lr = list(self._full_rates)
        self._set(self._full_rates)
        self._warm()


def run_length(
    name: str, args: Mapping[str, Any], every: str | None, steps_per_epoch: float, total_steps: float
) -> dict[str, int]:
    """Return the arguments that make a schedule as long as the run; none where nobody knows how long that is.

    torch's `total_iters` defaults to 5. That suits a LinearLR that rises; one that falls, and a PolynomialLR, would be
    at their end rate for nearly the whole run.

    Args:
        name: Last word of the scheduler's type.
        args: What the config gives it.
        every: When it moves on; None is the usual for its type.
        steps_per_epoch: May be infinite.
        total_steps: Of the run; may be infinite.
    """
    if not math.isfinite(total_steps):
        return {}
    length = {"total_steps": int(total_steps)}
    moves = total_steps if every == "step" or name in PER_STEP else math.ceil(total_steps / steps_per_epoch)
    if moves:
        length["T_max"] = int(moves)
        falls = float(args.get("end_factor", 1.0)) < float(args.get("start_factor", 1 / 3))
        if name == "PolynomialLR" or (name == "LinearLR" and falls):
            length["total_iters"] = int(moves)
    return length


def merged(now: Mapping[str, Any], was: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state `now` of a scheduler, and of those inside it, with what differs between `was` and `given`."""
    result = {**now, **{key: given[key] for key in given if key in was and was[key] != given[key]}}
    if "_schedulers" in now:
        result["_schedulers"] = list(map(merged, *(state.get("_schedulers", []) for state in (now, was, given))))
    return result


LENGTHS = ("total_steps", "_schedule_phases", "T_max", "total_iters")
"""What a longer or shorter run changes in a scheduler."""


def check_ratios(optimizer: Optimizer, rates: Sequence[float], name: str) -> None:
    """Refuse a schedule that gives all parameter groups one rate, though they had rates of their own.

    Args:
        optimizer: As the schedule left it.
        rates: Of its groups before that.
        name: Of the schedule.

    Raises:
        ConfigError: The rates are no longer in proportion.
    """
    factors = [group["lr"] / rate for group, rate in zip(optimizer.param_groups, rates, strict=True) if rate]
    if factors and max(factors) - min(factors) > 1e-6 * max(factors):
        raise ConfigError(
            f"lr_scheduler: {name} gives all {len(rates)} groups of `parameters` one rate, and they have some of their "
            f"own; give it a list of {len(rates)} rates (max_lr, say), or take another schedule"
        )


def learning_rates(optimizers: Mapping[str, Optimizer]) -> dict[str, float]:
    """Return the rates by name: `lr`, or `lr_1`, `lr_generator`, ... where there are several groups or optimizers."""
    rates = {}
    for name, optimizer in optimizers.items():
        own = name.removeprefix("optimizer").removeprefix(".")
        shown, groups = f"lr_{own}" if own else "lr", optimizer.param_groups
        for index, group in enumerate(groups):
            rates[f"{shown}_{index}" if len(groups) > 1 else shown] = float(group["lr"])
    return rates


def rates_over(
    optimizers: Mapping[str, Optimizer], schedules: Mapping[str, Schedule], num_steps: int, steps_per_epoch: float
) -> dict[str, list[float]]:
    """Return the rates by name in each step of a run; in some of the steps, evenly spread, when there are many.

    The optimizers are used up. A schedule that is too long to be followed, and has no formula, gives an empty list.
    """
    if num_steps <= MAX_FOLLOWED:
        rates: dict[str, list[float]] = {}
        for step in range(1, num_steps + 1):
            for name, rate in learning_rates(optimizers).items():
                rates.setdefault(name, []).append(rate)
            for schedule in schedules.values():
                schedule.after_step()
                if step % steps_per_epoch == 0:
                    schedule.after_epoch()
        return rates
    steps = [index * (num_steps - 1) // (NUM_SAMPLED - 1) for index in range(NUM_SAMPLED)]
    names = iter(learning_rates(optimizers))
    sampled: dict[str, list[float]] = {}
    for name, optimizer in optimizers.items():
        schedule = schedules[name.replace("optimizer", "lr_scheduler", 1)]
        found = schedule.rates_at(steps, steps_per_epoch)
        for index in range(len(optimizer.param_groups)):
            sampled[next(names)] = [rates[index] for rates in found]
    return sampled


def count_batches(loader: Loader) -> float:
    """Return the batches of an epoch; infinite for data without a length."""
    try:
        return len(loader)
    except TypeError:
        return math.inf


def count_steps(loader: Loader, settings: TrainerSettings) -> tuple[float, float]:
    """Return (steps per epoch, steps of the whole run); infinite where nothing says how many."""
    batches = count_batches(loader)
    steps_per_epoch = math.ceil(batches / settings.accumulate_steps) if math.isfinite(batches) else math.inf
    return steps_per_epoch, min(settings.num_epochs * steps_per_epoch, settings.num_steps)


def count_epochs(loader: Loader, settings: TrainerSettings) -> float:
    """Return the epochs of the whole run, one that is cut short included; infinite where nothing says how many."""
    steps_per_epoch, total_steps = count_steps(loader, settings)
    if math.isfinite(steps_per_epoch) and math.isfinite(total_steps):
        return math.ceil(total_steps / steps_per_epoch)
    return settings.num_epochs
