"""Laws of groups, time, hashes and folds: no group straddles, later rows are held out, nothing moves."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import Dataset

from src.data.arrays import Arrays
from src.data.frame import FrameDataset
from src.data.parts.content import (
    AT_START,
    check_same_data,
    data_changes,
    find_overlaps,
    fingerprint,
    keep_rows,
    row_hashes,
)
from src.data.parts.divide import split_rows
from src.data.parts.split import make_parts
from src.data.settings import SplitSettings
from src.utils.errors import CheckpointError, ConfigError, DataError

SHARES = st.sampled_from([(0.2, 0.0), (0.1, 0.1), (0.3, 0.2)])
GROUPS = st.lists(st.integers(0, 12), min_size=1, max_size=120)


def is_partition(parts: dict[str, Tensor], num_rows: int) -> bool:
    return sorted(torch.cat(list(parts.values())).tolist()) == list(range(num_rows)) and all(map(len, parts.values()))


@given(groups=GROUPS, shares=SHARES, seed=st.integers(0, 9), stable=st.booleans())
def test_groups_never_straddle(groups: list[int], shares: tuple[float, float], seed: int, stable: bool) -> None:
    split = SplitSettings(val=shares[0], test=shares[1], groups="user", seed=seed, stable=stable)
    try:
        parts = split_rows(len(groups), split, np.array(groups))
    except ConfigError as error:
        assert stable or "groups left" in str(error) or "would have 0" in str(error)
        assume(False)
    assert is_partition(parts, len(groups))
    held = [set(np.array(groups)[rows.numpy()].tolist()) for rows in parts.values()]
    assert sum(map(len, held)) == len(set(groups))


@given(times=st.lists(st.integers(0, 50), min_size=10, max_size=80), shares=SHARES)
def test_by_time_no_row_trains_for_an_earlier_one(times: list[int], shares: tuple[float, float]) -> None:
    moments = np.array(times)
    parts = split_rows(len(times), SplitSettings(val=shares[0], test=shares[1], time="when"), moments)
    assert is_partition(parts, len(times))
    order = [moments[parts[name].numpy()] for name in ("train", "val", "test") if name in parts]
    assert all(before.max() <= after.min() for before, after in pairwise(order))
    days = np.array([f"2024-{1 + time // 28:02}-{1 + time % 28:02}" for time in times])
    by_date = split_rows(len(times), SplitSettings(val=shares[0], test=shares[1], time="when"), days)
    assert all(torch.equal(rows, by_date[name]) for name, rows in parts.items())


@given(
    count=st.integers(40, 200), added=st.integers(1, 100), seed=st.integers(0, 9), shuffled=st.integers(0, 9),
    folds=st.sampled_from([0, 3]),
)  # fmt: skip
def test_rows_that_are_added_never_move_old_ones(count: int, added: int, seed: int, shuffled: int, folds: int) -> None:
    split = SplitSettings(val=0.3, test=0.2, stable=True, seed=seed, folds=folds)
    keys = np.array([f"row {number}" for number in range(count + added)])
    order = torch.randperm(count + added, generator=torch.Generator().manual_seed(shuffled))
    try:
        before, after = (split_rows(len(each), split, each) for each in (keys[:count], keys[order]))
    except ConfigError:
        assume(False)
    assert is_partition(before, count) and is_partition(after, count + added)
    where = {int(order[row]): name for name, rows in after.items() for row in rows.tolist()}
    assert all(where[row] == name for name, rows in before.items() for row in rows.tolist())


def test_a_stable_split_comes_near_its_shares_and_is_the_same_on_every_machine() -> None:
    parts = split_rows(5000, SplitSettings(val=0.2, test=0.1, stable=True), np.arange(5000).astype(str))
    assert [len(rows) / 5000 for rows in parts.values()] == pytest.approx([0.7, 0.2, 0.1], abs=0.015)
    assert parts["val"][:5].tolist() == [6, 9, 13, 18, 29]


@given(
    count=st.integers(12, 90), folds=st.integers(2, 6), kind=st.sampled_from(["", "stratify", "groups", "stable"]),
    val=st.sampled_from([0.0, 0.2]), seed=st.integers(0, 5),
)  # fmt: skip
def test_over_all_folds_every_row_is_held_out_once(count: int, folds: int, kind: str, val: float, seed: int) -> None:
    keys: Any = {"stratify": {"stratify": True}, "groups": {"groups": "user"}, "stable": {"stable": True}}.get(kind, {})
    values = (
        None
        if not kind
        else np.arange(count)
        if kind == "stable"
        else np.arange(count) % (3 if kind == "stratify" else 9)
    )
    held = []
    for fold in range(1, folds + 1):
        split = SplitSettings(val=val, test=0.2 if val else 0.0, folds=folds, fold=fold, seed=seed, **keys)
        try:
            parts = split_rows(count, split, values)
        except (ConfigError, DataError):
            assume(False)
        assert is_partition(parts, count)
        assert set(parts) == ({"train", "val", "test"} if val else {"train", "val"})
        if kind == "groups":
            assert sum(len(set((rows % 9).tolist())) for rows in parts.values()) == len(
                set((np.arange(count) % 9).tolist())
            )
        held.append(parts[split.fold_part])
    assert sorted(torch.cat(held).tolist()) == list(range(count))
    if kind in ("", "stratify"):
        assert max(map(len, held)) - min(map(len, held)) <= 1
    if kind == "stratify":
        for label in range(3):
            counts = [int((rows % 3 == label).sum()) for rows in held]
            assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize(
    ("split", "values", "message"),
    [
        (SplitSettings(val=0.3, groups="user"), np.zeros(10), "1 groups left for 2 parts"),
        (SplitSettings(folds=5, groups="user"), np.arange(10) % 3, "5 folds of 3 groups; use fewer"),
        (SplitSettings(folds=20), None, "20 folds of 10 rows; use fewer"),
        (SplitSettings(val=3, stable=True), np.arange(10), r"data.split.val: 3 rows; with stable: true it is a share"),
        (SplitSettings(val=0.3, time="day"), np.array(["2024-01-01"] * 9 + ["soon"]), "row 9: 'soon' in day"),
        (SplitSettings(val=0.3, groups="user"), np.array([None, *"abcdefghi"]), "row 0 has no value in user"),
        (SplitSettings(val=0.3, groups="user"), np.zeros((10, 2)), r"user are \[10, 2\], not one value per row \[10\]"),
    ],
)  # fmt: skip
def test_values_that_cannot_divide_are_refused(split: SplitSettings, values: Any, message: str) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        split_rows(10, split, values)


def table(num_rows: int = 40) -> pd.DataFrame:
    rows = np.arange(num_rows)
    return pd.DataFrame({"x": rows / 7, "city": [f"c{row % 5}" for row in rows], "user": rows // 4, "y": rows % 2})


def test_a_table_is_divided_by_a_column_that_is_no_feature() -> None:
    data = FrameDataset(table(), "people", "y", features=["x", "city"])
    parts = make_parts({"train": data}, SplitSettings(val=0.2, groups="user"))
    users = {name: set((part.row_ids() // 4).tolist()) for name, part in parts.items()}
    assert len(users["val"]) == 2 and not users["val"] & users["train"]
    with pytest.raises(DataError, match=r"people: no column 'usr'; did you mean user?"):
        make_parts({"train": data}, SplitSettings(val=0.2, groups="usr"))
    with pytest.raises(DataError, match="dataset Arrays has no column and no attribute 'user'"):
        make_parts({"train": Arrays(torch.zeros(9, 1))}, SplitSettings(val=0.2, groups="user"))


def test_a_stable_split_of_a_table_goes_by_what_is_in_a_row() -> None:
    split = SplitSettings(val=0.3, stable=True)
    old, new = table(60), pd.concat([table(90).iloc[60:], table(60)])
    new["x"] = new["x"].astype(object)  # another file, another type of column
    parts = [
        make_parts({"train": FrameDataset(each, "t", "y", ["x", "city"])}, split) for each in (old, new.reset_index())
    ]
    held = [set(each["val"].dataset.content(each["val"].row_ids())[0][:, 0].tolist()) for each in parts]  # type: ignore[attr-defined]
    assert held[0] and held[0] <= held[1] and all(value > 59 / 7 for value in held[1] - held[0])


class Slow(Dataset[Any]):
    """Samples of many kinds, one by one."""

    def __init__(self, first: int = 0) -> None:
        self.first = first

    def __len__(self) -> int:
        return 20

    def __getitem__(self, row: int) -> Any:
        number = row + self.first
        return {"text": str(number), "image": torch.full((2, 2), float(number)), "tags": [number, "x"]}


def test_the_same_rows_in_two_parts_are_reported_however_they_are_stored(tmp_path: Path) -> None:
    values = torch.arange(60.0).reshape(20, 3)
    np.save(tmp_path / "x.npy", values.numpy())
    stored, shifted = Arrays(str(tmp_path / "x.npy"), torch.arange(20)), Arrays(values + 3, torch.zeros(20))
    parts = make_parts({"train": stored, "val": shifted, "test": Arrays(values + 100)})
    (found,) = find_overlaps(parts, AT_START, fast_only=True)
    assert str(found) == "val: 19 of 20 rows have the same inputs as rows of train, such as row 0 as row 1"
    slow = make_parts({"train": Slow(), "test_b": Slow(18)})
    assert find_overlaps(slow, AT_START, fast_only=True) == []
    assert [each.num_same for each in find_overlaps(slow, AT_START, fast_only=False)] == [2]


def test_of_large_parts_only_some_rows_are_compared() -> None:
    parts = make_parts({"train": Arrays(torch.zeros(1000, 1)), "val": Arrays(torch.zeros(500, 1))})
    (found,) = find_overlaps(parts, 40, fast_only=True)
    assert found.num_looked_at == 10


@given(st.lists(st.tuples(st.floats(-2, 2, width=32), st.integers(-3, 3)), min_size=2, max_size=20))
def test_rows_have_the_same_hash_where_they_are_the_same(rows: list[tuple[float, int]]) -> None:
    data = Arrays(torch.tensor(rows, dtype=torch.float64))
    hashes = row_hashes(data, torch.arange(len(rows)))
    for i, one in enumerate(data.inputs):
        for j, other in enumerate(data.inputs):
            assert (hashes[i] == hashes[j]) == (one.numpy().tobytes() == other.numpy().tobytes())


class OneByOne(Dataset[Any]):
    """The same rows without `read_batch`."""

    def __init__(self, whole: Any) -> None:
        self.whole = whole

    def __len__(self) -> int:
        return len(self.whole)

    def __getitem__(self, row: int) -> Any:
        return self.whole[row]


@given(
    st.lists(st.lists(st.integers(0, 3), min_size=3, max_size=3), min_size=1, max_size=9), st.sampled_from(["i8", "f4"])
)
def test_rows_have_the_same_hash_however_they_are_read(rows: list[list[int]], kind: str) -> None:
    data = Arrays(np.array(rows, dtype=kind), np.arange(len(rows)))
    every = torch.arange(len(rows))
    assert np.array_equal(row_hashes(data, every), row_hashes(OneByOne(data), every))


@given(count=st.integers(6, 60), added=st.integers(1, 30), seed=st.integers(0, 5))
def test_a_part_keeps_its_rows_when_others_are_added_behind(count: int, added: int, seed: int) -> None:
    split, values = SplitSettings(val=0.3, test=0.2, seed=seed), torch.arange(float(count + added)).unsqueeze(1)
    parts = make_parts({"train": Arrays(values[:count])}, split)
    before = {name: part.row_ids() for name, part in parts.items()}
    grown = make_parts({"train": Arrays(values)}, split)
    assert keep_rows(fingerprint(parts), grown) == count
    assert all(torch.equal(grown[name].row_ids(), rows) for name, rows in before.items())
    assert data_changes(fingerprint(parts), grown) == []
    assert keep_rows(fingerprint(grown), grown) == 0


class Wide(Arrays):
    """Rows of 4 MiB; says how many bytes were read at once."""

    most = 0

    def read_batch(self, rows: Tensor) -> Any:
        batch = super().read_batch(rows)
        self.most = max(self.most, batch.nbytes)
        return batch


def test_rows_larger_than_memory_together_are_hashed_a_few_at_a_time() -> None:
    data = Wide(torch.zeros(1, 1 << 20).expand(40, -1))
    parts = make_parts({"train": data}, SplitSettings(val=0.2))
    fingerprint(parts)
    assert len(row_hashes(data, torch.arange(40))) == 40
    assert 0 < data.most <= 1 << 24


def test_a_run_that_goes_on_with_other_rows_is_refused_and_testing_says_so() -> None:
    values = torch.arange(30.0).unsqueeze(1)
    split = SplitSettings(val=0.2, test=0.2)
    parts = make_parts({"train": Arrays(values)}, split)
    before = fingerprint(parts)
    assert data_changes(before, make_parts({"train": Arrays(values.clone())}, split)) == []
    grown = make_parts({"train": Arrays(torch.arange(40.0).unsqueeze(1))}, split)
    assert data_changes(before, grown) == [
        "test has 8 rows, had 6", "train has 24 rows, had 18", "val has 8 rows, had 6"
    ]  # fmt: skip
    other = make_parts({"train": Arrays(values + 1)}, split)
    assert "train has the same rows with another content" in data_changes(before, other)
    reseeded = make_parts({"train": Arrays(values)}, SplitSettings(val=0.2, test=0.2, seed=1))
    assert "train holds other rows of the dataset" in data_changes(before, reseeded)
    with pytest.raises(
        CheckpointError, match=r"saved/x: the data have changed since it began: train has 24 rows, had 18"
    ):
        check_same_data(before, grown, "saved/x")
