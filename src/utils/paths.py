"""Paths that mean the same wherever a command is started, and where a run keeps what it goes on from."""

from __future__ import annotations

from pathlib import Path

PROJECT_ROOT = Path(__file__).resolve().parents[2]
"""The folder that holds `train.py`."""


def project_path(path: str | Path) -> Path:
    """Return `path` as an absolute path: relative ones start at the project, `~` is the home folder."""
    return PROJECT_ROOT / Path(path).expanduser()


def is_own_folder(folder: Path) -> bool:
    """Whether a resolved path lies in the project, and not where runs are kept: those may be a stranger's."""
    return folder.is_relative_to(PROJECT_ROOT) and not folder.is_relative_to(PROJECT_ROOT / "saved")


def shown_path(path: Path) -> str:
    """Return `path` as short as it can be typed from where the user stands."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def has_checkpoint(run: Path) -> bool:
    """Whether a checkpoint was ever committed to the folder of a run."""
    return any((run / "checkpoints").glob("step-*.json"))
