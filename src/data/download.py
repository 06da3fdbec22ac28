"""Fetching a public file once, whole and checked, or not at all."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO
from urllib.request import urlopen

from src.utils.errors import DataError
from src.utils.whole_file import whole_file

TIMEOUT_S = 20.0
CHUNK_BYTES = 1 << 20


def download(name: str, mirrors: Sequence[str], folder: Path, md5: str, max_bytes: int) -> Path:
    """Return the path of `folder/name` after fetching it from the first mirror that has it.

    The file gets its name once it is whole and its checksum right; until then nothing of that name exists.

    Args:
        name: File name, appended to each mirror's address.
        mirrors: Addresses that end in a slash, tried in turn.
        folder: Is made if need be.
        md5: Checksum of the right file, 32 hexadecimal digits.
        max_bytes: A larger answer is refused.

    Raises:
        DataError: No mirror gave the right file; says what each did. No empty folder is left.
    """
    failures = []
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    for mirror in mirrors:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with whole_file(folder / name, "wb") as file:
                _fetch(mirror + name, file, md5, max_bytes)
            logging.getLogger(__name__).info("downloaded %s to %s", mirror + name, folder)
            return folder / name
        except (OSError, ValueError) as error:  # URLError is an OSError, a bad address a ValueError
            failures.append(f"{mirror}: {getattr(error, 'reason', error)}")
    with suppress(OSError):
        for each in made:
            each.rmdir()
    raise DataError(f"cannot be downloaded ({'; '.join(failures)})")


def _fetch(address: str, file: IO[bytes], md5: str, max_bytes: int) -> None:
    if not address.startswith(("https://", "http://")):
        raise ValueError("not an address that begins with https:// or http://")
    digest = hashlib.md5(usedforsecurity=False)
    received = 0
    with urlopen(address, timeout=TIMEOUT_S) as answer:  # no file: address comes here  # nosec B310
        while chunk := answer.read(CHUNK_BYTES):
            received += len(chunk)
            if received > max_bytes:
                raise ValueError(f"answers with more than {max_bytes} bytes")
            digest.update(chunk)
            file.write(chunk)
    if digest.hexdigest() != md5:
        raise ValueError(f"wrong checksum: MD5 {digest.hexdigest()} of {received} bytes, expected {md5}")
