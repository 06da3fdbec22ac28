"""What all tests share."""

from __future__ import annotations

import gc
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

# Models are tiny here: a second thread only waits. Set before torch is imported, and handed on to every process.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import settings

from src.config import registry
from src.logger import console

ROOT = Path(__file__).resolve().parents[1]

if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # `nohup make test`: the tests are about who hears it
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

settings.register_profile("keel", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("keel")


def _named(owner: object, name: str) -> tuple[Callable[[], Any], Callable[[Any], None]]:
    return partial(getattr, owner, name), partial(setattr, owner, name)


OF_THE_PROCESS: list[tuple[Callable[[], Any], Callable[[Any], None]]] = [  # how it is read, how it is set
    (torch.get_num_threads, torch.set_num_threads),
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
    *(_named(torch.backends.cudnn, name) for name in ("benchmark", "deterministic", "allow_tf32")),
    (lambda: (mask := os.umask(0), os.umask(mask))[0], os.umask),
    (lambda: dict(os.environ), lambda before: (os.environ.clear(), os.environ.update(before))),
    (lambda: list(sys.path), partial(sys.path.__setitem__, slice(None))),
    (lambda: list(logging.getLogger().handlers), partial(logging.getLogger().handlers.__setitem__, slice(None))),
]
OWN_FOLDERS = [str(ROOT / folder) for folder in ("examples", "configs", "src/compat/standins")]
"""Files in them are imported by their bare names, as those in a test's own folder are."""


def forget_commands() -> None:
    """The process is again as if no command had run in it: no homes, nobody trusted, no log."""
    registry.use_folder(None)
    registry._trusted.clear()
    console._remove_handlers(console.ConsoleHandler, console.RunFileHandler)
    console.LOG.setLevel(logging.NOTSET)
    logging.captureWarnings(False)
    gc.unfreeze()  # what a training froze would never be freed


@contextmanager
def put_back(folder: Path) -> Iterator[None]:
    """Put back what is set in between for the whole process; modules from this folder are forgotten."""
    forget_commands()  # which fixtures of a module have called
    before, modules = [read() for read, _ in OF_THE_PROCESS], set(sys.modules)
    yield
    forget_commands()
    for (read, put), value in zip(OF_THE_PROCESS, before, strict=True):
        if read() != value:
            put(value)
    for name in [name for name in set(sys.modules) - modules if not name.startswith("src.")]:
        places = f"{getattr(sys.modules[name], '__file__', '')} {getattr(sys.modules[name], '__path__', '')}"
        if any(own in places for own in (str(folder), *OWN_FOLDERS)):
            del sys.modules[name]  # the next may call a file of its own the same


@pytest.fixture(autouse=True)
def as_found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Every test leaves the process as it found it. A command sets up one of its own; here many share one."""
    with put_back(tmp_path_factory.getbasetemp()):
        yield


def product_files() -> list[Path]:
    """Return the files of the project as git sees them, new ones too; without git, what a clone would hold."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        names = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout.split("\0")
        paths = [ROOT / name for name in names if name]
    except (OSError, subprocess.CalledProcessError):
        paths = [path for path in ROOT.rglob("*") if path.relative_to(ROOT).parts[0] not in (".venv", ".git", "saved")]
    return [path for path in paths if path.is_file() and "__pycache__" not in path.parts]


@pytest.fixture(scope="session")
def copy_project(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Function that makes a copy of the project, in a folder with a space in its name, to be changed at will."""

    def copy() -> Path:
        folder = tmp_path_factory.mktemp("copy") / "my project"
        for path in product_files():
            target = folder / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)
        return folder

    return copy
