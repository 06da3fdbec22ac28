"""Data that live on the device give the batches that data on the host give. On the CPU, but for the last test."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from src.data import frame
from src.data.arrays import Arrays
from src.data.digits import Digits
from src.data.loading import resident
from src.data.loading.loader import Loader
from src.data.loading.resident import ResidentPart
from src.data.parts.part import Part
from src.data.settings import LoaderSettings
from src.data.table import Table
from src.data.tables import column_cache
from src.data.transforms import CenterCrop, Normalize, RandomCrop
from src.utils.errors import ConfigError

CPU = torch.device("cpu")


def table(folder: Path, cache: bool | None = None) -> Table:
    lines = ["size,kind,price", *(f"{row},{'ab'[row % 2]},{3 * row}.5" for row in range(40))]
    (folder / "t.csv").write_text("\n".join(lines))
    made = Table(str(folder / "t.csv"), target="price", scale_inputs="StandardScaler", cache=cache)
    made.fit(torch.arange(20))
    return made


PARTS: dict[str, Callable[[Path], Part]] = {
    "tensors": lambda _: Part("train", TensorDataset(torch.randn(40, 3), torch.arange(40))),
    "arrays": lambda _: Part("train", Arrays(np.arange(80, dtype=np.uint8).reshape(40, 2), dtype="float32")),
    "images": lambda _: Part("train", Digits(), torch.arange(40) * 3, [Normalize(0.1, 0.3), CenterCrop(6)]),
    "table": lambda folder: Part("train", table(folder), torch.arange(39, -1, -1)),
}


def make_loader(part: Part, keep_on: torch.device | None = CPU, **settings: Any) -> Loader:
    return Loader(part, LoaderSettings(**{"batch_size": 7, **settings}), shuffle=True, seed=3, device=keep_on)


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("start", [0, 4])
def test_batches_from_the_device_are_those_from_the_host(name: str, start: int, tmp_path: Path) -> None:
    part = PARTS[name](tmp_path)
    kept = make_loader(part)
    expected = list(make_loader(part, None).batches(2, start))
    found = list(kept.batches(2, start))
    assert kept._resident is not None
    assert len(found) == len(expected) == 6 - start
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_what_the_data_learn_before_the_first_batch_counts(tmp_path: Path) -> None:
    made = table(tmp_path)
    loader = make_loader(Part("train", made))
    made.fit(torch.arange(5, 15))  # as a resumed run puts its own preprocessing back
    torch.testing.assert_close(next(loader.batches()), next(make_loader(Part("train", made), None).batches()))


def test_tensors_that_parts_have_in_common_are_sent_once() -> None:
    dataset = Digits()
    moved = [resident._moved(dataset, torch.device("meta")) for _ in range(2)]
    assert moved[0].images is moved[1].images
    assert moved[0].images.device.type == "meta" and dataset.images.device.type == "cpu"


class Restless(Dataset[Tensor]):
    """Its batches are not a function of rows."""

    num_reads = 0

    def __init__(self) -> None:
        self.x = torch.zeros(9, 2)

    def __len__(self) -> int:
        return 9

    def __getitem__(self, row: int) -> Tensor:
        return self.x[row]

    def read_batch(self, rows: Tensor) -> Tensor:
        Restless.num_reads += 1
        return self.x[rows] + self.num_reads


class Stream(IterableDataset[Tensor]):
    def __iter__(self) -> Any:
        return iter(torch.zeros(9, 2))


class Rows(Dataset[Tensor]):
    def __len__(self) -> int:
        return 9

    def __getitem__(self, row: int) -> Tensor:
        return torch.zeros(2)

    def read_batch(self, rows: Tensor) -> Tensor:
        return torch.zeros(len(rows), 2)


@pytest.mark.parametrize(
    ("part", "settings", "reason"),
    [
        (lambda: Part("train", Stream()), {}, "the dataset is iterable"),
        (lambda: Part("train", Digits()), {"num_workers": 2}, "loader.num_workers read it"),
        (lambda: Part("train", Digits(), None, [RandomCrop(pad=1)]), {}, "its rows are read or transformed one by one"),
        (lambda: Part("train", Rows()), {}, "the dataset holds no tensors"),
        (lambda: Part("train", Restless()), {}, "reading there does not work: train: Tensor-likes are not close!"),
    ],
)
def test_what_cannot_be_kept_stays_on_the_host_and_the_log_says_why(
    part: Callable[[], Part], settings: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    made = part()

    def loader(**changes: Any) -> Loader:
        every = LoaderSettings(batch_size=3, **settings, **changes)
        return Loader(made, every, shuffle=False, seed=0, device=CPU)

    assert loader()._resident is None
    assert caplog.messages == [f"train is read on the host: {reason}"]
    with pytest.raises(ConfigError) as caught:
        next(loader(keep_on_device=True).batches())
    assert str(caught.value) == f"loader.keep_on_device: train cannot be kept on cpu: {reason}"


def test_a_table_that_is_read_from_its_cache_stays_there_and_the_log_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(frame, "KEPT_BYTES", 0)
    monkeypatch.setattr(column_cache, "CACHE_FOLDER", str(tmp_path / "cache"))
    assert make_loader(Part("train", table(tmp_path, cache=True)))._resident is None
    assert caplog.messages[-1] == "train is read on the host: its rows are read from memory-mapped files"


def test_data_of_more_than_a_quarter_of_the_free_memory_are_kept_only_when_asked_for(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(resident, "_free_bytes", lambda _: 3 * 2**20)
    part = Part("train", TensorDataset(torch.zeros(2**18)))
    assert make_loader(part)._resident is None
    assert make_loader(part, keep_on_device=True)._resident is not None
    assert make_loader(part, keep_on_device=False)._resident is None
    assert caplog.messages == [
        "train is read on the host: its 1 MiB are more than a quarter of the 3 MiB that are free",
        "train is read on cpu, 1 MiB: it fits (loader.keep_on_device)",
        "train is read on the host: loader.keep_on_device is false",
    ]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", PARTS)
def test_a_gpu_gives_the_same_batches_and_is_not_waited_for(name: str, tmp_path: Path) -> None:
    part = PARTS[name](tmp_path)
    kept = ResidentPart(part, torch.device("cuda"))
    rows = torch.arange(10)
    kept.read(0, rows)
    torch.cuda.set_sync_debug_mode("error")
    try:
        batch = kept.read(0, rows)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(resident._on_host(batch), part.read(0, rows))
