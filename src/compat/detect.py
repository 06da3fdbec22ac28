"""Is this command about a project of the other template? Asked of every command line, so it imports next to nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from src.utils.errors import ConfigError
from src.utils.paths import PROJECT_ROOT

NATIVE_FORM = f"write the native form: cd {PROJECT_ROOT} && python -m src.compat THEIR/config.json"


def is_classical(argv: Sequence[str]) -> bool:
    """Whether the command line names a `.json` config with `arch`, one of its checkpoints, or a run made of one."""
    return any(word.startswith("--project") or _is_theirs(word) for word in argv)


def refuse_classical(argv: Sequence[str], script: str) -> None:
    """Say what to do instead, where a command is for projects in the native form alone.

    Raises:
        ConfigError: The command line names a project of the other template.
    """
    if is_classical(argv):
        raise ConfigError(
            f"{script}: this run is of a project of pytorch-template, which train.py and test.py know; for {script} "
            f"{NATIVE_FORM}"
        )


def _is_theirs(word: str) -> bool:
    if "=" in word and not word.startswith("-"):  # a value of our own config
        return False
    if word.endswith(".pth"):
        return True
    if word.endswith(".json"):
        return _has_arch(Path(word))
    path = Path(word)
    if path.suffix == ".pt":
        path = path.parent.parent if path.parent.name == "checkpoints" else path.parent
    return _has_arch(path / "config.json")


def _has_arch(path: Path) -> bool:
    """Whether a JSON file has a section `arch`; with a slip in its syntax, whether it speaks of one."""
    try:
        text = path.read_text(encoding="utf-8-sig") if path.is_file() else ""
    except (OSError, ValueError):
        return False
    if '"arch"' not in text:
        return False
    try:
        return "arch" in json.loads(text)
    except ValueError:
        return True
