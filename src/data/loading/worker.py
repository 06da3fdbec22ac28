"""What happens in and around the processes that read ahead."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import parent_process
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any
from weakref import finalize

import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils import signal_handling

from src.data.parts.part import SHARED_MEMORY_IS_FULL, Collate, Part, shown_rows
from src.utils.command import shortage
from src.utils.errors import KeelError, ResourceError, WorkerError
from src.utils.signals import ASKING, Stopped


@dataclass(frozen=True)
class Failure:
    """An error on its way from a worker to the training process.

    torch would raise it there as the same class with a whole traceback for a message.
    """

    kind: type[KeelError]
    message: str
    traceback: str

    @classmethod
    def of(cls, error: KeelError) -> Failure:
        return cls(type(error), str(error), "".join(traceback.format_exception(error)))


class WorkerTraceback(Exception):
    """Cause of an error that a worker reported: its text is the traceback of that process."""


def checked(batch: Any) -> Any:
    """Return `batch`, or raise the error that came in its place."""
    if isinstance(batch, Failure):
        raise batch.kind(batch.message) from WorkerTraceback("\n" + batch.traceback)
    return batch


class PartReader(Dataset[Any]):
    """Reads batch (epoch, rows) of a part: the epoch comes with the key, so workers that live on see the new one."""

    def __init__(self, part: Part, collate: Collate | None) -> None:
        self.part = part
        self.collate = collate

    def __getitem__(self, key: tuple[int, Any]) -> Any:
        epoch, rows = key
        try:
            return self.part.read(epoch, torch.from_numpy(rows), self.collate)
        except Exception as error:
            return failure(error, self.part)


def failure(error: Exception, part: Part) -> Failure:
    """Return what a worker sends when reading `part` failed with `error`; what is no `KeelError` is raised again."""
    missing = shortage(error)
    if missing is not None:
        advice = "use fewer loader.num_workers, or a smaller loader.prefetch_factor or loader.batch_size"
        error = ResourceError(f"{part.name}: in a loader worker {str(missing).partition(';')[0]}; {advice}")
    if not isinstance(error, KeelError):
        raise error
    return Failure.of(error)


_error_if_any_worker_fails: Callable[[], None] = vars(signal_handling)["_error_if_any_worker_fails"]


def identity(batch: Any) -> Any:
    """Return `batch`: it is collated already."""
    return batch


PARENT_CHECK_S = 1.0


@contextmanager
def starting_workers() -> Iterator[None]:
    """Start workers in this block: they hold back signals until `WorkerStart` has said what becomes of them.

    One that dies at once is noticed when its batch is asked for: torch's handler would raise in the midst of the start.
    """
    if sys.platform == "win32":  # has none of this
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {*ASKING, signal.SIGCHLD})
    handler = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, handler or signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@dataclass(frozen=True)
class WorkerStart:
    """First thing a worker does: leave signals to the training process, then call the user's function."""

    user_function: Callable[[int], Any] | None = None

    def __call__(self, worker: int) -> None:
        sys.excepthook = _tell_unless_dropped
        for ignored in ASKING - {signal.SIGTERM}:
            signal.signal(ignored, signal.SIG_IGN)
        if sys.platform == "linux":
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {*ASKING, signal.SIGCHLD} - {signal.SIGTERM})
        elif sys.platform != "win32":  # macOS cannot tell who sent it
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {*ASKING, signal.SIGCHLD})
        if self.user_function is not None:
            self.user_function(worker)


def _tell_unless_dropped(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """Print what a thread of a worker cannot handle, but not that the training process has dropped a connection."""
    if not issubclass(kind, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, trace)


def _end_with_parent(starter: int) -> None:
    """End this process when its parent asks or is gone, whatever it is doing. Linux only.

    A SIGTERM to the whole group is for the parent, which still needs us.

    Args:
        starter: Process that this one was forked from: the training process, or its fork server.
    """
    if sys.platform != "linux":
        return
    parent = parent_process()
    asking = {starter, parent.pid if parent else starter}
    while os.getppid() == starter:
        told = signal.sigtimedwait({signal.SIGTERM}, PARENT_CHECK_S)
        if told is not None and told.si_pid in asking:
            break
    os._exit(0)


@contextmanager
def watched_workers() -> Iterator[None]:
    """Raise a `RuntimeError` in this block if a worker dies, or died before.

    torch's own handler of SIGCHLD raises wherever the training process happens to be: in a step, or in a save.
    """
    if sys.platform == "win32" or threading.current_thread() is not threading.main_thread():
        yield  # there is no such signal, or it is none of its business
        return
    previous = signal.signal(signal.SIGCHLD, lambda *_: _error_if_any_worker_fails())
    try:
        _error_if_any_worker_fails()
        yield
    finally:
        signal.signal(signal.SIGCHLD, previous or signal.SIG_DFL)


LOOK_S = 0.5
"""How often, while a worker is waited for, somebody may say that the wait is over."""


def time_limit(limit_s: float) -> float:
    """Return the time limit that torch's loader gets, for `wait_for_batch` to wait `limit_s`; 0 is for ever."""
    return min(limit_s or LOOK_S, LOOK_S)


def wait_for_batch(batches: Iterator[Any], limit_s: float, is_asked_to_stop: Callable[[], bool]) -> Any:
    """Return the next batch of workers. torch's loader, when its own limit is over, can be asked again.

    Raises:
        StopIteration: There is none.
        Stopped: `is_asked_to_stop` said so.
        TimeoutError: None came within `limit_s`, unless that is 0.
    """
    began_s = time.monotonic()
    while True:
        try:
            with watched_workers():
                return checked(next(batches))
        except RuntimeError as error:
            if not str(error).startswith("DataLoader timed out"):
                raise
            if is_asked_to_stop():
                raise Stopped from None
            if 0 < limit_s <= time.monotonic() - began_s:
                raise TimeoutError(f"{limit_s:g} s") from None


class WorkerLoader(DataLoader[Any]):
    """torch's loader; of more workers than cores a run tells once, see `misfits`, and not each loader twice."""

    def check_worker_number_rationality(self) -> None:
        pass


def usable_workers(part: Part, wanted: int) -> int:
    """Return how many workers can read `part`: one, if each of several would read all of an iterable dataset."""
    if part.is_iterable and wanted > 1 and not getattr(part.dataset, "is_sharded", False):
        logging.getLogger(__name__).info(
            "%s: 1 loader worker instead of %d, as each would read all of iterable dataset %s; "
            "if it gives every worker a share (torch.utils.data.get_worker_info), let it say is_sharded = True",
            part.name, wanted, part.dataset_name,
        )  # fmt: skip
        return 1
    return wanted


def end_workers(batches: Any) -> None:
    """End the workers that `batches` come from at once, even one that hangs."""
    workers = getattr(batches, "_workers", ())
    for process in workers:
        process.terminate()
    for process in workers:
        process.join(1)
        process.kill()
    if workers:
        batches._shutdown_workers()  # else torch reports their deaths later


def end_with(owner: object, loader: DataLoader[Any]) -> None:
    """End the workers of `loader` when nobody uses `owner` any more.

    As garbage in a cycle, torch's own pipes may be closed before its message to the workers is sent; it then waits 5 s
    for each of them.
    """
    finalize(owner, _let_go, loader, os.getpid())


def _let_go(loader: DataLoader[Any], starter: int) -> None:
    batches: Any = loader._iterator
    if os.getpid() == starter and batches is not None:  # a worker has them all from its parent
        batches._shutdown_workers()


def worker_error(
    error: Exception, processes: Sequence[BaseProcess], part_name: str, rows: list[int] | None = None
) -> Exception:
    """Return what a user is told when a worker died or is silent; any other error is returned as it is.

    Args:
        error: What `wait_for_batch` raised. When a worker dies with a batch half sent, that is a broken connection.
        processes: The workers.
        part_name: Part that was being read.
        rows: Rows of the batch that was waited for, if known.
    """
    if isinstance(error, TimeoutError):
        where = part_name if rows is None else f"{part_name} {shown_rows(rows)}"
        return WorkerError(
            f"{where}: no batch from a loader worker for {error}; "
            "raise loader.timeout if the data are slow, or find the hanging read with loader.num_workers=0"
        )
    if not isinstance(error, (ConnectionError, EOFError)) and "DataLoader worker" not in str(error):
        return error
    ended = wait([process.sentinel for process in processes], timeout=1)
    dead = [process for process in processes if process.sentinel in ended]
    for process in dead:
        process.join(1)  # its end is seen before its exit code is there
    with suppress(RuntimeError):
        _error_if_any_worker_fails()  # else torch reports the same death again
    first = next(iter(sorted(dead, key=lambda process: process.exitcode or 0)), None)  # one that was killed, if any
    code = first.exitcode or 0 if first else 0
    fate = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended by itself with code {code}"
    who = f"loader worker {first.pid} {fate}" if first else "a loader worker is gone"
    return WorkerError(f"{part_name}: {who}; {_advice(-code, str(error))}")


def _advice(killer: int, text: str) -> str:
    if killer == getattr(signal, "SIGBUS", None) or "shared memory" in text:
        return SHARED_MEMORY_IS_FULL
    if killer == getattr(signal, "SIGKILL", None):
        return "often memory ran out: use fewer loader.num_workers or a smaller loader.prefetch_factor"
    return "loader.num_workers=0 shows the error in the training process"
