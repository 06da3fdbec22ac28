"""What the section `tune` of a config may say, and what it must not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import Annotated, Any, Literal

from src.config.mistakes import KeyPath, Mistakes, found, listed
from src.utils.bounds import Above, AtLeast

RANGES = ("uniform", "loguniform", "randint")
KEPT_KEYS = ("name", "tune", "logger.csv", "trainer.monitor", "trainer.save_dir", "trainer.device", "trainer.threads")
"""Keys, and what lies below them, that a sweep decides itself or needs as they are."""


@dataclass(frozen=True)
class Distribution:
    """Where the values of one key come from: one of these."""

    choice: tuple[Any, ...] | None = None
    """One of these values, each as probable: `{choice: [64, 128]}`."""

    grid: tuple[Any, ...] | None = None
    """Every one of these values: `{grid: [0, 1, 2]}`. Several grids give every combination."""

    uniform: tuple[float, ...] | None = None
    """A number between two: `{uniform: [0, 0.5]}`."""

    loguniform: tuple[float, ...] | None = None
    """A number between two whose logarithm is uniform: `{loguniform: [1e-5, 1e-1]}`."""

    randint: tuple[int, ...] | None = None
    """A whole number from the first up to, and without, the second: `{randint: [1, 9]}`."""

    @property
    def kind(self) -> str:
        """Which one is given."""
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def values(self) -> tuple[Any, ...]:
        """What is given: the values, or the ends of a range."""
        given: tuple[Any, ...] = getattr(self, self.kind)
        return given


KINDS = tuple(each.name for each in fields(Distribution))


@dataclass(frozen=True)
class TrialResources:
    """What one trial takes up."""

    cpu: Annotated[int, AtLeast(1)] = 1
    """CPU cores; the trial computes with as many threads (its `trainer.threads`)."""

    gpu: Annotated[float, AtLeast(0)] | None = None
    """GPUs; with 0.5 two trials share one. Default: 1 where `trainer.device` means a GPU, else 0."""


@dataclass(frozen=True)
class TuneSettings:
    """What `tune.py` tries: many runs of this config, each with other values at some keys."""

    space: Mapping[str, Distribution]
    """Values by dotted key: `{optimizer.args.lr: {loguniform: [1e-5, 1e-1]}, loader.batch_size: {choice: [8, 16]}}`."""

    samples: Annotated[int, AtLeast(1)] = 1
    """How often values are drawn; each draw is tried with every combination of the grids."""

    metric: str | None = None
    """What is compared, such as `val/accuracy`; every trial watches it. Default: what `trainer.monitor` watches."""

    mode: Literal["min", "max"] | None = None
    """Which value of `metric` is better. Default: as in `trainer.monitor`."""

    search: Literal["random", "optuna"] = "random"
    """How values are drawn: independently, or by Optuna, which learns from the trials before."""

    scheduler: Literal["asha", "none"] = "none"
    """`asha` stops a trial early when others were better after as many evaluations (Li et al. 2018)."""

    grace_period: Annotated[int, AtLeast(1)] = 1
    """Evaluations that `asha` grants every trial."""

    reduction_factor: Annotated[float, Above(1)] = 4.0
    """Of the trials that get to a rung, `asha` lets about one in this many go on."""

    max_concurrent: Annotated[int, AtLeast(1)] | None = None
    """Trials at a time. Default: as many as the resources allow."""

    resources_per_trial: TrialResources = field(default_factory=TrialResources)


def check_tune(tune: TuneSettings, named: str | None, default: str | None, mistakes: Mistakes) -> str | None:
    """Notes what the types cannot rule out, and returns the monitor meant by `metric` and `mode`.

    Args:
        tune: The section.
        named: What the config says to watch, `min val/loss`; None where it does not say.
        default: What is watched then; None when nothing is.
        mistakes: Receives what is wrong.
    """
    if not tune.space:
        example = "optimizer.args.lr: {loguniform: [1e-5, 1e-1]}"
        mistakes.add(("tune", "space"), f"nothing to search; name at least one key, e.g. {example}")
    for key, distribution in tune.space.items():
        _check_key(str(key), tune, mistakes)
        _check_distribution(distribution, ("tune", "space", key), mistakes)
        if tune.search == "optuna" and distribution.grid is not None:
            mistakes.add(("tune", "space", key), "a grid means every value; give choice, or search: random")
    kinds = [each.kind for each in tune.space.values() if _is_one(each)]
    if tune.samples > 1 and kinds and set(kinds) == {"grid"}:
        what = f"every trial would be made {tune.samples} times alike; add e.g. seed: {{grid: [0, 1, 2]}} to the space"
        mistakes.add(("tune", "samples"), what)
    if tune.scheduler == "none" and tune.grace_period > 1:
        mistakes.add(("tune", "grace_period"), "only means something with scheduler: asha")
    if tune.metric is None:
        if tune.mode is not None:
            mistakes.add(("tune", "mode"), "goes with `tune.metric`; give both, or neither")
        if named is None and default is None:
            mistakes.add(("tune", "metric"), "missing; nothing is watched: give tune.metric and tune.mode")
        return None
    mode, _, name = (named or default or "").partition(" ")
    meant = f"{tune.mode or mode} {tune.metric}"
    if named not in (None, meant):
        what = f"compares {' '.join(filter(None, (tune.mode, tune.metric)))}, and each trial keeps its best"
        mistakes.add(("tune", "metric"), f"{what} by trainer.monitor: {named}; leave one of them out")
    elif tune.mode is None and name != tune.metric:
        mistakes.add(("tune", "mode"), f"missing; min or max: which {tune.metric} is better?")
    else:
        return meant
    return None


def _check_key(key: str, tune: TuneSettings, mistakes: Mistakes) -> None:
    path: KeyPath = ("tune", "space", key)
    for kept in KEPT_KEYS:
        if key == kept or key.startswith(f"{kept}."):
            mistakes.add(path, "is the same for all trials; it cannot be searched")
    if any(other != key and key.startswith(f"{other}.") and _is_one(tune.space[other]) for other in tune.space):
        mistakes.add(path, "lies below another key of the space; search one of the two")


def _is_one(distribution: Distribution) -> bool:
    return sum(getattr(distribution, kind) is not None for kind in KINDS) == 1


def _check_distribution(distribution: Distribution, path: KeyPath, mistakes: Mistakes) -> None:
    if not _is_one(distribution):
        if mistakes.knows_below(path):
            return
        given = [kind for kind in KINDS if getattr(distribution, kind) is not None]
        mistakes.add(path, f"one of {listed(KINDS)} is needed, found {' and '.join(given) or 'none'}")
        return
    kind, values = distribution.kind, distribution.values
    where = (*path, kind)
    if kind not in RANGES:
        if not values:
            mistakes.add(where, "at least one value is needed, found an empty list")
        elif any(value in values[:index] for index, value in enumerate(values)):
            mistakes.add(where, "the same value stands there twice")
    elif len(values) != 2:
        mistakes.add(where, f"two numbers are needed, [low, high], found {len(values)}")
    elif not all(low < high for low, high in pairwise(values)):
        mistakes.add(where, f"the first must be smaller than the second, found {list(values)}")
    elif kind == "loguniform" and values[0] <= 0:
        mistakes.add(where, f"must be > 0, found {found(values[0])}; a logarithm needs it")
