"""Their checkpoints, read so that nothing in them can run.

They hold a pickled config object. Reading goes through the loader for weights, which builds tensors and plain data and
refuses every other name; for the time of one read, the few names below mean the inert stand-ins of this file. The
real classes behind the names are never looked up.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from src.trainer.checkpoints.plain import check_unpacked, why_unreadable
from src.utils.errors import CheckpointError
from src.utils.paths import shown_path

KEYS = ("arch", "epoch", "state_dict", "optimizer", "monitor_best", "config")
"""What one of their checkpoints holds."""


class _Object:
    """Stands for their config object: only keeps what was saved of it."""

    values: Any = None

    def __setstate__(self, state: Any) -> None:
        self.values = state


class _DType:
    """Stands for the type of a NumPy number."""

    def __init__(self, code: str = "", *rest: Any) -> None:
        del rest
        self.code = str(code)

    def __setstate__(self, state: Any) -> None:
        del state  # byte order: every file is read as little-endian


def _path(*parts: str) -> str:
    return "/".join(map(str, parts))


def _encoded(text: str, encoding: str = "latin1") -> bytes:
    del encoding
    return text.encode("latin1")


def _number(dtype: _DType, data: bytes) -> float:
    forms = {"f8": "<d", "f4": "<f", "i8": "<q", "i4": "<i"}
    return struct.unpack(forms[dtype.code], data)[0]  # type: ignore[no-any-return]


STANDINS: list[Any] = [
    *((_Object, f"{home}.ConfigParser") for home in ("parse_config", "utils.parse_config", "base.parse_config")),
    (_Object, "src.compat.their_config.ConfigParser"),
    *((_path, f"pathlib{part}.{kind}Path") for part in ("", "._local") for kind in ("Posix", "Windows", "")),
    *((_path, f"pathlib{part}.Pure{kind}Path") for part in ("", "._local") for kind in ("Posix", "Windows")),
    *((_number, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    (_DType, "numpy.dtype"),
    (_encoded, "_codecs.encode"),
]


def load_theirs(path: Path) -> dict[str, Any]:
    """Return one of their checkpoints, its `config` as plain data and its weights named as the model alone has them.

    Raises:
        CheckpointError: Missing, damaged, no checkpoint of theirs, or it holds something that would have to be run.
    """
    where = shown_path(path)
    if not path.is_file():
        raise CheckpointError(f"{where}: no such checkpoint")
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                check_unpacked(archive, where)
        with torch.serialization.safe_globals(STANDINS):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # a damaged or hostile file may fail in any way
        why = why_unreadable(error)
        raise CheckpointError(f"{where}: refused or damaged, nothing of it was run ({why})") from error
    missing = [key for key in KEYS if key not in state] if isinstance(state, dict) else list(KEYS)
    if missing:
        raise CheckpointError(f"{where}: not a checkpoint of that template: it holds no {', '.join(missing)}")
    weights = {name.removeprefix("module."): value for name, value in state["state_dict"].items()}
    return {**state, "config": _config(state["config"], where), "state_dict": weights}


def _config(value: Any, where: str) -> dict[str, Any]:
    """Return the sections of a config, whichever version of their parser it was saved by."""
    if isinstance(value, _Object):
        held = value.values if isinstance(value.values, Mapping) else {}
        value = held.get("_config", held.get("config"))
    if not isinstance(value, Mapping):
        raise CheckpointError(f"{where}: its config is not readable; name the config with -c")
    return dict(value)
