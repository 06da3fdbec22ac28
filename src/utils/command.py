"""How every command ends: its exit code, and what a user reads when something is wrong."""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable

from src.utils.deterministic import no_deterministic_form
from src.utils.errors import KeelError, ResourceError
from src.utils.processes.ranks import current_ranks
from src.utils.secrets import masked_text

FINAL = (2, 3, 4, 6, 130, 143)
"""Exit codes after which the same processes would only do the same again, or were asked to stop."""
OUT_OF = {
    errno.ENOSPC: "the disk is full; free some space",
    errno.EDQUOT: "the disk quota is used up; free some space",
    errno.EFBIG: "a file would be larger than is allowed; see `ulimit -f`",
    errno.EMFILE: "too many open files; raise `ulimit -n`, or use fewer loader.num_workers",
    errno.ENOMEM: "memory ran out; use a smaller loader.batch_size or fewer loader.num_workers",
}


def run_command(main: Callable[[], int]) -> int:
    """Call `main` and return its exit code; turn a `KeelError` into one `error:` line per mistake and its own code.

    The traceback is shown with `--traceback`, and always for errors that are no `KeelError`: those are bugs. What the
    machine has no more of (memory, disk, open files) is told like a `KeelError`.
    """
    os.umask(os.umask(0o077) | 0o002)  # whatever is made, not everybody may change it
    code = _run(main)
    ranks = current_ranks()
    if code in FINAL:
        ranks.remember("code", str(code))
    ranks.leave(code)
    return code


def _run(main: Callable[[], int]) -> int:
    try:
        return main()
    except KeyboardInterrupt:
        if current_ranks().is_main:
            print("stopped at once; the last checkpoint is whole", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:  # the reader of our output has gone; there is nobody to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        ranks = current_ranks()
        told = shortage(error) or no_deterministic_form(error) or ranks.explain(error)
        if not ranks.tells(told):
            return exit_code(told)
        if not isinstance(told, KeelError):
            if ranks.is_alone:
                raise
            sys.excepthook(*sys.exc_info())  # torch's says of which rank it is
            return exit_code(told)
        if "--traceback" in sys.argv:
            traceback.print_exc()
        else:
            for line in str(told).splitlines():
                print(f"error: {masked_text(line)}", file=sys.stderr)
        return told.exit_code


def exit_code(error: BaseException) -> int:
    """Return the code with which `run_command` ends on `error`."""
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT
    told = shortage(error) or no_deterministic_form(error) or current_ranks().explain(error)
    return told.exit_code if isinstance(told, KeelError) else 1


def shortage(error: BaseException) -> ResourceError | None:
    """Return what a user is told when `error` means that memory, disk or open files ran out; else None."""
    text = str(error).splitlines()[0] if str(error) else ""
    if isinstance(error, OSError) and error.errno in OUT_OF:
        return ResourceError(f"{error.filename or 'system'}: {OUT_OF[error.errno]}")
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in text:
        advice = "use a smaller loader.batch_size; trainer.accumulate_steps keeps the step as it was"
        return ResourceError(f"memory ran out: {text.partition(': ')[2] or text or 'no more is given'}; {advice}")
    return None
