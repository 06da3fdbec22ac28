"""Whether this process is one of several of a run, as its environment says."""

from __future__ import annotations

import os
from collections.abc import Mapping

from src.utils.errors import ConfigError
from src.utils.processes.ranks import ALONE, Ranks, current_ranks, join

GIVEN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What a launcher puts into the environment of every rank."""


def find_ranks() -> Ranks:
    """Return this process's place among the ranks, as the launcher has put it into the environment.

    Raises:
        ConfigError: The environment says only half of it.
    """
    if is_launched() and current_ranks() is ALONE:
        check_environment(os.environ)
        from src.utils.processes.group import Group

        join(Group(os.environ))
    return current_ranks()


def is_launched() -> bool:
    """Return whether a launcher has started this process as a rank."""
    return "RANK" in os.environ or "WORLD_SIZE" in os.environ


def refuse_several(program: str) -> None:
    """Refuse to run a command in several processes, each of which would do the whole of it.

    Raises:
        ConfigError: A launcher has started more than one; rank 0 tells.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        ranks = find_ranks()
        raise ConfigError(f"{program}: works in one process, found {ranks.world_size}; start `python {program} ...`")


def check_environment(environment: Mapping[str, str]) -> None:
    """Refuse an environment that a launcher would not have made.

    Raises:
        ConfigError: Names what is missing or no number.
    """
    missing = [name for name in GIVEN if name not in environment]
    if missing:
        there = next(name for name in GIVEN if name in environment)
        raise ConfigError(
            f"environment: {there} is set and {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not; start "
            "with `torchrun --nproc-per-node=2 train.py ...`, or unset it to train in one process"
        )
    for name in GIVEN:
        if name != "MASTER_ADDR" and not environment[name].isdigit():
            raise ConfigError(f"environment: {name} must be a whole number, found {environment[name]!r}")
