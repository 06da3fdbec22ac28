"""Which values the trials of a sweep get. No Ray here: a space is checked, and drawn from, without it."""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from src.config.load import varied
from src.config.mistakes import found, listed, nearest
from src.config.settings import Config
from src.config.signatures import check_components
from src.config.tune import RANGES, Distribution, TuneSettings
from src.utils.errors import ConfigError

Values = dict[str, Any]
DIGITS = 4
"""Drawn numbers have so many digits that count: `0.003217` says as much as `0.0032168742113`."""


def num_trials(tune: TuneSettings) -> int:
    """Return how many trials a sweep has."""
    return tune.samples * math.prod(len(each.values) for each in tune.space.values() if each.kind == "grid")


def draw(tune: TuneSettings, seed: int, number: int) -> Values:
    """Return the values of one trial of a random search: a function of the seed and the trial's number alone.

    Every draw meets every combination of the grids, so that trials that differ in a grid's value differ in nothing
    else. A key's draws do not change when another key is added.

    Args:
        tune: The section.
        seed: Of the config.
        number: Of the trial, 0 first.
    """
    grids = {key: each.values for key, each in tune.space.items() if each.kind == "grid"}
    combinations = list(itertools.product(*grids.values()))
    sample, combination = divmod(number, len(combinations))
    chosen = dict(zip(grids, combinations[combination], strict=True))
    return {
        key: chosen[key] if key in chosen else _drawn(each, np.random.default_rng([seed, sample, _id(key)]))
        for key, each in tune.space.items()
    }


def _id(key: str) -> int:
    return zlib.crc32(key.encode())


def _drawn(distribution: Distribution, stream: np.random.Generator) -> Any:
    values = distribution.values
    if distribution.kind == "choice":
        return values[int(stream.integers(len(values)))]
    low, high = values
    if distribution.kind == "randint":
        return int(stream.integers(low, high))
    if distribution.kind == "uniform":
        return rounded(stream.uniform(low, high), low, high)
    return rounded(math.exp(stream.uniform(math.log(low), math.log(high))), low, high)


def rounded(value: float, low: float, high: float) -> float:
    """Return a drawn number with few digits, still within its range."""
    return min(max(float(f"{value:.{DIGITS}g}"), low), high)


def check_space(config: Config) -> None:
    """Check every key of the space, and every value of it, or a range's ends and middle, as if it stood in the config.

    Values that are right one by one may still not go together; such a trial ends as a crashed one.

    Raises:
        ConfigError: With all mistakes, one a line, each with the place of the key in the config file.
    """
    assert config.tune is not None
    lines: list[str] = []
    for key, distribution in config.tune.space.items():
        place = f"{config.places.get(('tune', 'space', key), '')} tune.space".strip()
        tried = list(_to_check(distribution))
        told: dict[str, list[Any]] = {}
        for value in tried:
            for line in _mistakes(config, key, value, place):
                told.setdefault(_about_fractions(line, distribution), []).append(value)
        for line, values in told.items():
            is_named = distribution.kind in RANGES or all(found(value) in line for value in values)
            lines.append(
                line
                if is_named or len(values) == len(tried)
                else f"{line} (with {listed(found(value) for value in values)})"
            )
    if lines:
        raise ConfigError("\n".join(lines))


def _to_check(distribution: Distribution) -> Iterator[Any]:
    """Yield every value of a list; of a range its ends, and one that may be drawn between them."""
    if distribution.kind not in RANGES:
        yield from distribution.values
        return
    low, high = distribution.values
    if distribution.kind == "randint":
        yield from (low, high - 1)
    else:
        yield from (low, high, rounded(low + (high - low) / math.e, low, high))


def _about_fractions(line: str, distribution: Distribution) -> str:
    """Say how whole numbers are drawn where a range of fractions was given for a setting that takes none."""
    needed, _, value = line.partition("a whole number")
    if not value or distribution.kind not in ("uniform", "loguniform"):
        return line
    low, high = (math.floor(end) for end in distribution.values)
    return (
        f"{needed}a whole number is needed, and {distribution.kind} draws fractions; give randint: [{low}, {high + 1}]"
    )


def _mistakes(config: Config, key: str, value: Any, place: str) -> Iterator[str]:
    """Yield what is wrong with one value, under the key of the space."""
    try:
        check_components(varied(config, {key: value}, place))
    except ConfigError as error:
        for line in str(error).splitlines():
            where, _, what = line.partition(": ")
            about = where.rpartition(" ")[2]
            near = nearest(key, _keys(config.as_dict())) if what.startswith("unknown") else None
            if near and "did you mean" not in what:
                what = f"{what.partition(';')[0]}; did you mean `{near}`?"
            yield f"{place} {key}: {what if about == key else f'{about}: {what}'}"


def _keys(values: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Yield every key of a config that has a value of its own, with dots between those it lies below."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _keys(value, f"{path}{name}.")
        else:
            yield f"{path}{name}"


def plain_name(key: str, space: Mapping[str, Any]) -> str:
    """Return the last word of a key, or more of it where that alone could mean another key of the space."""
    words = key.split(".")
    for count in range(1, len(words)):
        end = ".".join(words[-count:])
        if words[-count] not in ("args", "type") and sum(f".{other}".endswith(f".{end}") for other in space) == 1:
            return end
    return key
