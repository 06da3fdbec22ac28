"""Locks between processes: they die with their owner, however it ends."""

from __future__ import annotations

import os
import time
from pathlib import Path

from filelock import FileLock, Timeout, lock_descriptor, unlock_descriptor

PATIENCE_S = 0.2
"""How long an owner is waited for: `is_held` of another process is one for an instant."""
NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)


class InUse(Exception):
    """Another process holds a lock; the text says which."""


def hold(path: Path) -> FileLock:
    """Take a lock until the `release` of what is returned, or until that object or this process ends.

    A forked child does not have it. The file stays, with the pid of its last owner.

    Raises:
        InUse: Another process has it.
        OSError: The file cannot be made, or its file system has no locks.
    """
    lock = FileLock(path, PATIENCE_S, thread_local=False, preserve_lock_file=True, on_acquired=_write_pid)
    try:
        lock.acquire(poll_interval=PATIENCE_S / 20)
    except Timeout:
        raise InUse(f"pid {_read_pid(path)}") from None
    return lock


def is_held(path: Path | str) -> bool:
    """Return whether a process holds a lock; False of a file that is not there or cannot be opened."""
    access = os.O_RDWR if os.access(path, os.W_OK) else os.O_RDONLY  # some network file systems lock only the former
    try:
        descriptor = os.open(path, access | NO_FOLLOW)
    except OSError:
        return False
    try:
        is_free = lock_descriptor(descriptor, blocking=False)
        if not is_free:
            time.sleep(PATIENCE_S / 100)  # perhaps somebody else who only asks
            is_free = lock_descriptor(descriptor, blocking=False)
        if is_free:
            unlock_descriptor(descriptor)
        return not is_free
    except OSError:
        return False
    finally:
        os.close(descriptor)


def _write_pid(descriptor: int) -> None:
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"\n{os.getpid()}\n".encode())  # on Windows nobody else can read the first byte


def _read_pid(path: Path) -> str:
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(1)
            return file.read(32).decode(errors="replace").strip() or "unknown"
    except OSError:
        return "unknown"
