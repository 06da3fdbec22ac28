"""The processes of one run, and what they tell each other. A run of one process asks `ALONE`, which costs nothing.

Started by `torchrun`, or by `train.py -d 0,1`, every process is a rank: 0 to world_size - 1. Rank 0 alone writes files
and talks to people. No torch here: a command line is checked before torch is imported.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any


class Ranks:
    """One process: whatever is asked of all ranks is what this one says.

    Every method is a meeting unless it says otherwise: all ranks must call it, in the same order.
    """

    rank = 0
    local_rank = 0
    world_size = 1
    is_alone = True
    """Whether there is nobody to meet."""
    process_group: Any = None
    """What torch sends their messages through; None is its own choice."""
    gradient_hook: Any = None
    """Takes a bucket of DDP's gradients and returns its mean to come, where they are not sent as usual."""

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and talks to people."""
        return self.rank == 0

    def start(self, device: Any, timeout_s: float) -> None:
        """Begin to exchange tensors of `device`; a rank that waits longer than `timeout_s` for another gives up."""

    def aside(self) -> Ranks:
        """Return the same ranks with a line of their own, for one other thread that meets those of the other ranks."""
        return self

    def remember(self, name: str, text: str) -> None:
        """Keep a text for the ranks of a later attempt, after some of these have died. No meeting."""

    def recall(self, name: str) -> str | None:
        """Return what an earlier attempt of this job has kept; None in the first."""
        return None

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's `value`: plain data and tensors."""
        return value

    def by_main(self, answer: Callable[[], Any]) -> Any:
        """Return what `answer` returns on rank 0, the only one that calls it. If it fails there, all ranks fail."""
        return answer()

    def gather(self, value: Any) -> list[Any]:
        """Return to rank 0 what all ranks gave, in the order of ranks; to the others an empty list."""
        return [value]

    def largest(self, value: int) -> int:
        """Return the largest of all ranks' values."""
        return value

    def sum(self, tensor: Any) -> Any:
        """Add up a tensor over the ranks, in place, and return it."""
        return tensor

    def copy_from_main(self, tensors: list[Any]) -> None:
        """Overwrite tensors by those of rank 0."""

    def waiting(self) -> AbstractContextManager[None]:
        """Return the context in which to wait for other ranks by other ways than these methods. No meeting."""
        return nullcontext()

    def before_giving_up(self, last_words: Callable[[], None]) -> None:
        """Have this called before the process is ended because another rank hangs. No meeting."""

    def tells(self, error: BaseException) -> bool:
        """Return whether it is for this process to say that the run has failed: the first that fails does."""
        return True

    def explain(self, error: BaseException) -> BaseException:
        """Return what a user is told in place of `error`, where it only says that another rank has gone."""
        return error

    def is_left_behind(self, error: BaseException) -> bool:
        """Return whether `error` only says that another rank has gone. No meeting."""
        return False

    def code_of_end(self, error: BaseException, code: int) -> int:
        """Return the exit code of a run that ends: of the first rank that failed by itself, else the given. No meeting.

        Args:
            error: With which this rank ends.
            code: Its exit code.
        """
        return code

    def leave(self, code: int) -> None:
        """End this process, if there are others; in good order if `code` is 0."""


ALONE = Ranks()
_current = [ALONE]


def current_ranks() -> Ranks:
    """Return the ranks that this process has joined; `ALONE` before."""
    return _current[0]


def join(ranks: Ranks) -> None:
    """Let `current_ranks` return these from now on."""
    _current[0] = ranks
