"""What to type when a run is over: commands that work on it from where the user stands."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

from src.config.registry import vouched_for
from src.config.settings import Config
from src.utils.paths import PROJECT_ROOT, is_own_folder, shown_path


def next_commands(run_path: Path, config: Config, parts: Iterable[str]) -> list[str]:
    """Return the commands that evaluate the run and show its curves, without those that would fail.

    Args:
        run_path: The run's folder.
        config: Of the run.
        parts: Names of its parts.
    """
    commands = []
    held_out = [part for part in parts if part != "train"]
    if held_out:
        words = ["python", shown_path(PROJECT_ROOT / "test.py"), "-r", shown_path(run_path)]
        if not any(part == "test" or part.startswith("test_") for part in held_out):
            words += ["--split", held_out[0]]
        commands.append(shlex.join([*words, *trust_needed()]))
    if config.logger.tensorboard and find_spec("tensorboard") is not None:
        commands.append(f"tensorboard --logdir {shlex.quote(shown_path(run_path.parents[1]))}")
    return commands


def resume_command(run_path: Path) -> str:
    """Return the command that goes on with a run."""
    words = ["python", shown_path(PROJECT_ROOT / "train.py"), "-r", shown_path(run_path)]
    return shlex.join([*words, *trust_needed()])


def same_run_command(run_path: Path) -> str:
    """Return the command that makes the run of a folder again, from the config in it."""
    words = ["python", shown_path(PROJECT_ROOT / "train.py"), "-c", shown_path(run_path / "config.yaml")]
    return shlex.join([*words, *trust_needed(is_recorded=False)])


def trust_needed(is_recorded: bool = True) -> Iterator[str]:
    """Yield `--trust` with packages vouched for, and with the config's folder where classes came from it.

    Args:
        is_recorded: Leave out the folder if it is one of the project's own: checkpoints say so, configs do not.
    """
    packages, folders = vouched_for()
    files = [getattr(module, "__file__", None) for module in [*sys.modules.values()]]
    homes = [Path(home).resolve() for home in {file.rpartition(os.sep)[0] for file in files if file}]
    needed = [f"{shown_path(each)}/" for each in folders if any(home.is_relative_to(each) for home in homes)]
    if is_recorded:
        needed = [name for name in needed if not is_own_folder(Path(name).resolve())]
    for name in (*packages, *needed):
        yield from ("--trust", name)
