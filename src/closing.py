"""What to type when a run is over: commands that work on it from where the user stands."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

from src.config.registry import vouched_for
from src.config.settings import Config
from src.utils.paths import PROJECT_ROOT, shown_path


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
        words += [word for name in _trust_needed() for word in ("--trust", name)]
        commands.append(shlex.join(words))
    if config.logger.tensorboard and find_spec("tensorboard") is not None:
        commands.append(f"tensorboard --logdir {shlex.quote(shown_path(run_path.parents[1]))}")
    return commands


def _trust_needed() -> Iterator[str]:
    """Yield what `--trust` must say: packages vouched for, and the config's folder where classes came from it."""
    packages, folders = vouched_for()
    yield from packages
    files = [Path(file).resolve() for module in [*sys.modules.values()] if (file := getattr(module, "__file__", None))]
    for folder in folders:
        if any(file.is_relative_to(folder) for file in files):
            yield f"{shown_path(folder)}/"
