"""Finding the checkpoint that `-r` means, and putting weights into a model with care."""

from __future__ import annotations

import logging
import os
import stat
import sys
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from src.trainer.checkpoints.store import CheckpointStore, load_checkpoint
from src.utils.alike import Unlike, check_alike
from src.utils.errors import CheckpointError
from src.utils.paths import shown_path
from src.utils.processes.ranks import Ranks

log = logging.getLogger(__name__)
PREFIXES = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put before names."""
SECTIONS = ("model", "criterion", "config", "data", "progress", "parts", "meters", "monitor", "guard", "rng", "failure")
COUNTS = ("epoch", "step", "batch", "samples")
ROWS = {"rows": 0, "numbers": 0, "content": 0}


class Content(dict[str, Any]):
    """What a checkpoint holds.

    Args:
        state: As it was read.
        where: What messages call the checkpoint.
    """

    def __init__(self, state: Mapping[str, Any], where: str) -> None:
        super().__init__(state)
        self._where = where

    def __missing__(self, key: str) -> Any:
        raise CheckpointError(f"{self._where}: holds no {key}; trainer.init_from takes its weights alone")


def open_checkpoint(path: Path, which: str = "last") -> tuple[Path, dict[str, Any]]:
    """Return (run directory, content) of the checkpoint meant by `path`: a file, or a run directory.

    Args:
        which: Of a run directory: `last` (the newest that is whole), `best` (else `last`), or a file name.

    Raises:
        CheckpointError: No such run or checkpoint, or it is damaged.
    """
    if path.is_file():
        _warn_of_others(path)
        folder = path.resolve().parent
        if folder.name != "checkpoints":
            return folder, _checked(load_checkpoint(path), path)
        _check_links(folder.parent)
        return folder.parent, _checked(load_checkpoint(path), path)
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    if folder == path and (run := newest_run(path.parent, path.name)) is not None:
        raise CheckpointError(
            f"{shown_path(path)}: is no run, but a folder of runs; the newest with a checkpoint is {shown_path(run)}"
        )
    if not folder.is_dir():
        beside = path.parent.glob("*") if path.parent.is_dir() else ()
        siblings = [str(other) for other in beside if other.is_dir() or other.suffix in (".pt", ".pth")]
        close = get_close_matches(str(path), siblings, n=1)
        hint = f"; did you mean {close[0]}?" if close else "; give a run directory or a checkpoint file"
        raise CheckpointError(f"{path}: no such run{hint}")
    run_dir = folder.parent if folder.name == "checkpoints" else folder
    _warn_of_others(folder)
    _check_links(run_dir)
    if which == "last" or (which == "best" and not (folder / "best.pt").exists()):
        path, state = CheckpointStore(folder).newest()
        _warn_of_others(path)
        return run_dir, _checked(state, folder)
    path = folder / (which if which.endswith(".pt") else f"{which}.pt")
    if not path.exists():
        there = ", ".join(sorted(each.stem for each in folder.glob("*.pt")))
        raise CheckpointError(f"{shown_path(run_dir)}: has no checkpoint {which!r}; there are {there or 'none'}")
    _warn_of_others(path)
    return run_dir, _checked(load_checkpoint(path), path)


def _checked(state: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return a checkpoint whose sections are sections, and what is said of the run as a whole is of its kind.

    Raises:
        CheckpointError: Names what is not.
    """
    for name in SECTIONS:
        if not isinstance(state.get(name, {}), Mapping):
            raise CheckpointError(
                f"{shown_path(path)}: is not a checkpoint of this program: its {name} is a {type(state[name]).__name__}"
            )
    may_be_none = {"batch_size": 1, "config_folder": ""}
    own: dict[str, Any] = {key: value for key, value in may_be_none.items() if state.get(key) is not None}
    own["progress"] = {key: 0 for key in COUNTS if key in state.get("progress", {})}
    own["parts"] = dict.fromkeys(state.get("parts", {}), ROWS)
    try:
        for key in own.keys() & state.keys():
            check_alike(own[key], state[key], key)
    except Unlike as error:
        raise CheckpointError(f"{shown_path(path)}: {error}") from error
    return Content(state, shown_path(path))


def _warn_of_others(path: Path) -> None:
    """Say that somebody else could have changed what is about to be read."""
    if sys.platform == "win32":
        return  # rights are not in the mode of a file
    status = path.stat()
    if status.st_uid not in (0, os.getuid()):
        log.warning("%s belongs to another user, who may have changed it", shown_path(path))
    elif status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
        log.warning("%s can be changed by every user of this machine: chmod o-w", shown_path(path))


def _check_links(run_dir: Path) -> None:
    """Refuse a run in which something is a link to a place outside: a run that goes on would write there.

    Raises:
        CheckpointError: Names the link.
    """
    home = run_dir.resolve()
    for found in (each for pattern in ("*", "*/*", "*/*/*") for each in run_dir.glob(pattern)):
        if found.is_symlink() and not found.resolve().is_relative_to(home):
            raise CheckpointError(
                f"{shown_path(found)}: is a link that leads out of the run; put the file itself there"
            )


def open_together(path: Path, ranks: Ranks) -> tuple[Path, dict[str, Any]]:
    """Return what `open_checkpoint` does; of a run directory, rank 0 decides for all which checkpoint is meant."""
    if ranks.is_alone:
        return open_checkpoint(path)
    found: list[tuple[Path, dict[str, Any]]] = []

    def find() -> int:
        found.append(open_checkpoint(path))
        return int(found[0][1]["progress"]["step"])

    step = ranks.by_main(find)
    return found[0] if found else open_checkpoint(path, "last" if path.is_file() else f"step-{step:08d}.pt")


def newest_run(save_dir: Path, name: str) -> Path | None:
    """Return the newest run directory of `name` that holds a checkpoint, or None."""
    saved_at: dict[Path, int] = {}
    for manifest in (save_dir / name).glob("*/checkpoints/step-*.json"):
        run = manifest.parents[1]
        saved_at[run] = max(saved_at.get(run, 0), manifest.stat().st_mtime_ns)
    return max(saved_at, key=lambda run: saved_at[run], default=None)


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    """Copy `weights` into `model`; nothing is copied unless names and shapes all agree.

    Raises:
        CheckpointError: Lists up to five differences.
    """
    weights = {strip_prefixes(str(name)): value for name, value in weights.items()}
    own = model.state_dict()
    differences = [f"{name} is missing there" for name in own if name not in weights]
    differences += [f"{name} is unknown here" for name in weights if name not in own]
    differences += [
        f"{name} is no tensor there" for name, value in own.items() if not isinstance(weights.get(name, value), Tensor)
    ]
    differences += [
        f"{name} is {list(weights[name].shape)} there, {list(value.shape)} here"
        for name, value in own.items()
        if isinstance(weights.get(name), Tensor) and not is_lazy(value) and weights[name].shape != value.shape
    ]
    if differences:
        shown = "; ".join(differences[:5]) + ("; ..." if len(differences) > 5 else "")
        count = f"{len(differences)} difference{'' if len(differences) == 1 else 's'}"
        raise CheckpointError(
            f"{where}: of another model, {count}: {shown}. Nothing was loaded; use the config it was trained with"
        )
    model.load_state_dict(weights)


def strip_prefixes(name: str) -> str:
    """Return a parameter's name without what wrappers put before it."""
    while name.startswith(PREFIXES):
        name = name.split(".", 1)[1]
    return name


def best_weights(state: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """Return the weights to evaluate: the moving average where there is one."""
    averaged = state.get("ema")
    weights: Mapping[str, Tensor] = averaged["model"] if averaged else state["model"]
    return weights
