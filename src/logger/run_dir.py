"""The folder of one run: `<save_dir>/<name>/<run id>/` with everything the run leaves behind."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock

from src.utils.errors import ConfigError
from src.utils.locks import InUse, hold
from src.utils.paths import PROJECT_ROOT, shown_path
from src.utils.secrets import masked, masked_command
from src.utils.whole_file import write_file

LOG = logging.getLogger(__name__)
NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}
"""What some network file systems answer who wants to lock a file there."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
_WINDOWS_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def check_run_name(name: str) -> None:
    """Refuse names that could leave the folder of runs or that some system cannot store.

    Raises:
        ConfigError: The name is none.
    """
    if not _NAME.fullmatch(name) or _WINDOWS_DEVICES.fullmatch(name) or name.endswith("."):
        raise ConfigError(
            f"name: a run's name has 1 to 64 letters, digits, '.', '_' or '-', and starts with a letter, digit or '_'; "
            f"received {name!r}"
        )


def check_writable(save_dir: Path) -> None:
    """Find out before anything is built whether runs can be kept in a folder, which need not exist yet.

    Raises:
        ConfigError: It is a file, or may not be written.
    """
    nearest = next(path for path in (save_dir, *save_dir.parents) if path.exists())
    if not nearest.is_dir():
        raise ConfigError(f"trainer.save_dir: {shown_path(nearest)} is a file; a folder is needed")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ConfigError(f"trainer.save_dir: {shown_path(nearest)} can't be written; name another folder")


class RunDir:
    """The folder of one run, and the lock that keeps a second process out of it.

    `RunDir(path)` only knows where things are; `create` and `open` also take the lock.

    Attributes:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: FileLock | None = None

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def log_file(self) -> Path:
        """Where the lines of the console are kept."""
        return self.path / "log.txt"

    @classmethod
    def create(cls, save_dir: Path, name: str) -> RunDir:
        """Make and lock a new folder `save_dir/name/MMDD_HHMMSS[-2]`, also when many start in the same second.

        Raises:
            ConfigError: The name is none, or nothing can be written there.
        """
        check_run_name(name)
        parent = save_dir / name
        try:
            parent.mkdir(parents=True, exist_ok=True)
            if not parent.resolve().is_relative_to(save_dir.resolve()):
                raise ConfigError(f"trainer.save_dir: {shown_path(parent)} is a link that leads out of {save_dir}")
            run = cls(new_folder(parent))
            run.checkpoints.mkdir()
        except (FileExistsError, NotADirectoryError) as error:
            file = next(path for path in (parent, *parent.parents) if path.exists())
            raise ConfigError(f"trainer.save_dir: {shown_path(file)} is a file; a folder is needed") from error
        except OSError as error:
            reason = error.strerror or str(error)
            raise ConfigError(
                f"trainer.save_dir: {save_dir} can't be written: {reason}; name another folder"
            ) from error
        run.lock()
        return run

    @classmethod
    def open(cls, path: Path) -> RunDir:
        """Lock the folder of a run that goes on.

        Raises:
            ConfigError: It isn't there, can't be written, or another process uses it.
        """
        run = cls(path)
        try:
            run.checkpoints.mkdir(exist_ok=True)
        except OSError as error:
            reason = error.strerror or str(error)
            raise ConfigError(f"resume: {shown_path(path)} can't be written: {reason}") from error
        run.lock()
        return run

    def lock(self) -> None:
        """Keep other processes out until `close`, or the end of this object or process, however it ends.

        Raises:
            ConfigError: Another process is in here.
        """
        try:
            self._lock = hold(self.path / "run.lock")
        except InUse as owner:
            raise ConfigError(f"run {shown_path(self.path)} is in use by {owner}; stop it first") from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            LOG.warning("run.lock: %s; nothing keeps a second process out of %s", error.strerror, self.path)
        for litter in self.path.glob(".*.tmp"):  # of a process that was killed while it wrote
            litter.unlink(missing_ok=True)

    def discard(self) -> None:
        """Take back a folder that `create` made, and the folder of its name if no other run is in it."""
        self.close()
        shutil.rmtree(self.path)
        with contextlib.suppress(OSError):  # other runs are there
            self.path.parent.rmdir()
            self.path.parent.parent.rmdir()

    def close(self) -> None:
        """Let other processes in."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write the resolved config to `config.yaml`, secrets hidden."""
        text = yaml.safe_dump(masked(config), sort_keys=False, allow_unicode=True, width=120)
        write_file(self.path / "config.yaml", text)

    def write_environment(self, command: Sequence[str], seed: int, threads: int | None = None) -> None:
        """Write to `environment.json` what the run ran on; a run that goes on adds a start to the list `resumed`.

        Args:
            command: The words of the command line.
            seed: The run's seed.
            threads: Threads of one operation; results are bit-equal only for the same number.
        """
        path = self.path / "environment.json"
        started = environment(command, seed, threads)
        if path.exists():
            first = json.loads(path.read_text(encoding="utf-8"))
            started = {**first, "resumed": [*first.get("resumed", []), started]}
        write_file(path, json.dumps(started, indent=2, ensure_ascii=False) + "\n")


def new_folder(parent: Path, prefix: str = "") -> Path:
    """Make a folder `parent/prefixMMDD_HHMMSS[-2]` that nobody else has, also when many start in the same second."""
    start = f"{prefix}{time.strftime('%m%d_%H%M%S')}"
    number = 1
    while True:
        path = parent / (start if number == 1 else f"{start}-{number}")
        try:
            path.mkdir()
        except FileExistsError:
            number += 1
        else:
            return path


def environment(command: Sequence[str], seed: int, threads: int | None) -> dict[str, Any]:
    """What one needs to know to run this again: versions, platform, code, command line, seed."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": masked_command(list(command)),
        "seed": seed,
        "threads": threads,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "executable": sys.executable,
        "git": git_state(PROJECT_ROOT),
        "versions": _versions(),
    }


@cache
def _versions() -> dict[str, str]:
    """Version of each installed package; reading them takes longer than all else a run begins with."""
    installed = [item.metadata for item in distributions()]  # each look at it parses a file
    return dict(sorted((each["Name"], each["Version"]) for each in installed if each["Name"]))


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit of the code and whether it was changed since; None outside a repository or without git."""

    def git(*words: str) -> str:
        ran = subprocess.run(  # the PATH knows which git is meant  # nosec B607
            ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10, check=True
        )  # fmt: skip
        return ran.stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None
