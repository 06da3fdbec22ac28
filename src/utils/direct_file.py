"""Writing large files without pushing everything else out of memory."""

from __future__ import annotations

import errno
import mmap
import os
import sys
import zlib
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Event
from types import TracebackType

CHUNK_BYTES = 1 << 20


class DirectFile:
    """A new file that is written in large pieces, and summed on the way; at the end of the `with` block it is on disk.

    Whole pieces go past the system's cache where the file system allows it: then hundreds of megabytes need no fresh
    pages, which cost up to ten times as much as the writing does, and what the cache holds (the data set) stays there.
    One thread writes a piece while the next is filled.

    Args:
        path: Must not exist.
        give_up: When this is set, the next piece fails.

    Attributes:
        num_bytes: Written so far.
        checksum: CRC-32 of them.
        error: What went wrong with the disk, if anything; callers written in C lose it on the way.
    """

    def __init__(self, path: Path, give_up: Event | None = None) -> None:
        self.num_bytes = self.checksum = 0
        self.error: OSError | None = None
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        self._descriptor = os.open(path, flags, 0o666)  # the umask takes from it
        self._give_up = give_up or Event()
        self._pieces: list[memoryview] = []
        self._filled = 0
        self._thread: ThreadPoolExecutor | None = None
        self._writing: Future[None] | None = None

    def write(self, data: bytes | memoryview) -> int:
        """Take all of `data`."""
        rest = memoryview(data).cast("B")
        self.num_bytes += len(rest)
        if not self._pieces:
            self._pieces = [memoryview(mmap.mmap(-1, CHUNK_BYTES)) for _ in range(2)]  # as aligned as disks want it
        size = len(rest)
        while rest:
            part = rest[: CHUNK_BYTES - self._filled]
            self._pieces[0][self._filled : self._filled + len(part)] = part
            self.checksum = zlib.crc32(part, self.checksum)
            self._filled += len(part)
            rest = rest[len(part) :]
            if self._filled == CHUNK_BYTES:
                self._pass_on()
        return size

    def flush(self) -> None:
        """Do nothing: the end of the `with` block does it."""

    def __enter__(self) -> DirectFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._wait()
            if kind is None:
                self._set_direct(False)  # what is left is no whole piece
                if self._filled:
                    self._write_all(self._pieces[0][: self._filled])
                os.fsync(self._descriptor)
        finally:
            if self._thread:
                self._thread.shutdown()
            os.close(self._descriptor)

    def _pass_on(self) -> None:
        """Give the full piece to the thread, and go on with the other one."""
        if self._give_up.is_set():
            self.error = OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
            raise self.error
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "write")
            self._set_direct(True)
        self._wait()
        self._writing = self._thread.submit(self._write_all, self._pieces[0])
        self._pieces.reverse()
        self._filled = 0

    def _wait(self) -> None:
        writing, self._writing = self._writing, None
        if writing:
            try:
                writing.result()
            except OSError as error:
                self.error = error
                raise

    def _write_all(self, piece: memoryview) -> None:
        while piece:
            try:
                piece = piece[os.write(self._descriptor, piece) :]
            except OSError as error:
                if error.errno != errno.EINVAL or not self._set_direct(False):  # not as aligned as this disk wants it
                    raise

    def _set_direct(self, is_direct: bool) -> bool:
        """Write past the system's cache, or through it; return whether that is a change."""
        if sys.platform != "linux":
            return False
        import fcntl

        before = fcntl.fcntl(self._descriptor, fcntl.F_GETFL)
        after = before | os.O_DIRECT if is_direct else before & ~os.O_DIRECT
        if after != before:
            try:
                fcntl.fcntl(self._descriptor, fcntl.F_SETFL, after)
            except OSError:  # a file system that has only the one way
                return False
        return after != before


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` outlast a loss of power (a no-op where folders cannot be opened)."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_checksum(path: Path) -> int:
    """Return the CRC-32 of a file."""
    checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            checksum = zlib.crc32(chunk, checksum)
    return checksum
