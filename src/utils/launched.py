"""Whether this process is one of several of a run, as its environment says."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from src.utils.errors import ConfigError
from src.utils.ranks import ALONE, Ranks, current_ranks, join

GIVEN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What a launcher puts into the environment of every rank."""
ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
"""Where torch's launcher looks for what a rank has to say about its end."""


def find_ranks() -> Ranks:
    """Return this process's place among the ranks, as the launcher has put it into the environment.

    Raises:
        ConfigError: The environment says only half of it.
    """
    if is_launched() and current_ranks() is ALONE:
        check_environment(os.environ)
        from src.utils.group import Group

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


def note(name: str, text: str) -> None:
    """Leave a text where this rank's launcher keeps its files, if it keeps any."""
    if place := os.environ.get(ERROR_FILE):
        with suppress(OSError):
            Path(place).with_name(name).write_text(text, encoding="utf-8")


def note_error(text: str) -> None:
    """Let the launcher know that this rank has told why it ends; torchrun shows `text` at its own end."""
    if place := os.environ.get(ERROR_FILE):
        extra = {"py_callstack": text, "timestamp": str(int(time.time()))}
        note(Path(place).name, json.dumps({"message": {"message": text, "extraInfo": extra}}))


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
