"""Laws of splitting: every row in one part, classes in proportion, nothing empty, no learning from what is held out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.utils.data import IterableDataset, TensorDataset

from src.data.digits import Digits
from src.data.parts.divide import split_rows
from src.data.parts.split import fit_parts, make_parts, parts_state
from src.data.settings import SplitSettings
from src.utils.errors import ConfigError, DataError

SHARES = st.sampled_from([0.0, 0.1, 0.25, 0.3])


@given(num_rows=st.integers(1, 300), val=SHARES, test=SHARES, seed=st.integers(0, 5), classes=st.integers(0, 4))
def test_every_row_is_in_one_part_and_parts_have_their_share(
    num_rows: int, val: float, test: float, seed: int, classes: int
) -> None:
    targets = torch.arange(num_rows) % classes if classes else None
    try:
        parts = split_rows(num_rows, SplitSettings(val=val, test=test, seed=seed), targets)
    except (ConfigError, DataError):
        assume(False)
    assert sorted(torch.cat(list(parts.values())).tolist()) == list(range(num_rows))
    for name, share in (("val", val), ("test", test)):
        assert len(parts.get(name, [])) == round(share * num_rows)
    assert all(torch.equal(rows, rows.sort().values) for rows in parts.values())


@given(
    counts=st.lists(st.integers(10, 80), min_size=2, max_size=5),
    shares=st.sampled_from([(0.2, 0.0), (0.1, 0.1), (0.3, 0.2)]),
    seed=st.integers(0, 9),
)
def test_a_stratified_split_gives_each_part_each_class_in_proportion(
    counts: list[int], shares: tuple[float, float], seed: int
) -> None:
    targets = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    targets = targets[torch.randperm(len(targets), generator=torch.Generator().manual_seed(1))]
    parts = split_rows(len(targets), SplitSettings(val=shares[0], test=shares[1], stratify=True, seed=seed), targets)
    for name, rows in parts.items():
        for label, count in enumerate(counts):
            expected = count * len(rows) / len(targets)
            assert abs(int((targets[rows] == label).sum()) - expected) <= (1 if name == "val" else 2)


def test_the_split_is_a_function_of_its_own_seed() -> None:
    settings = SplitSettings(val=0.2, seed=3)
    first = split_rows(50, settings)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert torch.equal(first["val"], split_rows(50, settings)["val"])
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(first["val"], split_rows(50, SplitSettings(val=0.2, seed=4))["val"])


def test_classes_may_be_text_and_numbers_of_rows_may_be_whole() -> None:
    names = np.array(["cat", "dog"] * 10)
    parts = split_rows(20, SplitSettings(val=4, test=0.1, stratify=True), names)
    assert [len(rows) for rows in parts.values()] == [14, 4, 2]
    assert sorted(names[parts["val"]]) == ["cat", "cat", "dog", "dog"]


@pytest.mark.parametrize(
    ("num_rows", "settings", "message"),
    [
        (100, {"val": 0.7, "test": 0.5}, r"data.split \(val: 0.7, test: 0.5\): sums to 1.2, more than 1"),
        (100, {"val": 0.5, "test": 0.5}, r"takes 100 of 100 rows; train would have 0 rows"),
        (100, {"val": 1.0}, r"data.split.val: 1.0; use a share below 1 or a whole number of rows"),
        (100, {"val": 2.5}, r"data.split.val: 2.5; use a share below 1"),
        (5, {"val": 0.05}, r"data.split \(val: 0.05\): val would have 0 of 5 rows"),
        (10, {"test": 12}, r"data.split \(test: 12\): takes 12 of 10 rows; train would have 0 rows"),
    ],
)
def test_a_split_that_leaves_a_part_empty_is_refused_with_its_numbers(
    num_rows: int, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        split_rows(num_rows, SplitSettings(**settings))


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.rand(20), "are numbers such as .*, not classes"),
        (torch.zeros(20, 2), r"targets are \[20, 2\], not one class per row \[20\]"),
        (torch.tensor([1] + [0] * 19), "no row of the class of row 0 is left for train"),
    ],
)
def test_targets_that_are_no_classes_are_refused(targets: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        for seed in range(30):
            split_rows(20, SplitSettings(val=0.45, test=0.45, stratify=True, seed=seed), targets)


def plus_one(value: Any) -> Any:
    return value + 1


def test_each_part_has_its_own_transforms() -> None:
    parts = make_parts({"train": Digits()}, SplitSettings(val=0.1), [plus_one], {"val": []}, seed=0)
    assert float(parts["train"].read(0, [0])[0].min()) >= 1
    assert float(parts["val"].read(0, [0])[0].max()) <= 1
    assert [len(part) for part in parts.values()] == [1617, 180]


def test_parts_may_have_datasets_of_their_own_beside_a_split() -> None:
    data = TensorDataset(torch.arange(10))
    parts = make_parts({"train": data, "test_noisy": data}, SplitSettings(val=2))
    assert {name: len(part) for name, part in parts.items()} == {"train": 8, "val": 2, "test_noisy": 10}
    with pytest.raises(ConfigError, match=r"data.split.val: part val has its own dataset"):
        make_parts({"train": data, "val": data}, SplitSettings(val=2))


def test_what_cannot_be_divided_says_so() -> None:
    class Endless(IterableDataset[int]):
        def __iter__(self) -> Iterator[int]:
            yield from ()

    with pytest.raises(ConfigError, match="dataset Endless has no length; give val and test of their own"):
        make_parts({"train": Endless()}, SplitSettings(val=0.1))
    with pytest.raises(DataError, match="dataset TensorDataset offers no `targets`"):
        make_parts({"train": TensorDataset(torch.arange(10))}, SplitSettings(val=0.1, stratify=True))
    with pytest.raises(DataError, match="test: dataset TensorDataset has 0 rows"):
        make_parts({"test": TensorDataset(torch.zeros(0))})


class Centred:
    """Subtracts the mean of the rows it was fitted on."""

    def __init__(self, values: list[float]) -> None:
        self.values, self.mean = torch.tensor(values), 0.0

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, row: int) -> torch.Tensor:
        return self.values[row] - self.mean

    def fit(self, rows: torch.Tensor) -> None:
        self.mean = float(self.values[rows].mean())

    def state_dict(self) -> dict[str, float]:
        return {"mean": self.mean}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.mean = state["mean"]


def test_preprocessing_is_learned_from_the_training_rows_and_handed_on() -> None:
    data: Any = Centred([float(number) for number in range(10)])
    parts = make_parts({"train": data, "test": Centred([1.0])}, SplitSettings(val=0.5))  # type: ignore[dict-item]
    fit_parts(parts)
    assert data.mean == float(data.values[parts["train"].row_ids()].mean()) != 4.5
    assert parts["test"].dataset.mean == data.mean  # type: ignore[attr-defined]
    again = make_parts({"test": Centred([1.0])})  # type: ignore[dict-item]
    fit_parts(again, parts_state(parts))
    assert again["test"].dataset.mean == data.mean  # type: ignore[attr-defined]
