"""Where the time of a run went, on a clock that only the parts of these runs move; and traces of steps."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from src.compat.loader import TheirLoader
from src.data.loading.loader import Loader
from src.data.parts.part import Part
from src.data.settings import LoaderSettings
from src.logger.csv_file import CSVFile
from src.logger.logger import Logger
from src.model.metric import MetricSet
from src.trainer import account
from src.trainer.account import SAMPLE_EVERY_STEPS, verdict
from src.trainer.hooks import Hook
from src.trainer.profile import StepTrace
from src.trainer.settings import ProfileSettings, TrainerSettings
from src.trainer.task import Task
from src.trainer.trainer import Trainer
from src.utils.errors import ConfigError
from tests.trainer_kit import assert_same_weights, make_trainer, weights


class Clock:
    """Stands for `time` in the room of the account."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def takes(self, seconds: float) -> None:
        self.now += seconds


class Costly(Hook):
    """Takes a time of its own after each step, and when numbers are logged."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_step_end(self, trainer: Trainer) -> None:
        self.clock.takes(0.25)

    def on_log(self, trainer: Trainer, values: Any, epoch: int | None = None) -> None:
        self.clock.takes(5.0)


class Kept:
    def __init__(self) -> None:
        self.shares: list[dict[str, float]] = []

    def scalars(self, values: dict[str, float], step: int, epoch: int | None) -> None:
        shares = {name: value for name, value in values.items() if name.startswith("time/share/")}
        self.shares += [shares] if shares else []


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(account, "time", clock)
    return clock


def costly_trainer(clock: Clock, kept: Kept, folder: Path, **settings: Any) -> Trainer:
    """A step takes: data 4 s, forward 2, metrics 0.5, backward 1, optimizer 0.25, hooks 0.25; a validation 10."""

    class Rows(TensorDataset):
        def __getitems__(self, rows: list[int]) -> list[Any]:
            if len(self) == 16:
                clock.takes(4.0)
            return [self[row] for row in rows]

    class Model(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            clock.takes(2.0 if self.training else 10.0)
            outputs = super().forward(inputs)
            if outputs.requires_grad:
                outputs.register_hook(lambda _: clock.takes(1.0))
            return outputs

    class SGD(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            clock.takes(0.25)
            super().step(closure)

    def metric(outputs: Tensor, targets: Tensor) -> Tensor:
        clock.takes(0.5 if len(targets) == 4 else 0.0)
        return outputs.mean()

    def make_loader(name: str, num_rows: int) -> Loader:
        part = Part(name, Rows(torch.zeros(num_rows, 2), torch.zeros(num_rows, 1)))
        return Loader(part, LoaderSettings(batch_size=4 if name == "train" else 8), shuffle=False, seed=0)

    model = Model(2, 1)
    return Trainer(
        Task(nn.MSELoss()),
        model,
        make_loader("train", 16),
        {"optimizer": SGD(model.parameters(), lr=0.0)},
        TrainerSettings(**{"epochs": 50, "log_every_steps": 1000, **settings}),
        val_loaders={"val": make_loader("val", 8)},
        metrics=MetricSet({"m": metric}),
        logger=Logger([kept, CSVFile(folder / "metrics.csv")]),
        checkpoints=folder,
        hooks=[Costly(clock)],
    )


def test_every_second_is_told_where_it_went(clock: Clock, tmp_path: Path) -> None:
    kept = Kept()
    costly_trainer(clock, kept, tmp_path).fit()
    epoch_s = 4 * 8.0 + 10.0 + 5.0
    expected = {
        "data": 16, "forward": 8, "backward": 4, "optimizer": 1, "metrics": 2, "hooks": 1, "copy": 0,
        "logging": 5, "evaluation": 10, "saving": 0,
    }  # fmt: skip
    for shares in kept.shares[1:]:  # all but the account in which the first step is left out
        assert math.isclose(sum(shares.values()), 1.0)
        assert shares == pytest.approx({f"time/share/{name}": s / epoch_s for name, s in expected.items()})
    assert len(kept.shares) > 3
    assert "share" not in (tmp_path / "metrics.csv").read_text()  # it would differ from run to run


def test_the_log_has_one_line_and_another_for_each_new_advice(
    clock: Clock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    costly_trainer(clock, Kept(), tmp_path, log_every_steps=1).fit()  # of each 52 s, 25 are logging
    told = [record.message for record in caplog.records if record.message.startswith("time")]
    assert told[0].startswith("time   ")
    advices = [line.partition("%")[2].partition("(")[0] for line in told]
    assert len(advices) == len(set(advices))
    assert " logging: raise trainer.log_every_steps " in advices


def test_a_sampled_step_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for every in (2, 10_000):
        monkeypatch.setattr(account, "SAMPLE_EVERY_STEPS", every)
        monkeypatch.setattr(account, "SAMPLE_EVERY_S", 0.0)
        trainer = make_trainer(ema_decay=0.9, max_grad_norm=1.0)
        trainer.fit()
        found.append(weights(trainer))
    assert_same_weights(*found)


def test_only_one_step_of_many_is_sampled_however_short_epochs_are() -> None:
    trainer = make_trainer(epochs=30)  # of 7 steps
    trainer.fit()
    num_samples = sum(name == "data" for name, _ in trainer.account._stamps)
    assert 1 <= num_samples <= 1 + (30 * 7 - 2) // SAMPLE_EVERY_STEPS
    assert len(trainer.account._stamps) <= 12 * num_samples


def test_a_step_that_fails_is_no_longer_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(account, "SAMPLE_EVERY_STEPS", 2)
    monkeypatch.setattr(account, "SAMPLE_EVERY_S", 0.0)
    trainer = make_trainer()
    unwatched = trainer.step.make
    for _ in zip(range(2), trainer.account.groups(range(9), 1), strict=False):
        pass  # left in the middle of a sample
    assert trainer.step.make == unwatched


def test_a_loader_that_a_project_built_by_itself_is_accounted_for_too(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(account, "REPORT_EVERY_S", 0.0)
    inputs = torch.zeros(40, 2)
    loader = TheirLoader("train", DataLoader(TensorDataset(inputs, inputs[:, :1].clone()), batch_size=8))
    model = nn.Linear(2, 1)
    optimizers: Any = {"optimizer": torch.optim.SGD(model.parameters(), lr=0.0)}
    Trainer(Task(nn.MSELoss()), model, loader, optimizers, TrainerSettings(epochs=2)).fit()
    assert any(message.startswith("time   ") for message in caplog.messages)


SHARES = {"data": 0.61, "forward": 0.2, "backward": 0.15, "optimizer": 0.04}


@pytest.mark.parametrize(
    ("shares", "workers", "problem", "line"),
    [
        (SHARES, 0, "data", "61 % waiting for data: raise loader.num_workers, or set it to auto (20 % forward, 15 % "
         "backward)"),
        ({"forward": 0.4, "backward": 0.5, "data": 0.1}, 0, "", "50 % backward, 40 % forward, 10 % waiting for data"),
        ({"saving": 0.2, "forward": 0.8}, 0, "saving", "20 % saving: save less often: trainer.save_every_epochs, "
         "trainer.save_every_steps (80 % forward)"),
        ({"data": 1.0}, 1, "data", "100 % waiting for data: 1 worker does not keep up: make reading a row cheaper, or "
         "read whole batches (read_batch)"),
        ({"data": 1.0}, 9999, "data", "100 % waiting for data: 9999 workers do not keep up: make reading a row "
         "cheaper, or read whole batches (read_batch)"),
    ],
)  # fmt: skip
def test_the_verdict_names_what_would_help(
    shares: dict[str, float], workers: int, problem: str, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(account, "usable_cores", lambda: 2)
    assert verdict(shares, workers) == (problem, line)


def test_a_trace_holds_the_steps_that_were_asked_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    make_trainer(hooks=(StepTrace(3, 5, tmp_path / "profile"),)).fit()
    path = tmp_path / "profile" / "steps-3-5.pt.trace.json"
    events = json.loads(path.read_text())["traceEvents"]
    assert sum(event["name"] == "Optimizer.step#AdamW.step" for event in events) == 3
    assert any("steps-3-5.pt.trace.json; https://ui.perfetto.dev shows it" in message for message in caplog.messages)


def test_a_run_that_ends_within_a_trace_writes_it(tmp_path: Path) -> None:
    make_trainer(hooks=(StepTrace(1, 500, tmp_path),), epochs=1).fit()
    assert (tmp_path / "steps-1-500.pt.trace.json").stat().st_size > 0


def test_a_trace_that_cannot_be_written_is_told_and_training_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "profile").write_text("a file where the folder should be")
    trainer = make_trainer(hooks=(StepTrace(1, 1, tmp_path / "profile"),), epochs=1)
    trainer.fit()
    assert trainer.progress.epoch == 1
    assert any("the trace cannot be written" in message for message in caplog.messages)


@pytest.mark.parametrize("steps", [(3,), (5, 4), (1, 2, 3)])
def test_steps_to_trace_are_a_first_and_a_last(steps: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"trainer\.profile\.steps: a first and a last step .* found \["):
        ProfileSettings(steps)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_nothing_waits_in_a_sampled_step_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(account, "SAMPLE_EVERY_STEPS", 2)
    monkeypatch.setattr(account, "SAMPLE_EVERY_S", 0.0)
    cuda, kept = torch.device("cuda"), Kept()
    monkeypatch.setattr(account, "REPORT_EVERY_S", 0.0)
    inputs = torch.randn(256, 8)
    part = Part("train", TensorDataset(inputs, inputs[:, :1].clone()))
    loader = Loader(part, LoaderSettings(batch_size=16), shuffle=True, seed=0, pin_memory=True)
    model = nn.Linear(8, 1).to(cuda)
    optimizers: Any = {"optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}
    settings = TrainerSettings(epochs=3, log_every_steps=1000)
    trainer = Trainer(Task(nn.MSELoss()), model, loader, optimizers, settings, logger=Logger([kept]), device=cuda)
    make = trainer.step.make

    def strictly(batches: Any) -> None:
        torch.cuda.set_sync_debug_mode("error")
        try:
            make(batches)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    trainer.step.make = strictly
    trainer.fit()
    assert sum(kept.shares[-1].values()) == pytest.approx(1.0, abs=0.2)
