"""Batches sent ahead are the batches that are read, whole and in time. The last tests need a GPU."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from src.data.loading.ahead import SideStream, pinned, sent_ahead
from src.data.loading.loader import Loader
from src.data.loading.share import Share
from src.data.parts.part import Part
from src.data.settings import LoaderSettings

CPU = torch.device("cpu")
Pair = namedtuple("Pair", "inputs targets")


class Nested(Dataset[Any]):
    """Samples of several shapes of batch at once."""

    def __len__(self) -> int:
        return 23

    def __getitem__(self, row: int) -> Any:
        value = torch.full((3,), float(row))
        return {"pair": Pair(value, row), "text": str(row), "many": [value + torch.rand(1), value]}


def loader(device: torch.device | None, dataset: Any = None, share: Share | None = None, **settings: Any) -> Loader:
    part = Part("train", dataset or Nested(), seed=1)
    every = LoaderSettings(**{"batch_size": 4, "keep_on_device": False, **settings})
    return Loader(part, every, shuffle=True, seed=3, device=device, share=share or Share())


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("start", [0, 4, 6])
def test_batches_sent_ahead_are_those_of_the_host_from_any_start_on(num_workers: int, start: int) -> None:
    found = list(loader(CPU, num_workers=num_workers).batches(1, start))
    expected = list(loader(None).batches(1, start))
    assert len(found) == len(expected) == 6 - start
    for ours, theirs in zip(found, expected, strict=True):
        assert type(ours["pair"]) is Pair and ours.pop("text") == theirs.pop("text")
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_shares_of_batches_keep_what_is_known_of_them() -> None:
    found = list(loader(CPU, share=Share(1, 2)).batches())
    expected = list(loader(None, share=Share(1, 2)).batches())
    assert [(each.num_own, each.num_rows) for each in found] == [(each.num_own, each.num_rows) for each in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours.batch["pair"].targets, theirs.batch["pair"].targets)


def test_a_batch_is_read_before_the_one_ahead_of_it_is_used_and_no_earlier() -> None:
    seen: list[str] = []

    def source() -> Iterator[Tensor]:
        for number in range(4):
            seen.append(f"read {number}")
            yield torch.tensor(number)

    for batch in sent_ahead(source(), CPU):
        seen.append(f"use {batch.item()}")
    assert seen == ["read 0", "read 1", "use 0", "read 2", "use 1", "read 3", "use 2", "use 3"]
    assert list(sent_ahead(iter([]), CPU)) == []


def test_a_batch_that_cannot_be_read_is_told_of_when_its_turn_comes() -> None:
    def source() -> Iterator[Tensor]:
        yield from torch.arange(2)
        raise ValueError("row 2 is torn")

    used: list[int] = []
    with pytest.raises(ValueError, match="torn"):
        for batch in sent_ahead(source(), CPU):
            used.append(batch.item())
    assert used == [0, 1]


class Graph:
    """A batch of a library's own kind."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def to(self, device: torch.device) -> Graph:
        self.told.append(f"to {device}")
        return self

    def pin_memory(self) -> Graph:
        self.told.append("pin")
        return self


class Recorded(Graph):
    def record_stream(self, stream: Any) -> None:
        self.told.append("record")


def test_a_batch_of_another_kind_is_sent_if_streams_can_be_recorded_and_else_left_to_the_step() -> None:
    side, plain, recorded = SideStream(CPU), Graph(), Recorded()
    pinned((plain, {"x": recorded}))
    side.receive(side.send((plain, {"x": recorded})))
    assert plain.told == ["pin"]
    assert recorded.told == ["pin", "to cpu", "record"]


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_reach_a_gpu_whole_and_nobody_waits_for_them(num_workers: int) -> None:
    part = Part("train", TensorDataset(torch.arange(64.0).reshape(32, 2), torch.arange(32)))
    settings = LoaderSettings(batch_size=4, keep_on_device=False, num_workers=num_workers)
    sent = Loader(part, settings, shuffle=True, seed=3, pin_memory=True, device=torch.device("cuda"))
    found = []
    list(sent.batches(0))  # takes the memory that is needed
    torch.cuda.set_sync_debug_mode("error")
    try:
        for inputs, targets in sent.batches(1):
            found.append((inputs * 2, targets + 1))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = list(Loader(part, settings, shuffle=True, seed=3).batches(1))
    for (inputs, targets), (first, second) in zip(found, expected, strict=True):
        assert torch.equal(inputs.cpu(), first * 2) and torch.equal(targets.cpu(), second + 1)


@pytest.mark.gpu
@needs_gpu
def test_the_next_batch_arrives_while_a_gpu_computes_with_this_one() -> None:
    side, computing = SideStream(torch.device("cuda")), torch.cuda.current_stream()
    host = [pinned(torch.full((1 << 20,), float(number))) for number in range(2)]
    side.receive(side.send(host[0]))
    torch.cuda._sleep(1 << 31)  # type: ignore[no-untyped-call]  # a second
    side.send(host[1])
    side.stream.synchronize()
    assert not computing.query()


@pytest.mark.gpu
@needs_gpu
def test_memory_of_a_batch_is_not_taken_again_while_a_gpu_computes_with_it() -> None:
    side = SideStream(torch.device("cuda"))
    host = [pinned(torch.full((1 << 20,), float(number))) for number in range(8)]
    found = []
    for batch in host:
        sent = side.receive(side.send(batch))
        torch.cuda._sleep(1 << 26)  # type: ignore[no-untyped-call]  # the host runs ahead meanwhile
        found.append(sent.mean())
        del sent
    assert [mean.item() for mean in found] == list(range(8))
