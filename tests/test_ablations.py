"""Leave one memory out of the resume: the comparison with an undisturbed run must notice, or it would be blind."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import src.data.loading.loader
import src.data.loading.order
import src.data.parts.part
from src.trainer.checkpoints.resume import open_checkpoint
from src.trainer.trainer import Trainer
from tests.chaos import unequal
from tests.trainer_kit import make_trainer

STOP_AT = 18  # in mid-epoch, the third of five


def add_noise(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    """Draw from numpy's and python's global streams, as dropout draws from torch's."""
    return (inputs[0] + 0.1 * random.random() + 0.1 * float(np.random.rand()),) if module.training else inputs


def build(folder: Path, stop_at: int | None, num_workers: int) -> Trainer:
    trainer = make_trainer(folder, stop_at, num_workers, ema_decay=0.9, accumulate_steps=1)
    trainer.model.register_forward_pre_hook(add_noise)  # type: ignore[arg-type]
    trainer.step.make = trainer.step._make = trainer.step._update  # the one that scales
    trainer.step.scaler = trainer.stateful["scaler"] = torch.amp.GradScaler("cpu", 4.0, growth_interval=11)
    return trainer


def end_state(trainer: Trainer, folder: Path) -> dict[str, Any]:
    state = trainer.state_dict()
    names = ("model", "ema", "optimizer", "lr_scheduler", "scaler", "progress", "monitor", "rng")
    return {**{name: state[name] for name in names}, "csv": (folder / "metrics.csv").read_text()}


def differences(folder: Path, drop: Callable[[Trainer, dict[str, Any]], None], num_workers: int) -> set[str]:
    """Return what of an undisturbed run a stopped and resumed one does not have, after `drop` spoilt the resume."""
    torch.set_num_threads(1)
    straight = build(folder / "a", None, num_workers)
    straight.fit()
    build(folder / "b", STOP_AT, num_workers).fit()
    resumed = build(folder / "b", None, num_workers)
    fresh = copy.deepcopy(resumed.state_dict())
    resumed.load_state_dict(open_checkpoint(folder / "b")[1])
    drop(resumed, fresh)
    resumed.fit()
    one, two = end_state(straight, folder / "a"), end_state(resumed, folder / "b")
    return {path.split(".")[0] for name in one for path in unequal(one[name], two[name], name)}


def forget(name: str) -> Callable[[Trainer, dict[str, Any]], None]:
    """Put one owner back to what it was before the resume; `rng.numpy` names one of the random streams."""
    owner, _, part = name.partition(".")

    def drop(trainer: Trainer, fresh: dict[str, Any]) -> None:
        state = {**trainer.stateful[owner].state_dict(), part: fresh[owner][part]} if part else fresh[owner]
        trainer.stateful[owner].load_state_dict(state)

    return drop


def keep_all(trainer: Trainer, fresh: dict[str, Any]) -> None:
    pass


def forget_position(trainer: Trainer, fresh: dict[str, Any]) -> None:
    trainer.progress.batch = 0


def order_of_global_stream(order: Any, epoch: int, num_rows: int) -> Tensor:
    return torch.randperm(num_rows)


@contextmanager
def unseeded(seed: int | None = None) -> Iterator[None]:
    yield


def test_nothing_left_out_nothing_differs(tmp_path: Path) -> None:
    assert differences(tmp_path, keep_all, num_workers=0) == set()


@pytest.mark.parametrize(
    ("name", "noticed_by"),
    [
        ("rng.torch", "model"),
        ("rng.numpy", "model"),
        ("rng.python", "model"),
        ("optimizer", "model"),
        ("lr_scheduler", "model"),
        ("ema", "ema"),
        ("scaler", "scaler"),
        ("meters", "csv"),
        ("logger", "csv"),
    ],
)
def test_what_is_not_put_back_is_noticed(name: str, noticed_by: str, tmp_path: Path) -> None:
    assert noticed_by in differences(tmp_path, forget(name), num_workers=0)


def test_a_forgotten_position_is_noticed(tmp_path: Path) -> None:
    assert "model" in differences(tmp_path, forget_position, num_workers=0)


def test_an_order_drawn_from_the_global_stream_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(src.data.loading.order.RowOrder, "_shuffled", order_of_global_stream)
    assert "model" in differences(tmp_path, keep_all, num_workers=0)


def test_samples_without_a_seed_of_their_own_are_noticed_with_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(src.data.parts.part, "forked_rng", unseeded)
    monkeypatch.setattr(src.data.parts.part, "seed_host", lambda seed: None)
    assert "model" in differences(tmp_path, keep_all, num_workers=2)


@pytest.mark.full  # up to a minute, as torch then imports its compiler anew at each step
def test_a_loader_that_shares_the_runs_generator_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = src.data.loading.loader.Loader._make_torch_loader

    def shared(loader: src.data.loading.loader.Loader) -> DataLoader[Any]:
        torch_loader = make(loader)
        torch_loader.generator = torch.default_generator
        return torch_loader

    monkeypatch.setattr(src.data.loading.loader.Loader, "_make_torch_loader", shared)
    assert "model" in differences(tmp_path, keep_all, num_workers=1)
