"""Which device a run uses."""

from __future__ import annotations

import logging
import os
from typing import Any

import torch
from torch import Tensor

from src.utils.errors import ConfigError
from src.utils.nested import with_parts
from src.utils.processes.ranks import ALONE, Ranks
from src.utils.torch_version import check_torch

log = logging.getLogger(__name__)


def find_device(name: str, ranks: Ranks = ALONE) -> torch.device:
    """Return the device called `name`: `auto`, `cpu`, `mps`, `cuda`, `cuda:1`, or a GPU number such as `0`.

    Of several, `0,1`, each of the `ranks` gets its own; one process alone gets the first.

    Raises:
        ConfigError: There is no such device on this machine.
    """
    check_torch(torch.__version__)
    names = split_devices(name)
    if ranks.local_rank >= len(names) > 1:
        raise ConfigError(f"device: {name}: {len(names)} devices, and there is a process number {ranks.local_rank + 1}")
    name = names[ranks.local_rank if len(names) > 1 else 0]
    if ranks.local_rank > 0 and len(names) == 1 and (name.isdigit() or name.startswith("cuda:")):
        raise ConfigError(f"trainer.device: {name}: several processes need a GPU each; use cuda, or a list such as 0,1")
    if not ranks.is_alone and name in ("auto", "cuda") and torch.cuda.is_available():
        name = f"cuda:{ranks.local_rank}"
    if name == "auto":
        name = next((each for each in ("cuda", "mps") if getattr(torch, each).is_available()), "cpu")
        why = "torch finds no GPU" if name == "cpu" else "the first that torch finds"
        log.debug("device %s, %s (trainer.device: auto); torch %s", name, why, torch.__version__)
        return torch.device(name)
    if name.isdigit():
        name = f"cuda:{name}"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(
            f"trainer.device: unknown device {name!r}; use auto, cpu, cuda, cuda:0, mps or a GPU number"
        ) from None
    if device.type not in ("cpu", "cuda", "mps"):
        raise ConfigError(f"trainer.device: unknown device {name!r}; use auto, cpu, cuda, cuda:0, mps or a GPU number")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ConfigError(
                f"trainer.device: {name}: no CUDA device for this torch ({torch.__version__}); use cpu or auto"
            )
        if (device.index or 0) >= torch.cuda.device_count():
            raise ConfigError(f"trainer.device: {name}: found {torch.cuda.device_count()} GPU(s), numbered from 0")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(f"trainer.device: mps: not available with this torch ({torch.__version__}); use cpu or auto")
    log.debug("device %s (trainer.device); torch %s", device, torch.__version__)
    return device


def split_devices(names: str) -> list[str]:
    """Return the devices in a list such as `0,1` or `cpu,cpu`; a process trains on each."""
    return [name.strip() for name in names.split(",")]


def to_device(batch: Any, device: torch.device) -> Any:
    """Return `batch` with every tensor in it on `device`; dicts, lists, (named) tuples, dataclasses keep their shape.

    Anything else that has a `to` method (a graph batch, say) is moved by it; text and numbers pass through.
    """
    if device.type == "cpu":  # batches are made on the host
        return batch
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if hasattr(batch, "to"):
        return batch.to(device)
    return with_parts(batch, lambda part: to_device(part, device))


def use_threads(num_threads: int | None) -> None:
    """Let each operation on the CPU use so many threads; None leaves it as it is."""
    if num_threads is not None:
        torch.set_num_threads(num_threads)


def use_tf32(wanted: bool | None) -> None:
    """Let a GPU round what it multiplies, matrices and convolutions alike, to TF32; None leaves it as it is."""
    if wanted is not None:
        torch.set_float32_matmul_precision("high" if wanted else "highest")
        torch.backends.cudnn.allow_tf32 = wanted


def make_deterministic() -> None:
    """Allow only algorithms that give the same bits every time, on CPU and GPU.

    An operation that has none raises a `RuntimeError` that names it. See
    https://pytorch.org/docs/stable/notes/randomness.html
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def load_compiler() -> None:
    """Import torch's compiler: the first optimizer would, used or not, where a second's imports cost more."""
    import torch._dynamo  # noqa: F401
