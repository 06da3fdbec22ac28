"""How the process deals with the system's memory."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager, suppress

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Numbers of glibc's options, see `man mallopt`."""
KEPT_BYTES = 256 << 20


def keep_freed_memory() -> None:
    """Let the C library keep up to 256 MiB that were freed for whoever asks next, instead of returning them at once.

    A training step frees what the next one takes again. Each page that comes anew from the system costs a fault: 10 to
    30 percent of a small model's step on a CPU. Only glibc has these options; elsewhere this does nothing.
    """
    with suppress(OSError, AttributeError, TypeError):
        library = ctypes.CDLL(None)
        library.mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
        library.mallopt(M_MMAP_THRESHOLD, 32 << 20)  # the largest allowed; larger tensors are mapped singly as before


@contextmanager
def lasting_objects() -> Iterator[None]:
    """Make things in this block that stay until the end, modules above all: garbage is never looked for among them.

    Importing torch and its compiler makes a million objects. Python walks over all of them again and again while they
    become more, at times while training, and once more at the end: a third of what a short run takes. Pages that are
    not walked over also stay shared with loader workers.
    """
    if gc.get_freeze_count() or not gc.isenabled():  # what a run before this one left behind may be garbage
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
