"""What goes into a checkpoint comes back as it was, and what could not come back is refused by name."""

from __future__ import annotations

import math
import os
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from src.trainer.checkpoints.plain import check_plain
from src.trainer.checkpoints.store import CheckpointStore, load_checkpoint, read_manifest
from src.utils.errors import CheckpointError

DTYPES = [
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64,
    torch.bool, torch.complex64, torch.complex128,
]  # fmt: skip


def make_tensor(dtype: torch.dtype, shape: tuple[int, ...], form: str) -> Tensor:
    """Return bits that no rounding would survive, as they are, or as a view of more."""
    wide = tuple(2 * size for size in shape)
    num_bytes = math.prod(wide) * torch.empty((), dtype=dtype).element_size()
    raw = torch.arange(num_bytes, dtype=torch.int64).mul(37).remainder(251).to(torch.uint8)
    whole = (raw % 2).bool() if dtype == torch.bool else raw.view(dtype)
    whole = whole.reshape(wide)
    part = whole[tuple(slice(0, size) for size in shape)]
    return {"view": part, "whole": part.clone(), "turned": part.clone().permute(tuple(reversed(range(len(shape)))))}[
        form
    ]


tensors = st.builds(
    make_tensor,
    st.sampled_from(DTYPES),
    st.lists(st.integers(0, 3), max_size=3).map(tuple),
    st.sampled_from(["view", "whole", "turned"]),
)
keys = st.integers() | st.text(max_size=3) | st.booleans() | st.tuples(st.integers(), st.text(max_size=2))
leaves = (
    st.none() | st.booleans() | st.integers() | st.integers(2**63, 2**1999) | st.floats() | st.text()
    | st.sampled_from([*DTYPES, torch.Size((2, 3)), torch.device("cpu"), torch.device("cuda:1")])
    | st.binary(min_size=1) | tensors
)  # fmt: skip
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(keys, inner, max_size=3)
        | st.dictionaries(keys, inner, max_size=3).map(OrderedDict)
        | st.dictionaries(st.text(max_size=2), st.integers(), max_size=3).map(Counter)
        | st.sets(st.integers(), max_size=3)
    ),
    max_leaves=12,
)


def assert_same(one: Any, two: Any) -> None:
    """Compare down to the bits, kinds and the order of keys."""
    assert type(one) is type(two)
    if isinstance(one, dict):
        assert list(one) == list(two)
        assert list(map(type, one)) == list(map(type, two))
        for key in one:
            assert_same(one[key], two[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(two)
        for left, right in zip(one, two, strict=True):
            assert_same(left, right)
    elif isinstance(one, Tensor):
        assert (one.dtype, one.shape, one.stride()) == (two.dtype, two.shape, two.stride())
        assert bits(one) == bits(two)
    elif isinstance(one, float):
        assert one.hex() == two.hex()
    else:
        assert one == two


def bits(tensor: Tensor) -> bytes:
    flat = torch.empty(tensor.numel(), dtype=tensor.dtype)
    flat.view(tensor.shape).copy_(tensor)
    return bytes(flat.view(torch.uint8).numpy())


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=values)
def test_all_that_is_plain_comes_back_as_it_was(tmp_path: Path, value: Any) -> None:
    state = {"format": 1, "model": {}, "value": value}
    path = CheckpointStore(tmp_path).save(state, 1, is_best=False)
    assert_same(load_checkpoint(path), state)
    assert_same(torch.load(path, weights_only=True), state)


def test_tensors_that_share_memory_share_it_again_and_are_written_once(tmp_path: Path) -> None:
    weight = torch.arange(300_000, dtype=torch.float32)
    state = {"format": 1, "model": {"encoder": weight, "decoder": weight.view(300, 1000).T, "first": weight[:7]}}
    path = CheckpointStore(tmp_path).save(state, 1, is_best=False)
    assert 1_200_000 < path.stat().st_size < 1_203_000
    loaded = load_checkpoint(path)["model"]
    loaded["encoder"][1] = -5.0
    assert loaded["decoder"][1, 0] == loaded["first"][1] == -5.0


def loop() -> list[Any]:
    """Return a list that holds itself."""
    found: list[Any] = []
    found.append(found)
    return found


class Special(Tensor):
    """Nobody else knows this class."""


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (os.fsdecode(b"\xff.csv"), r"a\.b: text that is no Unicode"),
        ({"\udc80": 1}, r"a\.b \(key\): text that is no Unicode"),
        (2**2000, r"a\.b: a whole number may have 2000 bits, received 2001"),
        (loop(), r"a\.b\[0\]\[0\].*\.\.\.: is nested more than 100 deep, or holds itself"),
        (torch.zeros(1).expand(10**6), r"a\.b: a tensor that shows 4000000 bytes and holds 4, .*\.contiguous"),
        (torch.zeros(2, device="meta"), r"a\.b: a tensor without values"),
        (torch.zeros(2).as_subclass(Special), r"a\.b: a Special does not belong in a checkpoint; turn it"),
        (b"", r"a\.b: bytes without content"),
        (3j, r"a\.b: a complex does not"),
    ],
)
def test_what_torch_would_write_but_not_read_is_refused_with_its_place(value: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        check_plain({"a": {"b": value}})


def test_a_manifest_that_is_no_small_file_counts_as_missing(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.json")
    (tmp_path / "large.json").write_bytes(b'{"bytes": 1, "crc32": 1, "x": "' + bytes(10**6) + b'"}')
    (tmp_path / "deep.json").write_bytes(b"[" * 60_000)
    (tmp_path / "list.json").write_bytes(b"[]")
    (tmp_path / "odd.json").write_bytes(b'{"bytes": true, "crc32": 1}')
    assert [read_manifest(path) for path in tmp_path.iterdir()] == [None] * 5
