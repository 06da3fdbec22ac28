"""What a loss is called with: its own signature says so."""

from __future__ import annotations

import inspect
from typing import Any, Literal

Second = Literal["targets", "batch", None]


def second_argument(criterion: Any) -> Second:
    """Return what a loss takes besides the outputs.

    Args:
        criterion: A function, a module, or the class of one.

    Returns:
        None for a loss of one argument, `loss(outputs)`; `batch` where the second is called so: `loss(outputs, batch)`
        gets the whole batch; else `targets`. Options of a loss of outputs alone come after a `*`, or are bound before.
    """
    called = getattr(criterion, "forward", criterion)
    try:
        parameters = list(inspect.signature(called).parameters.values())
    except (TypeError, ValueError):  # some functions written in C tell no signature
        return "targets"
    if isinstance(criterion, type):
        parameters = parameters[1:]  # self
    by_position = [each for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    takes_any = any(each.kind is each.VAR_POSITIONAL for each in parameters)
    if len(by_position) < 2:
        return "targets" if takes_any else None
    return "batch" if by_position[1].name == "batch" else "targets"
