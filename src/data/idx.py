"""Images and labels in IDX files: MNIST, Fashion-MNIST, KMNIST, and whatever else comes in that format.

Format: http://yann.lecun.com/exdb/mnist/ -- two zero bytes, the type of the values, the number of axes,
the size of each axis as big-endian uint32, then the values.
"""

from __future__ import annotations

import gzip
import math
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from src.data.download import download
from src.data.packed import DAMAGED, too_large, unpacked_limit
from src.utils.errors import DataError
from src.utils.paths import project_path, shown_path

MNIST_MIRRORS = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/")
MNIST_MD5 = {
    "train-images-idx3-ubyte": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte": "ec29112dd5afa0611ce80d1b7f02629c",
}
UNSIGNED_BYTE = 0x08
CHUNK_BYTES = 1 << 20


class IDX(Dataset[tuple[Tensor, Tensor]]):
    """A folder of IDX files under MNIST's four names, with or without `.gz`.

    A sample is `(image, target)`: float32 [1, H, W] in 0..1, and int64 []. Images are kept as bytes.

    Args:
        folder: Where the files are, relative to the project. Only the two of the wanted part need be there.
        part: `train` (train-*) or `test` (t10k-*).
        download: Fetch what is missing: MNIST's own files, checked against their checksums.
        mirrors: Addresses to fetch from, in turn.

    Raises:
        DataError: A file is missing, damaged, or does not fit the other one.
    """

    is_image = True

    def __init__(
        self,
        folder: str,
        part: Literal["train", "test"] = "train",
        download: bool = True,
        mirrors: Sequence[str] = MNIST_MIRRORS,
    ) -> None:
        if part not in ("train", "test"):
            raise DataError(f"IDX part: {part!r}; use train or test")
        prefix = "train" if part == "train" else "t10k"
        names = [f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"]
        images_path, labels_path = _find_files(project_path(folder), names, mirrors if download else ())
        self.images = torch.from_numpy(read_idx(images_path, num_axes=3)).unsqueeze(1)  # uint8 [N, 1, H, W]
        self.targets = torch.from_numpy(read_idx(labels_path, num_axes=1)).long()
        if len(self.images) != len(self.targets):
            raise DataError(
                f"{images_path}: {len(self.images)} images, but {labels_path.name} has {len(self.targets)} labels"
            )
        self.num_classes = int(self.targets.max()) + 1 if len(self.targets) else 0

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        return self.images[row].float().div_(255), self.targets[row]

    def read_batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return images [N, 1, H, W] and targets [N]."""
        return self.images.index_select(0, rows).float().div_(255), self.targets.index_select(0, rows)


def _find_files(folder: Path, names: list[str], mirrors: Sequence[str]) -> list[Path]:
    found = {name: path for name in names for path in (folder / name, folder / f"{name}.gz") if path.is_file()}
    missing = [name for name in names if name not in found]
    what = f"{shown_path(folder)}: no {', '.join(f'{name}[.gz]' for name in missing)}"
    if missing and not mirrors:
        raise DataError(f"{what}; put the files there, or let them be fetched with download: true")
    for name in missing:
        try:
            found[name] = download(f"{name}.gz", mirrors, folder, MNIST_MD5[name], max_bytes=1 << 26)
        except DataError as error:
            raise DataError(f"{what}, and {name}.gz {error}; fetch the files elsewhere and put them there") from error
    return [found[name] for name in names]


def read_idx(path: Path, num_axes: int) -> np.ndarray:
    """Return the values of an IDX file of unsigned bytes, uint8 with `num_axes` axes.

    Never takes more memory than a file of this size can rightly hold, whatever its header claims.

    Raises:
        DataError: This is not such a file, or it is cut short, too long, or damaged.
    """
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            limit = unpacked_limit(path) if packed else path.stat().st_size
            file: BinaryIO = gzip.GzipFile(fileobj=raw) if packed else raw  # type: ignore[assignment]
            shape = _read_shape(path, file, num_axes)
            wanted = math.prod(shape)
            if wanted > limit and packed:
                raise too_large(path)
            if wanted > limit:
                raise DataError(f"{path}: claims {_shown(shape)} values, more than a file of its size can hold")
            values = _read_at_most(file, wanted + 1)
    except DAMAGED as error:
        raise DataError(f"{path}: cannot be read: {error}; fetch or copy it again") from error
    if len(values) != wanted:
        fate = "is cut short" if len(values) < wanted else "goes on behind its end"
        raise DataError(f"{path}: {fate}: its header says {_shown(shape)}, which is {wanted} bytes; copy it again")
    return np.frombuffer(values, dtype=np.uint8).reshape(shape)


def _read_shape(path: Path, file: BinaryIO, num_axes: int) -> tuple[int, ...]:
    header = file.read(4 + 4 * num_axes)
    if len(header) < 4 or header[:2] != b"\0\0":
        raise DataError(f"{path}: is not an IDX file: starts with {header[:4].hex(' ') or 'nothing'}, not 00 00 08 ..")
    if header[2] != UNSIGNED_BYTE or header[3] != num_axes:
        raise DataError(
            f"{path}: IDX values of type {header[2]:#04x} with {header[3]} axes; "
            f"expected unsigned bytes ({UNSIGNED_BYTE:#04x}) with {num_axes}"
        )
    if len(header) < 4 + 4 * num_axes:
        raise DataError(f"{path}: is cut short within its header; copy it again")
    return struct.unpack(f">{num_axes}I", header[4:])


def _read_at_most(file: BinaryIO, count: int) -> bytearray:
    values = bytearray()
    while len(values) < count and (chunk := file.read(min(CHUNK_BYTES, count - len(values)))):
        values += chunk
    return values


def _shown(shape: tuple[int, ...]) -> str:
    return " x ".join(str(size) for size in shape)
