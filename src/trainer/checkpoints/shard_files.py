"""Reading checkpoints whose large tensors lie in parts beside them, written by torch.distributed.checkpoint.

`step-00000050.pt` then names the folder `step-00000050-1f3a.shards`, the sum of every file in it, and which bytes of
which file make which part of which tensor. Torch's own index there, `.metadata`, is for other programs: reading it
runs whatever code it holds, so nothing here does.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from src.trainer.checkpoints.plain import check_unpacked
from src.utils.direct_file import file_checksum
from src.utils.errors import CheckpointError, first_line
from src.utils.nested import with_parts
from src.utils.paths import shown_path

RECORD = "shards"
"""Key of a checkpoint: what is known about its parts."""
PLACE = "__shard__"
"""Key of a mapping that stands in the place of a tensor, and holds its name."""


def put_together(state: dict[str, Any], beside: Path) -> dict[str, Any]:
    """Return the content of a checkpoint with its tensors in their places.

    Args:
        state: As read from its file.
        beside: Folder of that file.

    Raises:
        CheckpointError: A part is missing, or is not as it was saved.
    """
    where = shown_path(beside)
    try:
        record = state.pop(RECORD)
        folder = beside / Path(record["folder"]).name
        where = shown_path(folder)
        if not folder.is_dir():
            raise CheckpointError(f"{where}: is missing; it holds the weights and belongs beside the checkpoint")
        files = check_parts(folder, record["files"])
        held = sum(num_bytes for num_bytes, _ in record["files"].values())
        if sum(math.prod(each["size"]) * each["dtype"].itemsize for each in record["tensors"].values()) > held:
            raise CheckpointError(f"{where}: claims to hold more bytes than it has")
        tensors = {name: _read_tensor(name, each, files, where) for name, each in record["tensors"].items()}
        found: dict[str, Any] = _fill(state, tensors)
    except CheckpointError:
        raise
    except Exception as error:  # a changed file may fail in any way
        raise CheckpointError(f"{where}: is damaged ({first_line(error)})") from error
    return found


def check_parts(folder: Path, files: Mapping[str, Any]) -> dict[str, Path]:
    """Return the files of a folder by name after comparing each with its sum.

    Raises:
        CheckpointError: One is missing or differs.
    """
    found = {name: folder / Path(name).name for name in files}
    for name, (num_bytes, checksum) in files.items():
        path = found[name]
        if not path.is_file() or path.is_symlink():
            raise CheckpointError(f"{shown_path(path)}: is missing")
        if path.stat().st_size != num_bytes:
            raise CheckpointError(f"{shown_path(path)}: has {path.stat().st_size} bytes, {num_bytes} were saved")
        if file_checksum(path) != checksum:
            raise CheckpointError(f"{shown_path(path)}: checksum differs, the file was damaged after it was saved")
    return found


def _read_tensor(name: str, facts: Mapping[str, Any], files: Mapping[str, Path], where: str) -> Tensor:
    tensor = torch.empty(facts["size"], dtype=facts["dtype"])
    num_read = 0
    for chunk in facts["chunks"]:
        with files[chunk["file"]].open("rb") as file:
            file.seek(chunk["start"])
            data = io.BytesIO(file.read(chunk["length"]))
        with zipfile.ZipFile(data) as archive:
            check_unpacked(archive, where)
        data.seek(0)
        part = torch.load(data, map_location="cpu", weights_only=True)
        if list(part.shape) != list(chunk["sizes"]) or part.dtype != tensor.dtype:
            raise CheckpointError(f"{where}: a part of {name} is not what was saved")
        target = tensor
        for dimension, (offset, size) in enumerate(zip(chunk["offsets"], chunk["sizes"], strict=True)):
            target = target.narrow(dimension, offset, size)
        target.copy_(part)
        num_read += part.numel()
    if num_read != tensor.numel():
        raise CheckpointError(f"{where}: a part of {name} is missing")
    return tensor


def _fill(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, dict) and value.keys() == {PLACE}:
        return tensors[value[PLACE]]
    return with_parts(value, lambda part: _fill(part, tensors))
