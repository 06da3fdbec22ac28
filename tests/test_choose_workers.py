"""`loader.num_workers: auto`: what is chosen follows from what was measured, and no batch changes by it."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from src.data.loading import choose_workers
from src.data.loading.choose_workers import workers_for
from src.data.loading.loader import Loader
from src.data.parts.part import Part
from src.data.settings import LoaderSettings
from tests.trainer_kit import NoisyRows


def loader_with(num_workers: Any, num_rows: int = 50) -> Loader:
    """Return a loader of rows that are random at each read."""
    settings = LoaderSettings(batch_size=4, num_workers=num_workers)
    return Loader(Part("train", NoisyRows(num_rows), seed=1), settings, shuffle=True, seed=1)


@pytest.mark.parametrize(
    ("reading_s", "other_s", "num_cores", "expected"),
    [
        (0.1, 1.9, 8, 0),  # not worth it
        (0.5, 1.5, 8, 1),
        (1.5, 0.5, 8, 3),
        (1.9, 0.1, 8, 7),  # more would be needed than there are
        (2.0, 0.0, 8, 7),
        (1.9, 0.1, 1, 0),  # a worker would take the core from training
    ],
)
def test_as_many_workers_as_keep_up_are_chosen_and_never_all_cores(
    reading_s: float, other_s: float, num_cores: int, expected: int
) -> None:
    assert workers_for(reading_s, other_s, num_cores) == expected


def test_workers_chosen_in_mid_epoch_change_no_batch(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = [list(loader_with(0).batches(epoch)) for epoch in range(2)]
    monkeypatch.setattr(choose_workers, "MEASURED_S", 0.0)
    monkeypatch.setattr(choose_workers, "WORTH_SHARE", 0.0)
    monkeypatch.setattr(choose_workers, "usable_cores", lambda: 2)
    chosen = loader_with("auto")
    assert chosen.num_workers == 0
    with caplog.at_level(logging.INFO):
        found = [list(chosen.batches(epoch)) for epoch in range(2)]
    assert chosen.num_workers == 1
    assert caplog.text.count("train: loader.num_workers: auto chose 1: reading took") == 1
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_an_epoch_too_short_to_measure_is_read_here_and_counts_with_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose_workers, "MEASURED_S", 0.0)
    monkeypatch.setattr(choose_workers, "MEASURED_BATCHES", 20)
    monkeypatch.setattr(choose_workers, "WORTH_SHARE", 2.0)
    chosen = loader_with("auto")
    assert len(list(chosen.batches(0))) == 13 and chosen._choice.is_open
    assert len(list(chosen.batches(1))) == 13 and not chosen._choice.is_open
    assert chosen.num_workers == 0
