"""Which line of the user's a failure comes from."""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Collection
from pathlib import Path

from src.utils.paths import PROJECT_ROOT, shown_path

_LIBRARIES = ("<", *(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")))


def own_line(error: BaseException, callers: Collection[str]) -> str:
    """Return ` (file.py:12)`, the innermost line of `error` in no library; nothing where that is one of `callers`.

    Args:
        error: As it was caught.
        callers: Files of the project that only call what failed, such as `src/trainer/task.py`.
    """
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(_LIBRARIES)]
    if not own or own[-1].filename in {str(PROJECT_ROOT / name) for name in callers}:
        return ""
    return f" ({shown_path(Path(own[-1].filename))}:{own[-1].lineno})"
