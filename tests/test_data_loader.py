"""Laws of reading: the same batches whoever reads them, from wherever, and nothing else disturbed."""

from __future__ import annotations

import gc
import logging
import os
import random
import signal
import subprocess
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from itertools import islice, pairwise
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor
from torch.utils.data import Dataset, IterableDataset, TensorDataset, WeightedRandomSampler, get_worker_info

from src.data.loading.loader import Loader
from src.data.loading.order import RowOrder
from src.data.loading.permutation import Permutation
from src.data.parts.part import ORDER_STREAM, Part
from src.data.settings import LoaderSettings
from src.utils.command import exit_code, shortage
from src.utils.errors import ConfigError, DataError, ResourceError, WorkerError
from src.utils.seed import counted_seed, mix_seed


class Rows(Dataset[tuple[Tensor, int]]):
    """Row i is (i, i), plus noise of all three generators if wanted; it notes what is read."""

    def __init__(self, num_rows: int = 23, noisy: bool = False) -> None:
        self.num_rows, self.noisy = num_rows, noisy
        self.read: list[int] = []

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        self.read.append(row)
        noise = torch.rand(2) + float(np.random.rand()) + random.random() if self.noisy else torch.zeros(2)
        return torch.full((2,), float(row)) + noise, row


class Stream(IterableDataset[Tensor]):
    """Samples 0, 1, 2, ... of an epoch, with noise; no length, no seek."""

    def __init__(self, num_samples: int = 23) -> None:
        self.num_samples, self.epoch, self.first = num_samples, -1, 0
        self.read = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[Tensor]:
        for number in range(self.first, self.num_samples):
            self.read += 1
            yield torch.tensor([self.epoch * 100.0 + number]) + torch.rand(1) + random.random()


class SeekableStream(Stream):
    def seek(self, num_samples: int) -> None:
        self.first = num_samples


class ShardedStream(IterableDataset[Tensor]):
    is_sharded = True

    def __iter__(self) -> Iterator[Tensor]:
        worker = get_worker_info()
        shard, shards = (worker.id, worker.num_workers) if worker else (0, 1)
        yield from (torch.tensor(float(number)) for number in range(24) if number // 4 % shards == shard)


def add_noise(value: Tensor) -> Tensor:
    return value + torch.rand(2) * float(np.random.rand()) + random.random()


def noisy_collate(samples: list[Any]) -> Tensor:
    return torch.stack([sample[0] for sample in samples]) + torch.rand(1) + random.random()


def loader(dataset: Any, *, shuffle: bool = True, transforms: Any = (), makers: Any = None, **settings: Any) -> Loader:
    part = Part("train", dataset, transforms=transforms, seed=7)
    return Loader(part, LoaderSettings(**{"batch_size": 4, **settings}), shuffle=shuffle, seed=7, **(makers or {}))


def same(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor):
        return torch.equal(left, right)
    return len(left) == len(right) and all(same(a, b) for a, b in zip(left, right, strict=True))


def epochs(of: Loader, numbers: tuple[int, ...] = (0, 1, 2)) -> list[Any]:
    return [batch for epoch in numbers for batch in of.batches(epoch)]


def random_states() -> tuple[Any, ...]:
    return random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()


@given(num_rows=st.integers(1, 60), batch_size=st.integers(1, 12), drop_last=st.booleans(), epoch=st.integers(0, 3))
def test_an_epoch_gives_each_row_once_and_its_tail_is_the_same_from_any_start(
    num_rows: int, batch_size: int, drop_last: bool, epoch: int
) -> None:
    if drop_last and num_rows < batch_size:
        return
    data = Rows(num_rows)
    of = loader(data, batch_size=batch_size, drop_last=drop_last)
    whole = list(of.batches(epoch))
    rows = torch.cat([batch[1] for batch in whole]).tolist()
    kept = num_rows - num_rows % batch_size if drop_last else num_rows
    assert len(set(rows)) == len(rows) == kept
    assert len(whole) == len(of)
    for start in range(len(whole) + 1):
        data.read.clear()
        assert same(list(of.batches(epoch, start)), whole[start:])
        assert (
            len(data.read) == len(torch.cat([batch[1] for batch in whole[start:]])) if whole[start:] else not data.read
        )


@given(st.lists(st.integers(0, 2**32 - 1) | st.integers(0, 40) | st.integers(2**32, 2**70), max_size=6))
def test_a_mixed_seed_is_the_first_word_of_numpys_seed_sequence(parts: list[int]) -> None:
    assert mix_seed(*parts) == int(np.random.SeedSequence(parts).generate_state(1)[0])


@given(st.lists(st.integers(0, 2**32 - 1) | st.integers(2**32, 2**70), max_size=4), st.integers(0, 2**33))
def test_seeds_that_are_counted_up_are_those_mixed_one_by_one(parts: list[int], number: int) -> None:
    assert counted_seed(*parts, number) == mix_seed(*parts, number)


@given(num_rows=st.integers(1, 5000), seed=st.integers(0, 2**32 - 1), cuts=st.lists(st.integers(0, 5000), max_size=4))
def test_a_computed_permutation_has_each_row_once_and_can_start_anywhere(
    num_rows: int, seed: int, cuts: list[int]
) -> None:
    order = Permutation(num_rows, seed)[0:num_rows]
    assert order.sort().values.tolist() == list(range(num_rows))
    places = sorted(min(cut, num_rows) for cut in cuts)
    parts = Permutation(num_rows, seed)
    for first, last in [*pairwise(places), *pairwise(places[::-2][::-1])]:
        assert torch.equal(parts[first:last], order[first:last])


def test_a_computed_permutation_looks_random() -> None:
    """Each row comes to each place about as often, and neighbours part."""
    num_rows, num_seeds = 8, 4000
    counts = torch.zeros(num_rows, num_rows)
    for seed in range(num_seeds):
        counts[torch.arange(num_rows), Permutation(num_rows, seed)[0:num_rows]] += 1
    expected = num_seeds / num_rows
    assert float(((counts - expected) ** 2 / expected).sum()) < 98  # chi-squared, 49 degrees of freedom: p < 4e-5
    order = Permutation(10**8, 0)[0 : 10**5].double()
    assert abs(float(torch.corrcoef(torch.stack([order[1:], order[:-1]]))[0, 1])) < 0.015
    assert abs(float(order.mean()) / 10**8 - 0.5) < 0.005


class Endless(Dataset[Tensor]):
    """A hundred million rows that take no memory."""

    def __len__(self) -> int:
        return 10**8

    def read_batch(self, rows: Tensor) -> Tensor:
        return rows.clone()


def test_shuffling_a_hundred_million_rows_holds_none_of_them_and_starts_anywhere_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a permutation of all rows was drawn")

    monkeypatch.setattr(torch, "randperm", refuse)
    loader = Loader(Part("train", Endless()), LoaderSettings(batch_size=1000), shuffle=True, seed=3)
    tracemalloc.start()
    near, far = list(islice(loader.batches(2), 30)), list(islice(loader.batches(2, 99_990), 30))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(near) == 30 and len(far) == 10
    assert torch.equal(near[17], next(loader.batches(2, 17)))
    assert torch.cat(near + far).unique().numel() == 40_000
    assert not torch.equal(near[0], next(loader.batches(3)))
    assert peak < 4 << 20


def test_order_depends_on_seed_and_epoch_alone() -> None:
    first = epochs(loader(Rows()), (0, 1))
    torch.manual_seed(99)
    assert same(first, epochs(loader(Rows()), (0, 1)))
    assert not same(first[:6], first[6:])
    other = Loader(Part("train", Rows()), LoaderSettings(batch_size=4), shuffle=True, seed=8)
    assert not same(first[:6], list(other.batches(0)))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5000), st.lists(st.integers(0, 200), min_size=1, max_size=5))
def test_an_order_is_a_permutation_of_torch_seeded_by_the_epoch_whatever_was_drawn_with_it(
    num_rows: int, asked: list[int]
) -> None:
    part = Part("train", TensorDataset(torch.arange(num_rows)))
    order = RowOrder(part, LoaderSettings(), batch_size=num_rows, shuffle=True, seed=7)
    for epoch in asked:
        generator = torch.Generator().manual_seed(mix_seed(ORDER_STREAM, 7, epoch))
        (rows,) = order.batches(epoch, 0)
        assert torch.equal(rows, torch.randperm(num_rows, generator=generator))
        rows.zero_()  # as a dataset may


def test_without_shuffling_rows_come_in_order() -> None:
    assert torch.cat([rows for _, rows in loader(Rows(), shuffle=False).batches(3)]).tolist() == list(range(23))


@pytest.mark.parametrize("persistent", [True, False])
def test_any_number_of_workers_gives_the_same_random_bits_in_every_epoch(persistent: bool) -> None:
    expected = epochs(loader(Rows(noisy=True), transforms=[add_noise]))
    for workers in (1, 2):
        of = loader(Rows(noisy=True), transforms=[add_noise], num_workers=workers, persistent_workers=persistent)
        assert same(epochs(of), expected)


def test_random_values_of_a_row_change_with_the_epoch_and_not_with_batch_size_or_start() -> None:
    def values(batch_size: int, epoch: int, start: int = 0) -> dict[int, list[float]]:
        of = loader(Rows(noisy=True), batch_size=batch_size)
        return {int(r): x.tolist() for batch in of.batches(epoch, start) for x, r in zip(*batch, strict=True)}

    assert values(4, 0) == values(23, 0)
    assert values(4, 0, 3).items() <= values(4, 0).items()
    assert values(4, 0)[5] != values(4, 1)[5]


class SometimesNoisy(Rows):
    """Draws for one row only: the reader cannot know before."""

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        value, row = super().__getitem__(row)
        return (value + torch.rand(2) if row == 17 else value), row


def test_rows_that_draw_nothing_are_read_once_and_those_that_do_the_same_from_any_start() -> None:
    quiet, sometimes = Rows(), SometimesNoisy()
    whole = list(loader(sometimes, shuffle=False).batches())
    list(loader(quiet, shuffle=False).batches())
    assert quiet.read == list(range(23))
    assert sometimes.read == [*range(20), *range(16, 23)]  # the batch of row 17 is read again, with streams of its own
    for start in range(6):
        assert same(list(loader(SometimesNoisy(), shuffle=False).batches(0, start)), whole[start:])


def test_random_collation_is_the_same_in_workers_and_from_any_start() -> None:
    makers = {"collate_fn": noisy_collate}
    expected = epochs(loader(Rows(), makers=makers))
    assert same(epochs(loader(Rows(), makers=makers, num_workers=2)), expected)
    assert same(list(loader(Rows(), makers=makers).batches(0, 2)), expected[2:6])


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("dataset", [Rows(noisy=True), Stream()])
def test_reading_leaves_the_global_streams_alone(dataset: Any, workers: int) -> None:
    of = loader(dataset, shuffle=False, transforms=[torch.clone], num_workers=workers)
    before = random_states()
    epochs(of, (0, 1))
    assert random_states() == before


def test_drawing_between_batches_does_not_change_them() -> None:
    expected = epochs(loader(Rows(noisy=True)), (0,))
    for batch, wanted in zip(loader(Rows(noisy=True)).batches(0), expected, strict=True):
        torch.rand(5), np.random.rand(3), random.random()
        assert same(batch, wanted)


def test_workers_started_anew_by_spawn_read_the_same() -> None:
    of = loader(Rows(noisy=True), num_workers=1, multiprocessing_context="spawn")
    assert same(epochs(of, (0,)), epochs(loader(Rows(noisy=True)), (0,)))


def test_workers_of_a_loader_that_nobody_uses_end_without_being_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def leave() -> None:
        left: Any = loader(Rows(), num_workers=2)
        epochs(left, (0,))
        left.itself = left  # as a trainer and its parts refer to each other

    leave()
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 3600)  # how long torch waits for a worker
    collected = threading.Thread(target=gc.collect, daemon=True)
    collected.start()
    collected.join(120)
    assert not collected.is_alive()


def test_an_epoch_left_early_does_not_disturb_the_next() -> None:
    of = loader(Rows(noisy=True), num_workers=2)
    next(of.batches(0))
    assert same(epochs(of, (1,)), epochs(loader(Rows(noisy=True)), (1,)))


class Batched(Rows):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def read_batch(self, rows: Tensor) -> list[Tensor]:
        self.calls.append("read_batch")
        return [rows.float().unsqueeze(1).expand(-1, 2), rows]


class Many(Rows):
    def __getitems__(self, rows: list[int]) -> list[Any]:
        self.read.append(-1)
        return [(torch.full((2,), float(row)), row) for row in rows]


def double(value: Tensor) -> Tensor:
    return value * 2


class Halve:
    takes_batch = True

    def __call__(self, value: Tensor) -> Tensor:
        return value / 2


def test_whole_batches_are_read_at_once_where_the_dataset_and_the_transforms_allow() -> None:
    for transforms in ((), (Halve(),)):
        data = Batched()
        batches = list(loader(data, transforms=transforms).batches())
        assert data.calls and not data.read
        assert same(batches, list(loader(Rows(), transforms=transforms).batches()))
    data = Batched()
    assert same(list(loader(data, transforms=[double]).batches()), list(loader(Rows(), transforms=[double]).batches()))
    assert data.read and not data.calls
    many = Many()
    assert same(list(loader(many).batches()), list(loader(Rows()).batches()))
    assert many.read == [-1] * 6


def test_a_tensor_dataset_is_read_in_whole_batches() -> None:
    x, y = torch.randn(10, 3), torch.arange(10)
    batches = list(loader(TensorDataset(x, y), shuffle=False, batch_size=6).batches())
    assert same(batches, [[x[:6], y[:6]], [x[6:], y[6:]]])


def weighted(part: Part, generator: Generator) -> WeightedRandomSampler:
    return WeightedRandomSampler([1.0] * len(part), 20, generator=generator)


class GlobalSampler:
    """Draws from the global stream, as many people's samplers do, and never ends."""

    def __init__(self, part: Part) -> None:
        self.num_rows = len(part)

    def __iter__(self) -> Iterator[int]:
        while True:
            yield random.randrange(self.num_rows)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_sampler_is_a_function_of_seed_and_epoch_too(workers: int) -> None:
    of = loader(Rows(), makers={"sampler": weighted}, num_workers=workers)
    before = random_states()
    first, second = list(of.batches(0)), list(of.batches(1))
    assert random_states() == before
    assert len(of) == len(first) == 5
    assert not same(first, second)
    torch.rand(3)
    assert same(list(of.batches(0, 2)), first[2:])


def test_a_sampler_without_end_draws_from_a_stream_of_its_own() -> None:
    of = loader(Rows(), makers={"sampler": lambda part, generator: GlobalSampler(part)})
    with pytest.raises(TypeError):
        len(of)
    first = [batch for _, batch in zip(range(9), of.batches(0), strict=False)]
    random.seed(5)
    assert same([batch for _, batch in zip(range(6), of.batches(0, 3), strict=False)], first[3:])


def pairs(part: Part, generator: Generator) -> list[tuple[int, int]]:
    order = torch.randperm(len(part), generator=generator).tolist()
    return list(pairwise(order))[::2]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_sampler_decides_what_a_batch_is(workers: int) -> None:
    of = loader(Rows(), makers={"batch_sampler": pairs}, num_workers=workers)
    batches = list(of.batches(2))
    assert len(of) == len(batches) == 11
    assert all(len(rows) == 2 for _, rows in batches)
    assert same(list(of.batches(2, 4)), batches[4:])


@pytest.mark.parametrize("kind", [Stream, SeekableStream])
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_iterable_data_give_the_same_batches_from_any_start_in_any_process(
    kind: Callable[[], Any], workers: int
) -> None:
    expected = epochs(loader(Stream(), shuffle=False))
    assert [len(batch) for batch in expected[:6]] == [4, 4, 4, 4, 4, 3]
    of = loader(kind(), shuffle=False, num_workers=workers)
    assert same(epochs(of), expected)
    assert same(list(of.batches(1, 4)), expected[10:12])
    with pytest.raises(TypeError):
        len(of)


def test_iterable_data_are_skipped_by_seek_or_by_reading_with_a_word(caplog: pytest.LogCaptureFixture) -> None:
    seekable, plain = SeekableStream(), Stream()
    with caplog.at_level(logging.INFO, "src.data"):
        list(loader(seekable, shuffle=False).batches(0, 5))
        assert seekable.read == 3 and not caplog.text
        list(loader(plain, shuffle=False).batches(0, 5))
    assert plain.read == 23 and "reading 20 samples to get to batch 5" in caplog.text


def test_iterable_data_drop_the_last_small_batch_when_told_to() -> None:
    assert len(list(loader(Stream(), shuffle=False, drop_last=True).batches())) == 5


def test_workers_with_a_share_each_give_every_sample_once_from_any_start() -> None:
    of = loader(ShardedStream(), shuffle=False, num_workers=2)
    batches = list(of.batches(0))
    assert sorted(torch.cat(batches).tolist()) == [float(number) for number in range(24)]
    assert same(list(of.batches(0, 3)), batches[3:])


# --- what goes wrong ---------------------------------------------------------------------------------------------


class Broken(Rows):
    def __init__(self, row: int, how: str) -> None:
        super().__init__()
        self.row, self.how = row, how

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        if row == self.row:
            if self.how == "kill":
                os.kill(os.getpid(), 9)
            if self.how == "leave":
                os._exit(0)
            if self.how == "hang":
                time.sleep(60)
            if self.how == "memory":
                raise MemoryError
            if self.how == "allocate":
                torch.empty(1 << 60)
            if self.how == "size":
                return torch.zeros(3), row
            raise IndexError("list index out of range")
        return super().__getitem__(row)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_row_that_fails_is_named_with_its_error(workers: int) -> None:
    with pytest.raises(DataError) as caught:
        list(loader(Broken(9, "raise"), num_workers=workers).batches())
    assert str(caught.value) == (
        "train row 9 (dataset Broken): IndexError: list index out of range; the dataset says that it has 23 rows"
    )
    assert caught.value.__cause__ is not None
    if workers:
        assert 'raise IndexError("list index out of range")' in str(caught.value.__cause__)


def test_the_row_named_is_the_row_of_the_dataset() -> None:
    part = Part("val", Broken(9, "raise"), indices=torch.tensor([3, 9]))
    with pytest.raises(DataError, match=r"val row 9 "):
        part.read(0, [1])


@pytest.mark.parametrize("workers", [0, 1])
def test_sizes_that_differ_in_a_batch_are_named_with_the_remedy(workers: int) -> None:
    with pytest.raises(DataError, match=r"train rows 8 and 9 .*sizes \[2\] and \[3\] in one batch; add .* Resize"):
        list(loader(Broken(9, "size"), shuffle=False, num_workers=workers).batches())


def test_a_transform_that_fails_is_named() -> None:
    with pytest.raises(DataError, match=r"train row 0 \(dataset Rows\): transform Bad: ValueError: too small"):

        class Bad:
            def __call__(self, value: Tensor) -> Tensor:
                raise ValueError("too small")

        list(loader(Rows(), shuffle=False, transforms=[Bad()]).batches())


def test_a_collate_fn_that_fails_is_named_with_its_rows() -> None:
    def bad(samples: list[Any]) -> Any:
        raise KeyError("Text")

    with pytest.raises(DataError, match=r"train rows 0, 1, 2, 3 \(dataset Rows\): KeyError: 'Text'"):
        list(loader(Rows(), shuffle=False, makers={"collate_fn": bad}).batches())


def test_an_iterable_dataset_that_fails_names_the_sample() -> None:
    class Failing(Stream):
        def __iter__(self) -> Iterator[Tensor]:
            yield torch.zeros(1)
            raise OSError("shard 3 is gone")

    for workers in (0, 1):
        with pytest.raises(DataError, match=r"train row 1 \(dataset Failing\): OSError: shard 3 is gone"):
            list(loader(Failing(), shuffle=False, num_workers=workers).batches())


class BreaksOnce(Broken):
    """Breaks at a row, but only the first so many times: it counts in a file, as workers share nothing else."""

    def __init__(self, row: int, how: str, folder: Path, times: int = 1) -> None:
        super().__init__(row, how)
        self.folder, self.times = folder, times

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        if row == self.row:
            count = len(list(self.folder.iterdir()))
            (self.folder / str(count)).touch()
            self.row = row if count < self.times else -1
        return super().__getitem__(row)


@pytest.mark.parametrize(("how", "times"), [("kill", 2), ("hang", 1)])
def test_workers_that_are_lost_are_started_again_at_the_same_batch(
    how: str, times: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    others = set(active_children())
    of = loader(BreaksOnce(9, how, tmp_path, times), transforms=[add_noise], num_workers=2, timeout=2.0)
    assert same(list(of.batches(1, 1)), list(loader(Rows(), transforms=[add_noise]).batches(1, 1)))
    assert len(list(tmp_path.iterdir())) == times + 1
    assert caplog.text.count("the workers are started again at batch ") == times
    assert len(set(active_children()) - others) <= 2, "those that were lost have been buried"


def test_a_stream_whose_worker_is_lost_goes_on_at_the_same_sample(tmp_path: Path) -> None:
    class DiesOnce(Stream):
        def __iter__(self) -> Iterator[Tensor]:
            for number, sample in enumerate(super().__iter__()):
                if number == 9 and not list(tmp_path.iterdir()):
                    (tmp_path / "died").touch()
                    os.kill(os.getpid(), 9)
                yield sample

    of = loader(DiesOnce(), shuffle=False, num_workers=1)
    assert same(list(of.batches()), list(loader(Stream(), shuffle=False).batches()))


@pytest.mark.parametrize("how", ["memory", "allocate"])
@pytest.mark.parametrize("workers", [0, 1])
def test_memory_that_runs_out_while_reading_is_called_so(how: str, workers: int) -> None:
    of = loader(Broken(9, how), num_workers=workers)
    with pytest.raises((ResourceError, MemoryError, RuntimeError)) as raised:
        list(of.batches())
    told = shortage(raised.value) or raised.value
    assert exit_code(told) == 5
    advice = "use fewer loader.num_workers, or a smaller" if workers else "use a smaller loader.batch_size"
    assert "memory ran out" in str(told) and advice in str(told)


def test_a_worker_that_is_killed_is_reported_at_once_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 60.0)  # when torch would look by itself
    started = time.monotonic()
    with pytest.raises(WorkerError, match=r"train: loader worker \d+ was killed by SIGKILL; .*memory"):
        list(loader(Broken(9, "kill"), num_workers=2).batches())
    assert time.monotonic() - started < 60


def test_a_worker_that_leaves_by_itself_is_named_with_its_code() -> None:
    with pytest.raises(
        WorkerError, match=r"train: loader worker \d+ ended by itself with code 0; loader.num_workers=0"
    ):
        list(loader(Broken(9, "leave"), num_workers=2, in_order=False).batches())


def test_a_worker_that_hangs_is_reported_with_the_rows_it_was_reading() -> None:
    of = loader(Broken(9, "hang"), shuffle=False, num_workers=1, timeout=1.0)
    with pytest.raises(
        WorkerError, match=r"train rows 8, 9, 10, 11: no batch from a loader worker for 1.* s; raise loader"
    ):
        list(of.batches())


def test_workers_leave_signals_to_the_training_process_and_end_with_it() -> None:
    others = set(active_children())
    of = loader(Rows(noisy=True), num_workers=2)
    batches = of.batches(0)
    read = [next(batches)]
    workers = set(active_children()) - others
    assert len(workers) == 2
    for worker in workers:
        for number in (signal.SIGINT, signal.SIGUSR1):
            os.kill(worker.pid or 0, number)
        subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)  # from another process, as to a whole group
    read += batches
    assert same(read, epochs(loader(Rows(noisy=True)), (0,)))
    del of, batches
    for worker in workers:
        worker.join(3)
        assert not worker.is_alive()


def processes_of(group: int) -> list[int]:
    """Return the processes of a session that still run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == group and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_run_leaves_no_process_and_no_shared_memory_even_if_a_worker_hangs(number: signal.Signals) -> None:
    ready, ready_in_child = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setsid()
        of = loader(Broken(9, "hang"), shuffle=False, num_workers=2, timeout=60)
        batches = of.batches()
        next(batches)
        os.write(ready_in_child, b"x")
        next(batches)
        next(batches)  # hangs
        os._exit(0)
    assert os.read(ready, 1) == b"x"
    time.sleep(0.2)
    running = processes_of(pid)
    assert len(running) == 3
    os.kill(pid, number)
    os.waitpid(pid, 0)
    deadline = time.monotonic() + 8
    while processes_of(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes_of(pid) == []
    left = [path.name for path in Path("/dev/shm").iterdir()]
    assert [name for name in left if any(f"_{process}_" in name for process in running)] == []


def test_a_loader_can_be_used_again_after_its_workers_were_lost() -> None:
    data = Broken(9, "kill")
    of = loader(data, num_workers=1, shuffle=False)
    with pytest.raises(WorkerError):
        list(of.batches())
    data.row = -1
    assert len(list(of.batches())) == 6


def test_zero_batches_are_refused() -> None:
    with pytest.raises(DataError, match=r"train: 3 rows, batch_size 4, drop_last: 0 batches; use a smaller"):
        loader(Rows(3), drop_last=True)


@pytest.mark.parametrize(
    ("settings", "makers", "message"),
    [
        ({"shuffle": True}, {"sampler": weighted}, "sampler decides the order; leave out shuffle: true"),
        ({"drop_last": True}, {"batch_sampler": pairs}, "batch_sampler decides what a batch is; leave out drop_last"),
        ({}, {"sampler": weighted, "batch_sampler": pairs}, "sampler and batch_sampler exclude each other"),
    ],
)
def test_options_that_exclude_each_other_are_refused(settings: Any, makers: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Loader(Part("train", Rows()), LoaderSettings(**settings), shuffle=True, seed=0, **makers)


def test_shuffling_iterable_data_is_refused() -> None:
    with pytest.raises(ConfigError, match="Stream is iterable, in its own order; leave out shuffle: true"):
        Loader(Part("train", Stream()), LoaderSettings(shuffle=True), shuffle=True, seed=0)
