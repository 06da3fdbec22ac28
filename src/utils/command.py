"""How every command ends: its exit code, and what a user reads when something is wrong."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable

from src.utils.errors import KeelError


def run_command(main: Callable[[], int]) -> int:
    """Call `main` and return its exit code; turn a `KeelError` into one `error:` line per mistake and its own code.

    The traceback is shown with `--traceback`, and always for errors that are no `KeelError`: those are bugs.
    """
    try:
        return main()
    except KeelError as error:
        if "--traceback" in sys.argv:
            traceback.print_exc()
        else:
            for line in str(error).splitlines():
                print(f"error: {line}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped at once; the last checkpoint is whole", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:  # the reader of our output has gone; there is nobody to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
