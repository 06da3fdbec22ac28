"""What is fuzzed: each target reads bytes as a file, and may raise nothing but what a user is told in a line."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import random
import signal
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import numpy as np
import torch

from src.config.load import load_config
from src.config.mistakes import Mistakes
from src.config.yaml_file import read_text
from src.data.arrays import Arrays
from src.data.idx import read_idx
from src.data.table import Table
from src.trainer.checkpoints.resume import open_checkpoint
from src.trainer.checkpoints.store import FORMAT, CheckpointStore, load_checkpoint, read_manifest
from src.utils.errors import KeelError
from tests.conftest import ROOT

LIMIT_S = 10
MAX_BYTES = 1 << 16
FOLDER = Path(tempfile.mkdtemp(prefix="keel-fuzz-"))


class Hang(Exception):
    """An input took longer than any may."""


def _config(path: Path) -> None:
    load_config(path)


def _override(path: Path) -> None:
    read_text(path.read_bytes().decode(errors="replace"), "command line #1", Mistakes(), positions=False)
    text = path.read_bytes().decode(errors="replace")
    load_config(ROOT / "configs" / "line.yaml", [f"model.args.x={text}", f"name={text}", text])


def _table(path: Path) -> None:
    table = Table(str(path))
    table.fit(torch.arange(len(table)))
    table.read_batch(torch.arange(min(4, len(table))))


def _arrays(path: Path) -> None:
    data = Arrays(str(path))
    if len(data):
        data.read_batch(torch.tensor([0]))


def _manifest(path: Path) -> None:
    read_manifest(path)
    with contextlib.suppress(FileNotFoundError):
        (path.parent / "checkpoints").mkdir(exist_ok=True)
    manifest = path.parent / "checkpoints" / "step-00000001.json"
    manifest.write_bytes(path.read_bytes())
    manifest.with_suffix(".pt").write_bytes(seeds("checkpoint")[0])
    store = CheckpointStore(manifest.parent)
    try:
        store.newest()
    finally:
        store.recover()


READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "config": ("x.yaml", _config),
    "json": ("x.json", _config),
    "override": ("x.txt", _override),
    "csv": ("x.csv", _table),
    "idx": ("images", lambda path: read_idx(path, 3)),
    "npy": ("x.npy", _arrays),
    "npz": ("x.npz", _arrays),
    "checkpoint": ("x.pt", load_checkpoint),
    "capsule": ("failure-00000001.pt", open_checkpoint),
    "manifest": ("manifest.json", _manifest),
}


def run(target: str, data: bytes) -> None:
    """Let a target read `data`.

    Raises:
        Exception: Anything that is no `KeelError`: a fault of ours. `Hang` when it takes too long.
    """
    name, read = READERS[target]
    path = FOLDER / f"{os.getpid()}-{target}" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data[:MAX_BYTES])
    with _limited_time(), contextlib.suppress(KeelError):
        read(path)


@contextlib.contextmanager
def _limited_time() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise Hang(f"takes longer than {LIMIT_S} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def seeds(target: str) -> list[bytes]:
    """Return good inputs to start from."""
    idx = b"\0\0\x08\x03" + struct.pack(">3I", 2, 3, 4) + bytes(range(24))
    made: dict[str, Callable[[], list[bytes]]] = {
        "config": lambda: [path.read_bytes() for path in sorted((ROOT / "configs").glob("*.yaml"))],
        "json": lambda: [
            b'{"name": "x", "seed": 1, "model": {"type": "mlp.MLP", "args": {"hidden": [4]}}, "data": {}}'
        ],
        "override": lambda: [b"3", b"[1, 2]", b"{type: a.B, args: {c: 1e-3}}", b"${trainer.epochs * 2}", b"&a [*a]"],
        "csv": lambda: [b'age,name,label\n1,"a,b",0\n2.5,x,1\n,y,1\n', b"a;b\n1;2\n"],
        "idx": lambda: [idx, gzip.compress(idx)],
        "npy": lambda: [_saved(lambda file: np.save(file, np.arange(12.0).reshape(4, 3)))],
        "npz": lambda: [_saved(lambda file: np.savez_compressed(file, x=np.zeros((4, 3))))],
        "checkpoint": lambda: [(ROOT / "tests" / "formats" / f"format{FORMAT}.pt").read_bytes()],
        "capsule": lambda: [(ROOT / "tests" / "formats" / f"format{FORMAT}.pt").read_bytes()],
        "manifest": lambda: [json.dumps({"format": 1, "step": 1, "bytes": 5, "crc32": 7, "is_best": True}).encode()],
    }
    return made[target]()


def _saved(save: Callable[[io.BytesIO], object]) -> bytes:
    file = io.BytesIO()
    save(file)
    return file.getvalue()


TOKENS = [b"", b"\0", b"\xff" * 4, b"\x80", b"-1", b"1e999", b"9" * 400, b"[" * 60, b"{", b"&a ", b"*a", b"${", b"}"]
TOKENS += [b"!!", b"\n", b"\t", b": ", b"- ", b'"', b"'", b"---\n", b"<<: ", b"\xe2\x80\xae", b"null", b"true", b","]
TOKENS += [b"PK\x03\x04", b"\x80\x02"]


def mutated(data: bytes, draw: random.Random) -> bytes:
    """Return `data` with a few bytes flipped, cut out, doubled, or replaced by what is awkward in some format."""
    result = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        start = draw.randrange(len(result) + 1)
        end = min(len(result), start + draw.choice([1, 1, 4, 30]))
        kind = draw.randrange(5)
        if kind == 0 and start < len(result):
            result[start] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del result[start:end]
        elif kind == 2:
            result[start:start] = result[start:end]
        elif kind == 3:
            result[start:start] = draw.choice(TOKENS)
        else:
            result[start:end] = draw.choice(TOKENS)
    return bytes(result)
