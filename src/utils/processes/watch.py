"""Finding the rank that keeps the others waiting for ever, and ending them all."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from torch.distributed.distributed_c10d import Store

from src.utils.errors import WorkerError
from src.utils.paths import PROJECT_ROOT
from src.utils.processes.notes import note_error

ANSWER_S = 2.0
"""How long a rank that hangs has to say where."""


class Watch:
    """A thread that looks how long this rank waits for others, and a context that says when it does.

    When one has waited too long, it looks in the store for who has not come to the meeting. The thread of that rank
    says in which line its main thread is; if it can't, the process stands still as a whole.

    Args:
        store: Shared by the ranks; used by this thread alone.
        rank: Of this process.
        world_size: Number of ranks.
        timeout_s: How long to wait.
    """

    def __init__(self, store: Store, rank: int, world_size: int, timeout_s: float) -> None:
        self.store, self.rank, self.timeout_s = store, rank, timeout_s
        self.last_words: Callable[[], None] = lambda: None
        """Called before this process is ended."""
        self._keys = [f"meetings/{each}" for each in range(world_size)]
        self._num_meetings, self._since_s = 0, float("inf")
        self._main = threading.get_ident()
        self._is_over = threading.Event()
        self.store.set(self._keys[rank], "0")
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def __enter__(self) -> None:
        self._num_meetings += 1
        self._since_s = time.monotonic()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._since_s = float("inf")

    def end(self) -> None:
        """Look no longer."""
        self._is_over.set()
        self._thread.join(timeout=10.0)

    def _run(self) -> None:
        with suppress(RuntimeError):  # the store has gone, and with it the launcher, which ends this process
            while not self._is_over.wait(min(1.0, self.timeout_s / 5)):
                self.store.set(self._keys[self.rank], str(self._num_meetings))
                if self.store.check(["hanging"]):
                    self._leave()
                elif time.monotonic() - self._since_s > self.timeout_s:
                    self._accuse()

    def _accuse(self) -> None:
        """Name those who are behind, once, and leave. When none is, all work long on the same thing."""
        meetings = [int(each) for each in self.store.multi_get(self._keys)]
        late = [rank for rank, count in enumerate(meetings) if count < self._num_meetings]
        if not late or self.store.add("accusers", 1) > 1:
            return
        self.store.set("hanging", json.dumps(late))
        waited = f"the others have waited {self.timeout_s:g} s (trainer.parallel.timeout)"
        for rank in late:
            print(f"error: rank {rank} hangs{self._place_of(rank)}; {waited}", file=sys.stderr)
        self._leave()

    def _place_of(self, rank: int) -> str:
        deadline = time.monotonic() + ANSWER_S
        while time.monotonic() < deadline:
            if self.store.check([f"place/{rank}"]):
                return f" in {self.store.get(f'place/{rank}').decode()}"
            time.sleep(0.05)
        return " and does not answer"

    def _leave(self) -> None:
        late = json.loads(self.store.get("hanging"))
        note_error(f"rank {', '.join(map(str, late))} hangs")
        if self.rank in late:
            self.store.set(f"place/{self.rank}", self._place())
        self.last_words()
        time.sleep(ANSWER_S + 1.0)  # let the one that names it speak first
        os._exit(WorkerError.exit_code)

    def _place(self) -> str:
        """Return the innermost line of the main thread that is of this project or of the user."""
        frame = sys._current_frames().get(self._main)
        places = []
        while frame is not None:
            code = frame.f_code
            places.append((Path(code.co_filename), frame.f_lineno, code.co_name))
            frame = frame.f_back
        own = [each for each in places if "site-packages" not in each[0].parts and each[0].is_file()]
        path, line, name = (own or places)[0]
        shown = path.relative_to(PROJECT_ROOT) if path.is_relative_to(PROJECT_ROOT) else path
        return f"{shown}:{line} ({name})"
