"""Commands called in this process, for tests that are about their answer: a process of its own costs seconds."""

from __future__ import annotations

import contextlib
import io
from importlib import import_module
from pathlib import Path
from subprocess import CompletedProcess

from src.utils.command import run_command


def called(script: str, *words: object, cwd: Path | str = ".") -> CompletedProcess[str]:
    """What a script answers: its exit code, what it prints and what it prints as errors."""
    main = import_module(script.removesuffix(".py")).main
    given = [str(word) for word in words]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), contextlib.chdir(cwd):
        code = run_command(lambda: main(given))
    return CompletedProcess([script, *given], code, out.getvalue(), err.getvalue())
