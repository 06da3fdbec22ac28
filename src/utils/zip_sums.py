"""Filling the checksums into a zip archive whose writer left them out."""

from __future__ import annotations

import zlib
from functools import lru_cache
from pathlib import Path
from struct import unpack_from
from threading import Event

from src.utils.direct_file import DirectFile

HEADER = b"PK\x03\x04\0\0\x08\x08" + bytes(18)
"""How the header of a record begins that is stored, with sum and sizes behind its data; what follows varies."""
SUM, LISTING = b"PK\x07\x08", b"PK\x01\x02"
"""How begins what stands behind the data, and each entry of the list at the end."""
SUMMED_TWICE_BYTES = 1 << 14
"""For less it is quicker than to join sums."""
HEADER_BYTES, ENTRY_BYTES, HAS_SUM_BEHIND = 30, 46, 8


class SummedZip(DirectFile):
    """A zip archive whose writer (torch) left the CRC-32 of each record at 0; it is filled in, at no second look.

    Expected is what torch passes on: for each record its header, name and padding, data, and what stands behind; at
    last the list of all in one piece. Of an archive passed on in another way the sums stay 0.
    """

    def __init__(self, path: Path, give_up: Event | None = None) -> None:
        super().__init__(path, give_up)
        self._sums: list[int] = []
        self._name_bytes = 0
        """Still to come, of the name and padding of a record."""
        self._data: tuple[int, int] | None = None
        """Sum and size so far of a record's data."""

    def write(self, data: bytes | memoryview) -> int:
        """Take all of `data`, one piece of the archive."""
        data = memoryview(data).cast("B")
        start = bytes(data[:HEADER_BYTES])
        if self._name_bytes:
            self._name_bytes = max(0, self._name_bytes - len(data))
        elif self._data is None and start[:26] == HEADER and len(data) == HEADER_BYTES:
            self._name_bytes, self._data = sum(unpack_from("<HH", start, 26)), (0, 0)
        elif self._data is None:  # a record without data, which has another header, or the end
            data = memoryview(self._listing(bytearray(data))) if start[:4] == LISTING else data
        elif filled := self._filled_in(bytes(data[:25])):
            data = memoryview(filled)
        else:
            return self._write_data(data)
        return super().write(data)

    def _write_data(self, data: memoryview) -> int:
        assert self._data is not None
        data_sum, num_bytes = self._data
        if len(data) <= SUMMED_TWICE_BYTES:
            self._data = zlib.crc32(data, data_sum), num_bytes + len(data)
            return super().write(data)
        before, self.checksum = self.checksum, 0
        size = super().write(data)
        self._data = join_sums(data_sum, self.checksum, size), num_bytes + size
        self.checksum = join_sums(before, self.checksum, size)
        return size

    def _filled_in(self, behind: bytes) -> bytes | None:
        """Return what stands behind a record with its sum, or None when this is still data."""
        assert self._data is not None
        size, sizes = self._data[1], {16: "II", 24: "QQ"}.get(len(behind))
        if not (size and sizes and behind[:4] == SUM and unpack_from(f"<I{sizes}", behind, 4) == (0, size, size)):
            return None
        (data_sum, _), self._data = self._data, None
        self._sums.append(data_sum)
        return behind[:4] + data_sum.to_bytes(4, "little") + behind[8:]

    def _listing(self, listing: bytearray) -> bytearray:
        """Return the list with the sums of all records that have one behind them."""
        sums, place = iter(self._sums), 0
        while listing[place : place + 4] == LISTING and place + ENTRY_BYTES <= len(listing):
            if listing[place + 8] & HAS_SUM_BEHIND:
                listing[place + 16 : place + 20] = next(sums, 0).to_bytes(4, "little")
            place += ENTRY_BYTES + sum(unpack_from("<HHH", listing, place + 28))
        return listing


POLYNOMIAL = 0xEDB88320
"""That of CRC-32, the lowest power in the highest bit."""


def join_sums(first: int, second: int, second_bytes: int) -> int:
    """Return the CRC-32 of two pieces one after the other, from those of each, as zlib's `crc32_combine` does."""
    return _product(_power(8 * second_bytes), first) ^ second


@lru_cache(maxsize=1024)
def _power(exponent: int) -> int:
    """Return x to the `exponent`, modulo the polynomial."""
    result, square = 1 << 31, 1 << 30
    while exponent:
        if exponent & 1:
            result = _product(square, result)
        square = _product(square, square)
        exponent >>= 1
    return result


def _product(one: int, other: int) -> int:
    """Return the product of two polynomials of bits, modulo the polynomial."""
    result = 0
    for bit in range(31, -1, -1):
        if one >> bit & 1:
            result ^= other
        other = other >> 1 ^ (POLYNOMIAL if other & 1 else 0)
    return result
