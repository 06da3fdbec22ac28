"""A random order of many rows that is computed where it is read, and never held in memory."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from src.utils.seed import mix_seed

NUM_ROUNDS = 6
"""Even, so that the pair ends as it began."""
BLOCK_ROWS = 16_384
"""Computed together: small batches then cost 20 nanoseconds a row."""
Words = np.ndarray[Any, np.dtype[np.uint64]]


class Permutation:
    """A permutation of 0, 1, ..., `num_rows` - 1; `permutation[first:last]` gives those places, int64.

    A Feistel network on pairs (left, right) with left * right just above `num_rows`, as in Black and Rogaway, "Ciphers
    with arbitrary finite domains", 2002, section 4. Numbers that fall out of range are sent through again until they
    are in it, which few need. Any place costs the same, and the whole thing is two numbers and six keys.

    Args:
        num_rows: Below 2**62.
        seed: Decides the order.
    """

    def __init__(self, num_rows: int, seed: int) -> None:
        self.num_rows = num_rows
        root = math.isqrt(num_rows - 1) + 1
        self._sizes = (np.uint64(root), np.uint64(-(-num_rows // root)))
        self._keys = [np.uint64(mix_seed(seed, number) << 32 | mix_seed(number, seed)) for number in range(NUM_ROUNDS)]

        self._block, self._first = torch.empty(0, dtype=torch.int64), 0

    def __getitem__(self, places: slice) -> Tensor:
        first, last = places.start - self._first, places.stop - self._first
        if not 0 <= first <= last <= len(self._block):
            self._first = places.start
            self._block = self._compute(places.start, max(places.stop, places.start + BLOCK_ROWS))
            first, last = 0, places.stop - places.start
        return self._block[first:last]

    def _compute(self, first: int, last: int) -> Tensor:
        numbers = self._sent_through(np.arange(first, min(last, self.num_rows), dtype=np.uint64))
        while (outside := numbers >= self.num_rows).any():
            numbers[outside] = self._sent_through(numbers[outside])
        return torch.from_numpy(numbers.view(np.int64))

    def _sent_through(self, numbers: Words) -> Words:
        size, other = self._sizes
        right, left = np.divmod(numbers, size)
        for key in self._keys:  # left is below size and right below other; each round changes their places
            left, right = right, (left + _mixed(right, key)) % size
            size, other = other, size
        return left + right * size


def _mixed(words: Words, key: np.uint64) -> Words:
    """Return 31 bits of each word and the key that look random: the finalizer of SplitMix64."""
    words = (words ^ key) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ words >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return words >> np.uint64(33)
