"""Files of runs that nobody needs any more: old checkpoints, litter of killed processes, runs that never began."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from src.logger.run_dir import RunDir
from src.trainer.checkpoints.store import is_whole, loose_shards
from src.utils.errors import ConfigError


@dataclass(frozen=True)
class Spare:
    """Something that could be deleted."""

    path: Path
    why: str
    num_bytes: int
    """Space that deleting it frees."""


def spare_files(run: Path) -> list[Spare]:
    """Return what could be deleted of a run that is not running.

    Never `best.pt`, `last.pt` or a file that is the same as one of them, nor the newest checkpoint that is whole:
    a run can be tested and resumed as before.
    """
    folder = run / "checkpoints"
    kept = [folder / name for name in ("best.pt", "last.pt") if (folder / name).exists()]
    steps = sorted(folder.glob("step-*.pt"))
    is_named_as_run = re.fullmatch(r"\d{4}_\d{6}(-\d+)?", run.name) is not None  # never a folder of anything else
    if is_named_as_run and not kept and not steps and not (run / "metrics.csv").exists():
        size = sum(path.stat().st_size for path in run.rglob("*") if path.is_file())
        return [Spare(run, "ended before it saved or measured anything", size)]
    spare = [Spare(path, "left by a process that was killed", _size(path)) for path in _litter(folder)]
    newest = next((path for path in reversed(steps) if is_whole(path)), None)
    if newest is None:
        return spare  # nothing is certain here: keep all
    older = [path for path in steps if path < newest and not any(path.samefile(other) for other in kept)]
    shards = loose_shards(folder, [path.with_suffix(".json") for path in older])
    return (
        spare
        + [Spare(path, f"older than {newest.name}", _size(path) + _size(path.with_suffix(".json"))) for path in older]
        + [Spare(path, "of no checkpoint that stays", sum(map(_size, path.iterdir()))) for path in shards]
    )


def delete(run: Path, spare: Sequence[Spare]) -> None:
    """Delete these files of a run, with its lock held so that it cannot be resumed meanwhile.

    Raises:
        ConfigError: The run is in use.
    """
    lock = RunDir(run)
    lock.lock()
    try:
        for each in spare:
            if each.path.is_dir():
                shutil.rmtree(each.path)
                continue
            if each.path.suffix == ".pt" and not each.path.name.startswith("."):
                each.path.with_suffix(".json").unlink(missing_ok=True)  # first: it makes a file a checkpoint
            each.path.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"{error.filename}: cannot be deleted: {error.strerror}") from error
    finally:
        lock.close()


def _litter(folder: Path) -> Iterator[Path]:
    yield from sorted(folder.glob(".tmp-*"))


def _size(path: Path) -> int:
    """Return the bytes that go when this name goes: none while the file has another name."""
    with suppress(OSError):
        found = path.stat()
        return found.st_size if found.st_nlink == 1 else 0
    return 0
