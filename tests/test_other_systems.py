"""Where the system has less than Linux: what is missing is not imported, and a run is made without it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import ROOT
from tests.test_layers import PRODUCT, imported_names, shown, tree

POSIX_ONLY = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
WITHOUT = """
import os, signal, sys
from torch.utils.data._utils import signal_handling
import filelock, pandas, sklearn.base, torch._dynamo, torch.optim
from tensorboard.compat.proto import event_pb2

sys.modules.update(dict.fromkeys(sys.argv[2].split(",")))  # `import fcntl` is an ImportError from here on
missing = "SIGBUS SIGCHLD SIGCONT SIGHUP SIGKILL SIGQUIT SIGSTOP SIGUSR1 SIGUSR2 SIG_BLOCK SIG_SETMASK SIG_UNBLOCK"
for name in f"{missing} alarm pthread_kill pthread_sigmask setitimer sigpending sigtimedwait sigwaitinfo".split():
    vars(signal).pop(name, None)
for name in "O_DIRECT O_NOFOLLOW getuid geteuid killpg mkfifo register_at_fork sched_getaffinity setsid".split():
    vars(os).pop(name, None)
sys.platform, signal_handling.IS_WINDOWS = "win32", True

from src.utils.command import run_command
import runs
import train

words = ["-c", "configs/line.yaml", f"trainer.save_dir={sys.argv[1]}", "loader.num_workers=1", "-q"]
codes = [run_command(lambda: train.main([*words, "trainer.max_steps=5"]))]
codes += [run_command(lambda: train.main([*words, "trainer.max_steps=9", "-r", "auto"]))]
codes += [run_command(lambda: runs.main([sys.argv[1]]))]
sys.exit(codes != [0, 0, 0])
"""


def unguarded(node: ast.AST) -> Iterator[ast.AST]:
    """Yield what runs when a module is imported, whatever the system."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.If | ast.Try):
            yield child
            yield from unguarded(child)


def test_no_module_imports_at_its_top_what_windows_does_not_have() -> None:
    """What else is missing there, `mypy --platform win32` finds (`make lint`)."""
    found = [
        f"{shown(path)}:{node.lineno} {name}"
        for path in PRODUCT
        for node in unguarded(tree(path))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in imported_names(node)
        if name.split(".")[0] in POSIX_ONLY
    ]
    assert not found
    assert "mypy --platform win32" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_a_run_is_made_and_gone_on_with_where_windows_has_less(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT, str(tmp_path / "runs"), ",".join(sorted(POSIX_ONLY))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "finished" in done.stdout
