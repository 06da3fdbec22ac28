"""Calling what torch has compiled, past the Python it puts around each call."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch


class CompiledCall:
    """The compiled form of a function of one argument.

    `torch.compile` spends 6 µs around each call on preparing for a compilation, a fifth of a tiny step. Here the guards
    of what was compiled before are asked first, the same ones; where they hold, the code they guard is called as it
    is. Where none do, torch is called as usual, and compiles. A torch that does not show its guards is always called
    so.

    Args:
        function: Has no default arguments. What its closure holds is never rebound.
        compiler_args: Of `torch.compile`; graphs must be whole (`fullgraph`).
    """

    def __init__(self, function: Callable[[Any], Any], **compiler_args: Any) -> None:
        from torch._dynamo import eval_frame  # torch imports its compiler when it is asked for

        assert isinstance(function, FunctionType) and compiler_args["fullgraph"]
        self._function, self._compiled = function, torch.compile(function, **compiler_args)
        self._argument = function.__code__.co_varnames[0]
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        self._free = {name: cell.cell_contents for name, cell in cells}
        self._torch: Any = eval_frame
        self._shows_guards = hasattr(eval_frame, "_debug_get_cache_entry_list") and hasattr(eval_frame, "_stance")
        self._made: list[tuple[Any, Callable[[Any], Any]]] = []

    def __call__(self, argument: Any) -> Any:
        if not self._shows_guards or self._torch._stance.stance != "default":  # somebody has said how, or not to
            return self._compiled(argument)
        seen = {self._argument: argument, **self._free}
        for guards, call in self._made:
            if guards.cache_entry is not None and guards.check(seen):  # None once something guarded is gone
                return call(argument)
        result = self._compiled(argument)
        self._learn(seen)
        return result

    def _learn(self, seen: dict[str, Any]) -> None:
        """Take in what has just been used: torch has that in front."""
        self._made = [(guards, call) for guards, call in self._made if guards.cache_entry is not None]
        for entry in self._torch._debug_get_cache_entry_list(self._function.__code__)[:1]:
            guards = entry.guard_manager
            is_known = any(guards is each for each, _ in self._made)
            if not is_known and getattr(guards, "cache_entry", None) is not None and guards.check(seen):
                closure, name = self._function.__closure__, self._function.__name__
                call = FunctionType(entry.code, self._function.__globals__, name, None, closure)
                self._made.insert(0, (guards, call))
