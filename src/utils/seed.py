"""Random number generators: seeding, keeping and restoring their states.

Three global streams exist in a training process (python, numpy, torch), plus one per GPU. The model draws from
them (dropout, initialisation); data are read under streams of their own, see `forked_rng`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch

MADE_AT_ONCE = 64
"""Seeds that are counted up."""


def seed_everything(seed: int) -> None:
    """Seed python, numpy and torch (all devices) with `seed`, 0 to 2**32 - 1."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def mix_seed(*parts: int) -> int:
    """Return one 32-bit seed made of several numbers, such that neighbours give unrelated streams.

    It is the first word of `numpy.random.SeedSequence(parts)`, in plain Python for up to four numbers of 32 bits: NumPy
    needs arrays and contexts for it.
    """
    if not _are_words(parts):
        return int(np.random.SeedSequence(parts).generate_state(1)[0])
    return int(_mixed(parts))


def counted_seed(*parts: int) -> int:
    """Return `mix_seed(*parts)`, where the last part counts up as epochs do.

    Many are made at once, as arrays: one by itself takes as long as the update of a small model.
    """
    block, place = divmod(parts[-1], MADE_AT_ONCE)
    return _counted_seeds(parts[:-1], block)[place]


@lru_cache(maxsize=16)
def _counted_seeds(parts: tuple[int, ...], block: int) -> list[int]:
    numbers = range(block * MADE_AT_ONCE, (block + 1) * MADE_AT_ONCE)
    if not _are_words((*parts, *numbers[-1:])):
        return [mix_seed(*parts, number) for number in numbers]
    seeds: list[int] = _mixed((*parts, np.array(numbers, np.uint64))).tolist()
    return seeds


def _are_words(parts: tuple[int, ...]) -> bool:
    return 0 < len(parts) <= len(_POOL) and min(parts) >= 0 and max(parts) <= _MASK


def _mixed(parts: tuple[Any, ...]) -> Any:
    """Return the seed of up to four numbers of 32 bits; any of them may be an array of such."""
    mask = _MASK
    pool: list[Any] = []
    for part, (before, after) in zip((*parts, 0, 0, 0, 0), _POOL, strict=False):
        value = (part ^ before) * after & mask
        pool.append(value ^ value >> 16)
    for source, target, before, after in _MIXES:
        value = (pool[source] ^ before) * after & mask
        value = 0xCA01F9DD * pool[target] - 0x4973F715 * (value ^ value >> 16) & mask
        pool[target] = value ^ value >> 16
    value = (pool[0] ^ 0x8B51F9DD) * (0x8B51F9DD * 0x58F38DED & _MASK) & mask
    return value ^ value >> 16


_MASK = 0xFFFFFFFF
_CONSTANTS = [0x43B0D7E5 * pow(0x931E8875, power, 1 << 32) & _MASK for power in range(17)]
_PAIRS = list(pairwise(_CONSTANTS))
_POOL = _PAIRS[:4]
_MIXES = [
    (source, target, *pair)
    for (source, target), pair in zip(((s, t) for s in range(4) for t in range(4) if s != t), _PAIRS[4:], strict=True)
    if source == 0 or target == 0 or target > source  # the others no longer reach the first word
]


def rng_state() -> dict[str, Any]:
    """Return the states of all global streams as tensors and plain data, fit for a checkpoint."""
    version, words, gauss_next = random.getstate()
    _, keys, position, has_gauss, cached_gauss = np.random.get_state(legacy=True)
    return {
        "python": {"version": version, "words": torch.tensor(words, dtype=torch.int64), "gauss_next": gauss_next},
        "numpy": {
            "keys": torch.from_numpy(np.asarray(keys).astype(np.int64)),  # uint32 has no safe torch twin
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached_gauss": float(cached_gauss),
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],  # type: ignore[no-untyped-call]
    }


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Put all global streams back to where `rng_state` saw them.

    GPU streams are restored as far as this machine has the GPUs.
    """
    python, numpy_state = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss_next"]))
    keys = numpy_state["keys"].numpy().astype(np.uint32)
    np.random.set_state(
        ("MT19937", keys, numpy_state["position"], numpy_state["has_gauss"], numpy_state["cached_gauss"])
    )
    torch.set_rng_state(state["torch"].cpu())
    if torch.cuda.is_available():
        for index, cuda_state in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(cuda_state.cpu(), index)


@contextmanager
def forked_rng(seed: int | None = None) -> Iterator[None]:
    """Let the block draw from host streams of its own; the global ones then go on as if it had not run."""
    python_state, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        if seed is not None:
            seed_host(seed)
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)


def seed_host(seed: int) -> None:
    """Seed python, numpy and torch on the host only: cheap enough to be done for every sample."""
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
