"""What a step changes before it updates the weights, as it was before."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from src.utils.seed import rng_state, set_rng_state


class BeforeStep:
    """Keeps random streams, buffers and a task's memory before each step, so that a bad one can be undone or repeated.

    The first step keeps everything and shows what a step changes at all; from then on only that is kept, which takes
    about 1 us: the state of torch's stream. Python's and numpy's are dear, and models hardly ever draw from them.

    Args:
        modules: Model and loss.
        task: Is remembered, too, if it offers `state_dict`.
    """

    def __init__(self, modules: Sequence[nn.Module], task: Any) -> None:
        self._buffers = [buffer for module in modules for buffer in module.buffers()]
        self._copies = [buffer.clone() for buffer in self._buffers]
        self._task = task if hasattr(task, "state_dict") and hasattr(task, "load_state_dict") else None
        self._task_state: dict[str, Any] = {}
        self._draws_host = True
        self._streams = rng_state()
        self._num_kept = 0

    def keep(self) -> None:
        """Take a picture; the next step starts now."""
        if self._num_kept == 1:
            self._learn()
        self._num_kept += 1
        if self._draws_host:
            self._streams = rng_state()
        else:
            self._streams["torch"] = torch.default_generator.get_state()
            if self._streams["cuda"]:
                self._streams["cuda"] = rng_state()["cuda"]
        if self._buffers:
            torch._foreach_copy_(self._copies, self._buffers)
        if self._task is not None:
            self._task_state = copy.deepcopy(self._task.state_dict())

    def _learn(self) -> None:
        """Find out what the first step has changed."""
        now = rng_state()
        python, numpy = now["python"]["words"], now["numpy"]
        self._draws_host = not (
            torch.equal(python, self._streams["python"]["words"])
            and torch.equal(numpy["keys"], self._streams["numpy"]["keys"])
            and numpy["position"] == self._streams["numpy"]["position"]
        )
        pairs = zip(self._buffers, self._copies, strict=True)
        changed = [(buffer, kept) for buffer, kept in pairs if not same_bits(buffer, kept)]
        self._buffers, self._copies = [buffer for buffer, _ in changed], [kept for _, kept in changed]

    def put_back(self) -> None:
        """Undo what the step has done to buffers and the task. The random streams go on."""
        if self._buffers:
            torch._foreach_copy_(self._buffers, self._copies)
        if self._task is not None:
            self._task.load_state_dict(copy.deepcopy(self._task_state))

    @property
    def streams(self) -> dict[str, Any]:
        """States of the random streams before the step."""
        return self._streams if self._draws_host else {**rng_state(), **_drawn_by_models(self._streams)}

    @contextmanager
    def again(self) -> Iterator[None]:
        """Let the block repeat the step from the same state, and leave no trace of it."""
        after = rng_state()
        set_rng_state(self.streams)
        self.put_back()
        try:
            yield
        finally:
            self.put_back()
            set_rng_state(after)


def _drawn_by_models(streams: dict[str, Any]) -> dict[str, Any]:
    return {name: streams[name] for name in ("torch", "cuda")}


def same_bits(first: Tensor, second: Tensor) -> bool:
    """Return whether two tensors are equal; nan equals nan."""
    return bool(((first == second) | ((first != first) & (second != second))).all())  # device sync
