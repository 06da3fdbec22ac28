"""Records as event files hold them: a length, its checksum, the bytes, their checksum (CRC-32C, masked as TFRecord's).

A checksum is a hundred turns of a loop, which takes longer than making the event. Events of one length go through that
loop together, as arrays: in a run of short epochs hundreds are written at once.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

WORTH_ARRAYS = 50
"""Records of one length, from which on arrays are faster than numbers one by one."""


def _table() -> list[int]:
    values = list(range(256))
    for _ in range(8):
        values = [value >> 1 ^ (0x82F63B78 if value & 1 else 0) for value in values]
    return values


_TABLE = _table()
_TABLE_ARRAY = np.array(_TABLE, np.uint32)


def as_records(contents: Sequence[bytes]) -> bytes:
    """Return a record of each of `contents`, one after the other."""
    parts: list[bytes] = []
    for content, checksum in zip(contents, checksums(contents), strict=True):
        parts += (_head(len(content)), content, _masked(checksum))
    return b"".join(parts)


def checksums(contents: Sequence[bytes]) -> list[int]:
    """Return the CRC-32C of each of `contents`."""
    places = defaultdict(list)
    for place, content in enumerate(contents):
        places[len(content)].append(place)
    found = np.empty(len(contents), np.uint32)
    for length, alike in places.items():
        if len(alike) < WORTH_ARRAYS:
            found[alike] = [_through(contents[place], _TABLE, 0xFFFFFFFF) for place in alike]
        else:
            rows = np.frombuffer(b"".join(contents[place] for place in alike), np.uint8).reshape(len(alike), length)
            found[alike] = _through(
                np.ascontiguousarray(rows.T), _TABLE_ARRAY, np.full(len(alike), 0xFFFFFFFF, np.uint32)
            )
    return [int(value) ^ 0xFFFFFFFF for value in found.tolist()]


def _through(values: Iterable[Any], table: Any, state: Any) -> Any:
    """Return what bytes make of `state`: numbers, or arrays of all first bytes, all second ones, and so on."""
    for value in values:
        state = table[(state ^ value) & 0xFF] ^ state >> 8
    return state


def _masked(checksum: int) -> bytes:
    return struct.pack("<I", ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF)


@lru_cache(maxsize=1024)
def _head(length: int) -> bytes:
    packed = struct.pack("<Q", length)
    return packed + _masked(checksums([packed])[0])
