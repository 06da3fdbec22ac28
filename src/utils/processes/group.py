"""Several processes of one run, through torch's process groups.

What ranks tell each other is encoded as checkpoints are, tensors and plain data that cannot run code, and travels
through gloo on the host; gradients travel through NCCL where the device is a GPU.
"""

from __future__ import annotations

import atexit
import copy
import io
import json
import os
import re
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from datetime import timedelta
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from src.utils.errors import KeelError, WorkerError, first_line
from src.utils.processes.notes import HEARD, note, note_error
from src.utils.processes.ranks import Ranks
from src.utils.processes.watch import Watch

START_S = 300.0
"""A rank that has not come within this time after the first is missed."""
LAST_WORDS_S = 8.0
"""How long a rank that fails after another gives the launcher to end it."""
_PEER_LOST = re.compile(r"gloo|NCCL|closed by peer|reset by peer|Broken pipe|process group|DistStore|[Ss]ocket", re.I)


class LostRank(WorkerError):
    """Another rank has gone; why, only that one knows."""


class Group(Ranks):
    """One rank of several.

    Args:
        environment: What the launcher has said: RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT.
    """

    is_alone = False

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.rank, self.local_rank = int(environment["RANK"]), int(environment["LOCAL_RANK"])
        self.world_size = int(environment["WORLD_SIZE"])
        self._address = f"{environment['MASTER_ADDR']}:{environment['MASTER_PORT']}"
        self._is_started = False
        self._num_told = 0
        self._watch: Watch | None = None

    @cached_property
    def _job(self) -> Store:
        """What outlives this process where the launcher keeps it, so that a later attempt finds it."""
        try:
            store: Store = next(rendezvous("env://", timeout=timedelta(seconds=START_S)))[0]
        except dist.DistNetworkError as error:
            if "EADDRINUSE" in str(error):
                raise WorkerError(
                    f"{self._address} is in use; choose another with `torchrun --master-port=N`, or leave the choice "
                    "to `torchrun --standalone`"
                ) from error
            raise WorkerError(f"{self._address}: nobody answers there, and rank 0 should") from error
        return store

    @cached_property
    def _name(self) -> str:
        return _meet(self._job, self.rank, self.world_size)

    @cached_property
    def _store(self) -> Store:
        """What this attempt shares: all its ranks have met, and nothing that dead ranks have left is in it."""
        return PrefixStore(self._name, self._job)

    def start(self, device: torch.device, timeout_s: float) -> None:
        is_gpu = device.type == "cuda"
        if is_gpu:
            torch.cuda.set_device(device)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if is_gpu else "gloo",
            store=self._store,
            rank=self.rank,
            world_size=self.world_size,
            timeout=timedelta(seconds=2 * timeout_s + START_S),  # the watch finds out sooner, and who it is
            device_id=device if is_gpu else None,
        )
        watched = PrefixStore(self._name, self._job.clone())  # type: ignore[attr-defined]
        self._watch = Watch(watched, self.rank, self.world_size, timeout_s)
        self._is_started = True

    def aside(self) -> Group:
        other = copy.copy(self)
        with self.waiting():
            other.process_group = dist.new_group(backend="gloo")
        other._watch = None  # it looks after the main thread
        return other

    def waiting(self) -> AbstractContextManager[None]:
        return self._watch or nullcontext()

    def before_giving_up(self, last_words: Callable[[], None]) -> None:
        if self._watch:
            self._watch.last_words = last_words

    def remember(self, name: str, text: str) -> None:
        note(name, text)
        with suppress(RuntimeError, WorkerError):  # the launcher has gone; there will be no later attempt
            self._job.set(f"keel/{name}", text)

    def recall(self, name: str) -> str | None:
        text = None
        if self.is_main and self._job.check([f"keel/{name}"]):
            text = self._job.get(f"keel/{name}").decode()
        found: str | None = self.broadcast(text)
        return found

    def broadcast(self, value: Any) -> Any:
        data = _encoded(value) if self.is_main else b""
        if not self._is_started:
            self._num_told += 1
            if self.is_main:
                self._store.set(f"told/{self._num_told}", data)  # type: ignore[arg-type]  # bytes will do
            while not self._store.check([f"told/{self._num_told}"]):  # building a large model takes its time
                time.sleep(0.01)
            return _decoded(self._store.get(f"told/{self._num_told}"))
        size = torch.tensor(len(data))
        with self.waiting():
            dist.broadcast(size, 0, self.process_group)
            bytes_ = _as_tensor(data) if self.is_main else torch.empty(int(size), dtype=torch.uint8)
            dist.broadcast(bytes_, 0, self.process_group)
        return value if self.is_main else _decoded(bytes_.numpy().tobytes())

    def by_main(self, answer: Callable[[], Any]) -> Any:
        value = None
        if self.is_main:
            try:
                value = answer()
            except Exception as error:
                code = error.exit_code if isinstance(error, KeelError) else None
                with suppress(RuntimeError):  # the others may have gone
                    self.broadcast((None, (code, str(error))))
                raise
        value, failure = self.broadcast((value, None))
        if failure is not None:
            raise _as_raised(*failure)
        return value

    def gather(self, value: Any) -> list[Any]:
        data = _encoded(value)
        sizes = torch.zeros(self.world_size, dtype=torch.int64)
        sizes[self.rank] = len(data)
        with self.waiting():
            dist.all_reduce(sizes, group=self.process_group)
            padded = torch.zeros(int(sizes.max()), dtype=torch.uint8)
            padded[: len(data)] = _as_tensor(data)
            received = [torch.empty_like(padded) for _ in range(self.world_size)] if self.is_main else None
            dist.gather(padded, received, 0, self.process_group)
        return [_decoded(each[:size].numpy().tobytes()) for each, size in zip(received or [], sizes, strict=False)]

    def largest(self, value: int) -> int:
        found = torch.tensor(value)
        with self.waiting():
            dist.all_reduce(found, dist.ReduceOp.MAX, self.process_group)
        return int(found)

    def sum(self, tensor: Tensor) -> Tensor:
        with self.waiting():
            dist.all_reduce(tensor, group=self.process_group)
        return tensor

    def copy_from_main(self, tensors: list[Tensor]) -> None:
        for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
            alike = [tensor for tensor in tensors if tensor.dtype == dtype]
            flat = torch.cat([tensor.reshape(-1) for tensor in alike])  # one message for all
            with self.waiting():
                dist.broadcast(flat, 0, self.process_group)
            if not self.is_main:
                for tensor, part in zip(alike, torch.split(flat, [tensor.numel() for tensor in alike]), strict=True):
                    tensor.copy_(part.view_as(tensor))

    def tells(self, error: BaseException) -> bool:
        is_first = self._fails_first(error)
        if is_first:
            note_error(str(error) if isinstance(error, KeelError) else f"{type(error).__name__}: {error}")
        else:
            note(HEARD, str(error))
        return is_first

    def _fails_first(self, error: BaseException) -> bool:
        if isinstance(error, LostRank):
            time.sleep(LAST_WORDS_S)  # whoever has gone first tells why
        if "_store" in self.__dict__:
            with suppress(Exception):  # the store may be gone with the launcher
                if self._store.add("failed", 1) == 1:
                    return True
                time.sleep(LAST_WORDS_S)
                return False
        if not self.is_main:  # whatever is wrong is wrong for rank 0 too, unless it is only here
            time.sleep(LAST_WORDS_S)
        return True

    def explain(self, error: BaseException) -> BaseException:
        is_ours = isinstance(error, KeelError | KeyboardInterrupt)
        if is_ours or not (isinstance(error, RuntimeError) and _PEER_LOST.search(str(error))):
            return error
        lost = LostRank(f"rank {self.rank} has lost another rank ({first_line(error)[:200]})")
        lost.__cause__ = error
        return lost

    def is_left_behind(self, error: BaseException) -> bool:
        return isinstance(self.explain(error), LostRank)

    def code_of_end(self, error: BaseException, code: int) -> int:
        with suppress(Exception):  # the store may be gone with the launcher
            if not self.is_left_behind(error):
                return int(self._store.compare_set("code", "", str(code)))
            if self._store.check(["code"]):  # set before the other went
                return int(self._store.get("code"))
        return code

    def leave(self, code: int) -> None:
        if self._watch:
            self._watch.end()
        if self._is_started and code == 0:
            dist.destroy_process_group()
        # Threads inside torch abort an interpreter that takes itself apart, now and then.
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


def _meet(job: Store, rank: int, world_size: int) -> str:
    """Return a name for this attempt, the same on all its ranks and never used before.

    Ranks of earlier attempts have left their words in the store: a welcome counts only if it repeats my own word. An
    attempt's number would not do: with several machines, torch's agents count for themselves.

    Raises:
        WorkerError: Some ranks did not come in time.
    """
    deadline, word = time.monotonic() + START_S, uuid.uuid4().hex
    names = [f"hello/{each}" for each in range(world_size)]
    job.set(f"hello/{rank}", word)
    welcome: dict[str, Any] = {}
    while time.monotonic() < deadline:
        if rank == 0 and job.check(names):
            words = [each.decode() for each in job.multi_get(names)]
            if words != welcome.get("words"):
                welcome = {"name": uuid.uuid4().hex, "words": words}
                job.set("welcome", json.dumps(welcome))
            if all(job.check([f"{welcome['name']}/here/{each}"]) for each in range(1, world_size)):
                job.set(f"{welcome['name']}/all", "here")
                return str(welcome["name"])
        elif rank > 0 and job.check(["welcome"]):
            welcome = json.loads(job.get("welcome"))
            if len(welcome["words"]) == world_size and welcome["words"][rank] == word:
                job.set(f"{welcome['name']}/here/{rank}", "here")
                if job.check([f"{welcome['name']}/all"]):
                    return str(welcome["name"])
        time.sleep(0.01)
    late = [str(each) for each, name in enumerate(names) if not job.check([name])]
    raise WorkerError(f"rank {', '.join(late) or 'another'} of {world_size} has not started within {START_S:.0f} s")


def _as_raised(exit_code: int | None, text: str) -> KeelError:
    """Return the error that rank 0 has raised; of one without an exit code, which is a bug, only rank 0 tells."""
    if exit_code is None:
        return LostRank(f"rank 0 has failed ({text[:200]})")
    kinds = {kind.exit_code: kind for kind in KeelError.__subclasses__()}
    return kinds.get(exit_code, KeelError)(text)


def _encoded(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _decoded(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _as_tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
