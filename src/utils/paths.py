"""Paths that mean the same wherever a command is started."""

from __future__ import annotations

from pathlib import Path

PROJECT_ROOT = Path(__file__).resolve().parents[2]
"""The folder that holds `train.py`."""


def project_path(path: str | Path) -> Path:
    """Return `path` as an absolute path: relative ones start at the project, `~` is the home folder."""
    return PROJECT_ROOT / Path(path).expanduser()


def shown_path(path: Path) -> str:
    """Return `path` as short as it can be typed from where the user stands."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
