"""Events of numbers for TensorBoard, packed by hand: runs of short epochs have thousands a second.

Events of the same names have the same bytes, but for time, step and numbers. Which field is which is said by
`event.proto` and `summary.proto` of TensorBoard.
"""

from __future__ import annotations

import ctypes
import struct
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import lru_cache

_TIME = struct.Struct("<cd")


@lru_cache(maxsize=4096)
def part_and_tag(name: str) -> tuple[str, str]:
    """Folder and chart of a value: `val/loss` is `loss` in `val`; what belongs to no part is shown with `train`."""
    part, _, tag = name.partition("/")
    if tag and (part in ("train", "val", "test") or part.startswith(("val_", "test_"))):
        return part, tag
    return "train", name


class ScalarEvents:
    """Packs numbers that bear these names, as one event for each part."""

    def __init__(self, names: Sequence[str]) -> None:
        parts: dict[str, tuple[list[int], list[bytes]]] = defaultdict(lambda: ([], []))
        for place, (part, tag) in enumerate(map(part_and_tag, names)):
            content = _field(1, tag.encode()) + b"\x15"  # the tag, and the key of a float of four bytes
            parts[part][0].append(place)
            parts[part][1].append(b"\x0a" + _varint(len(content) + 4) + content)
        self._parts = [(part, places, *_with_gaps(texts)) for part, (places, texts) in parts.items()]

    def pack(self, at: float, step: int, numbers: Sequence[float]) -> Iterator[tuple[str, bytes]]:
        """Yield the event of each part.

        Args:
            at: Seconds since 1970.
            step: Not negative.
            numbers: In the order of the names.
        """
        head = _TIME.pack(b"\x09", at) + b"\x10" + _varint(step)
        for part, places, form, cells in self._parts:
            cells[1::2] = [numbers[place] for place in places]
            try:
                yield part, head + form.pack(*cells)
            except OverflowError:  # beyond what four bytes can say
                cells[1::2] = [ctypes.c_float(numbers[place]).value for place in places]
                yield part, head + form.pack(*cells)


def _with_gaps(texts: list[bytes]) -> tuple[struct.Struct, list[object]]:
    """Return a summary as a form with four bytes behind each text, and what is filled into it: every other cell."""
    texts[0] = b"\x2a" + _varint(sum(map(len, texts)) + 4 * len(texts)) + texts[0]
    form = struct.Struct("<" + "".join(f"{len(text)}sf" for text in texts))
    return form, [cell for text in texts for cell in (text, 0.0)]


def _field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    groups = []
    while number > 127:
        groups.append(number & 127 | 128)
        number >>= 7
    return bytes([*groups, number])
