"""What happens in and around the processes that read ahead."""

from __future__ import annotations

import os
import re
import signal
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset

from src.data.part import Collate, Part, shown_rows
from src.utils.errors import KeelError, WorkerError


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
        except KeelError as error:
            return Failure.of(error)


def identity(batch: Any) -> Any:
    """Return `batch`: it is collated already."""
    return batch


@dataclass(frozen=True)
class WorkerStart:
    """First thing a worker does: leave signals to the training process, then call the user's function."""

    user_function: Callable[[int], Any] | None = None

    def __call__(self, worker: int) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if hasattr(signal, "SIGUSR1"):
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        if hasattr(signal, "sigwaitinfo"):
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            threading.Thread(target=_end_on_parents_word, args=(os.getppid(),), daemon=True).start()
        if self.user_function is not None:
            self.user_function(worker)


def _end_on_parents_word(parent: int) -> None:
    """End this process when its parent asks; a SIGTERM to the whole group is for the parent, which still needs us."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def worker_error(error: RuntimeError, part_name: str, rows: list[int] | None = None) -> Exception:
    """Return what a user is told when torch reports a dead or silent worker; other errors are returned as they are.

    Args:
        error: What the DataLoader raised.
        part_name: Part that was being read.
        rows: Rows of the batch that was waited for, if known.
    """
    text = str(error)
    where = f"{part_name}: " if rows is None else f"{part_name} {shown_rows(rows)}: "
    if timed_out := re.search(r"timed out after (\S+) seconds", text):
        return WorkerError(
            f"{where}no batch from a loader worker for {timed_out[1]} s; "
            "raise loader.timeout if the data are slow, or find the hanging read with loader.num_workers=0"
        )
    if killed := re.search(r"DataLoader worker \(pid\(?s?\)? ([\d, ]+)\) (is killed by signal: ([^.]*)|exited)", text):
        fate = f"was killed by signal {killed[3]}" if killed[3] else "ended unexpectedly"
        return WorkerError(f"{where}loader worker (process {killed[1]}) {fate}; {_advice(text)}")
    return error


def _advice(text: str) -> str:
    if "Bus error" in text or "shared memory" in text:
        return "shared memory is full: see `df /dev/shm`; use fewer loader.num_workers, or docker's --shm-size"
    if "Killed" in text:
        return "often memory ran out: use fewer loader.num_workers or a smaller loader.prefetch_factor"
    return "loader.num_workers=0 shows the error in the training process"
