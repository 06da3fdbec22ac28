"""What all tests share."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]

# Models are tiny here: a second thread only waits. Set before torch is imported, and handed on to every process.
os.environ.setdefault("OMP_NUM_THREADS", "1")

if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # `nohup make test`: the tests are about who hears it
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

settings.register_profile("keel", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("keel")


@pytest.fixture(autouse=True)
def own_modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Forget what a test imported from a temporary folder: the next may call a file of its own the same."""
    folder, before = str(tmp_path_factory.getbasetemp()), set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(folder):
            del sys.modules[name]


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
