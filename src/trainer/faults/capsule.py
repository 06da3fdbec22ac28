"""Failure capsules: everything that it takes to repeat one step that went wrong, in a file.

A capsule is a checkpoint taken before that step, with the step's batches beside it under `failure`. Like a checkpoint
it holds tensors and plain data only, and is read as one is; `python train.py --replay FILE` repeats the step.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from src.trainer.checkpoints.plain import check_plain
from src.trainer.faults.nonfinite import tensors_in
from src.utils.errors import CheckpointError
from src.utils.whole_file import whole_file

MAX_BYTES = 1 << 30
"""A capsule that would be larger leaves out the optimizer; if that is not enough, it is not written."""
MAX_CAPSULES = 3
"""In one run's folder: a run that skips bad steps writes no more than these."""
LEFT_OUT = ("ema", "guard")
"""Parts of a checkpoint that no step depends on."""
log = logging.getLogger(__name__)


def write_capsule(
    folder: Path | None, state: Mapping[str, Any], failure: Mapping[str, Any], batches: Sequence[Any]
) -> Path | None:
    """Write a capsule and return its path, or None if there is none: a run that fails has worse to tell.

    Args:
        folder: The run's; None writes nothing.
        state: The run before the step.
        failure: What is known about it: `step` and the like, as plain data.
        batches: What the step was made from. Left out if they are neither tensors nor plain data.
    """
    if folder is None:
        return None
    path = folder / f"failure-{failure['step']:08d}.pt"
    if not path.exists() and len(list(folder.glob("failure-*.pt"))) >= MAX_CAPSULES:
        return None
    content = {name: part for name, part in state.items() if name not in LEFT_OUT}
    content["failure"] = {**failure, "batches": _held(batches)}
    if _num_bytes(content) > MAX_BYTES:
        content = {name: part for name, part in content.items() if name.split(".")[0] != "optimizer"}
    if _num_bytes(content) > MAX_BYTES:
        log.warning("no failure capsule is written: it would be larger than %d MiB", MAX_BYTES >> 20)
        return None
    try:
        check_plain(content, "")
        with whole_file(path, "wb") as file:
            torch.save(content, file)
    except (OSError, RuntimeError, CheckpointError) as error:
        log.warning("no failure capsule is written: %s", error)
        return None
    return path


def _held(batches: Sequence[Any]) -> list[Any] | None:
    """Return copies of `batches` on the host that hold nothing else, or None if they cannot be written."""
    copies = [_copied(batch) for batch in batches]
    try:
        check_plain(copies, "batches")
    except CheckpointError:
        return None
    return copies


def _copied(value: Any) -> Any:
    """Return `value` with its tensors copied to the host: a view would bring all that it is a view of."""
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, Mapping):
        return {key: _copied(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_copied, value)) if type(value) in (list, tuple) else [_copied(part) for part in value]
    return value


def _num_bytes(content: Any) -> int:
    return sum(tensor.nbytes for tensor in tensors_in(content))
