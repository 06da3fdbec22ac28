"""The trainer: exact numbers, exact counts, and what is kept."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import IterableDataset, TensorDataset

from src.data.loading.loader import Loader
from src.data.parts.part import Part
from src.data.settings import LoaderSettings
from src.model.metric import MetricSet, accuracy
from src.trainer import schedule
from src.trainer.checkpoints.resume import open_checkpoint
from src.trainer.compile_settings import CompileSettings
from src.trainer.evaluate import evaluate
from src.trainer.hooks import Console, Hook
from src.trainer.meters import Meters
from src.trainer.monitor import Monitor
from src.trainer.rehearsal.rehearse import rehearse
from src.trainer.schedule import Schedule, rates_over, run_length
from src.trainer.settings import TrainerSettings
from src.trainer.task import StepOutput, Task
from src.trainer.trainer import Trainer
from src.utils.errors import CheckpointError, ConfigError, DataError, NumericsError, ResourceError
from tests.trainer_kit import DropoutNet, make_trainer

CPU = torch.device("cpu")


def rows(num_rows: int = 1005, num_classes: int = 4) -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(num_rows, 5, generator=generator)
    return TensorDataset(inputs, torch.randint(num_classes, (num_rows,), generator=generator))


def loader(data: Any, batch_size: int = 100, shuffle: bool = False) -> Loader:
    return Loader(Part("val", data), LoaderSettings(batch_size=batch_size), shuffle=shuffle, seed=0)


CRITERIA = [
    nn.CrossEntropyLoss(),
    nn.CrossEntropyLoss(weight=torch.tensor([0.1, 2.0, 5.0, 1.0])),
    nn.CrossEntropyLoss(ignore_index=2),
    nn.CrossEntropyLoss(weight=torch.tensor([0.1, 2.0, 5.0, 1.0]), ignore_index=1),
    nn.CrossEntropyLoss(label_smoothing=0.1),
    nn.CrossEntropyLoss(reduction="sum"),
    nn.MultiMarginLoss(),
]


@pytest.mark.parametrize("criterion", CRITERIA, ids=str)
def test_loss_and_metrics_in_batches_equal_the_full_batch_value(criterion: nn.Module) -> None:
    torch.manual_seed(0)
    data, model = rows(), nn.Linear(5, 4)
    values = evaluate(Task(criterion), model, loader(data), Meters(MetricSet({"accuracy": accuracy}), CPU))
    inputs, targets = data.tensors
    with torch.no_grad():
        assert values["loss"] == pytest.approx(float(criterion(model(inputs), targets)), rel=1e-6)
        expected = float((model(inputs).argmax(1) == targets).double().mean())
    assert values["accuracy"] == pytest.approx(expected, rel=1e-7)


def test_evaluation_leaves_frozen_modules_frozen_and_the_rest_training() -> None:
    model = DropoutNet()
    model[1].eval()
    data = TensorDataset(torch.randn(4, 6), torch.zeros(4, dtype=torch.long))
    evaluate(Task(nn.CrossEntropyLoss()), model, loader(data), Meters(MetricSet({}), CPU))
    assert [module.training for module in model] == [True, False, True, True, True]


def train_linear(data: TensorDataset, batch_size: int, accumulate_steps: int, criterion: nn.Module) -> Tensor:
    torch.manual_seed(0)
    model = nn.Linear(5, 4).double()
    data = TensorDataset(data.tensors[0].double(), data.tensors[1])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    settings_ = TrainerSettings(epochs=2, accumulate_steps=accumulate_steps)
    Trainer(Task(criterion), model, loader(data, batch_size), {"optimizer": optimizer}, settings_).fit()
    return model.weight.detach()


@settings(max_examples=12, deadline=None)
@given(num_rows=st.integers(5, 40), batch_size=st.integers(1, 9), accumulate_steps=st.integers(1, 4))
@pytest.mark.parametrize("weighted", [False, True])
def test_accumulated_steps_equal_large_batches_also_when_the_last_is_short(
    weighted: bool, num_rows: int, batch_size: int, accumulate_steps: int
) -> None:
    criterion = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5, 3.0]).double() if weighted else None)
    small = train_linear(rows(num_rows), batch_size, accumulate_steps, criterion)
    large = train_linear(rows(num_rows), batch_size * accumulate_steps, 1, criterion)
    assert torch.allclose(small, large, rtol=1e-9, atol=1e-12)


def test_training_equals_a_hand_written_loop_bit_for_bit() -> None:
    trainer = make_trainer(schedule="OneCycleLR")
    trainer.fit()
    other = make_trainer(schedule="OneCycleLR")
    model, optimizer = other.model, other.optimizers["optimizer"]
    scheduler = other.schedules["lr_scheduler"].scheduler
    assert scheduler is not None
    for epoch in range(5):
        for inputs, targets in other.train_loader.batches(epoch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
            scheduler.step()
    for name, value in model.state_dict().items():
        assert torch.equal(value, trainer.model.state_dict()[name]), name


@pytest.mark.parametrize(("max_steps", "epochs"), [(1, 1), (7, 1), (8, 2), (16, 3)])
def test_max_steps_means_exactly_that_many_updates(tmp_path: Path, max_steps: int, epochs: int) -> None:
    trainer = make_trainer(tmp_path, epochs=None, max_steps=max_steps)
    trainer.fit()
    assert trainer.progress.step == max_steps
    assert trainer.progress.epoch == (epochs if max_steps % 7 == 0 else epochs - 1)
    assert "val/loss" in trainer.values
    assert open_checkpoint(tmp_path)[1]["progress"]["step"] == max_steps


def test_a_schedule_of_exactly_n_steps_over_n_steps_does_not_raise() -> None:
    trainer = make_trainer(num_steps=35)
    trainer.fit()
    assert trainer.progress.step == 35


def test_data_without_length_train_by_steps() -> None:
    class Endless(IterableDataset[tuple[Tensor, Tensor]]):
        def __iter__(self) -> Any:
            generator = torch.Generator().manual_seed(0)
            while True:
                yield torch.randn(5, generator=generator), torch.tensor(1)

    model = nn.Linear(5, 4)
    part = Loader(Part("train", Endless()), LoaderSettings(batch_size=4), shuffle=False, seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = Trainer(Task(nn.CrossEntropyLoss()), model, part, {"optimizer": optimizer}, TrainerSettings(max_steps=9))
    trainer.fit()
    assert (trainer.progress.step, trainer.progress.samples) == (9, 36)


class Watching(Hook):
    def __init__(self) -> None:
        self.events: list[str] = []

    def on_step_end(self, trainer: Trainer) -> None:
        self.events.append("step")

    def on_evaluation_end(self, trainer: Trainer, values: Any) -> None:
        self.events.append("evaluation")

    def on_epoch_end(self, trainer: Trainer, values: Any) -> None:
        self.events.append("epoch")


def test_evaluation_by_steps_happens_at_just_those_steps() -> None:
    hook = Watching()
    make_trainer(hooks=(hook,), epochs=None, max_steps=9, eval_every_steps=4).fit()
    assert hook.events == [
        *["step"] * 4,
        "evaluation",
        *["step"] * 3,
        "epoch",
        "step",
        "evaluation",
        "step",
        "evaluation",
    ]


def test_evaluations_within_an_epoch_are_called_by_their_step(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "src"):
        trainer = make_trainer(hooks=(Console(has_bar=False),), epochs=2, max_steps=9, eval_every_steps=4)
        trainer.fit()
    places = [" ".join(line.split("  train")[0].split()) for line in caplog.messages if "train" in line]
    assert places == ["step 4", "epoch 1/2", "step 8", "step 9"]
    assert trainer.monitor.best_at in ("step 4", "step 8", "step 9")


def test_best_is_saved_whenever_best_though_saving_is_rare(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, save_every_epochs=100, monitor="min val/loss")
    trainer.fit()
    best = open_checkpoint(tmp_path, "best")[1]
    assert best["progress"]["epoch"] == trainer.monitor.best_epoch
    assert best["monitor"]["best"] == trainer.monitor.best


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=30), st.integers(1, 4))
def test_patience_is_the_number_of_evaluations_without_strict_improvement(values: list[float], patience: int) -> None:
    monitor = Monitor("max val/x", patience)
    best, waited = -math.inf, 0
    for epoch, value in enumerate(values):
        is_best = monitor.update({"val/x": value}, epoch)
        assert is_best == (value > best)
        best, waited = max(best, value), 0 if value > best else waited + 1
        assert monitor.is_exhausted == (waited >= patience)
    assert monitor.best == best


def test_a_constant_metric_with_patience_3_stops_after_4_evaluations_and_nan_is_no_improvement() -> None:
    monitor = Monitor("min val/loss", 3)
    stops = [monitor.update({"val/loss": value}, 0) or monitor.is_exhausted for value in (1.0, 1.0, math.nan, 1.0)]
    assert stops == [True, False, False, True]
    assert not any(Monitor("min val/loss", 0).is_exhausted for _ in range(9))


def test_ema_is_the_average_it_says_and_is_what_is_evaluated() -> None:
    decay = 0.9
    history: list[Tensor] = []

    class Recording(Hook):
        def on_step_end(self, trainer: Trainer) -> None:
            history.append(trainer.model[0].weight.detach().clone())  # type: ignore[index]

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4))
    expected = model[0].weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    trainer = Trainer(
        Task(nn.CrossEntropyLoss()), model, loader(rows(40), 10), {"optimizer": optimizer},
        TrainerSettings(epochs=2, ema_decay=decay), val_loaders={"val": loader(rows(30))}, hooks=[Recording()],
    )  # fmt: skip
    values = trainer.fit()
    for weight in history:
        expected = decay * expected + (1 - decay) * weight
    assert trainer.ema is not None
    assert torch.allclose(trainer.ema.model[0].weight, expected, atol=1e-6)  # type: ignore[index]
    again = evaluate(trainer.task, trainer.ema.model, loader(rows(30)), Meters(MetricSet({}), CPU))
    assert values["val/loss"] == again["loss"]


def test_warm_up_rises_linearly_to_the_rate_and_then_the_schedule_takes_over() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    decay = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    schedule = Schedule(optimizer, decay, "step", warmup_steps=4)
    rates = []
    for _ in range(6):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.after_step()
    assert rates == pytest.approx([0.25, 0.5 * 0.5, 0.75 * 0.25, 0.125, 0.0625, 0.03125])


def test_a_nan_in_the_loss_stops_the_run_names_the_step_and_is_never_saved(tmp_path: Path) -> None:
    class Breaks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.calls = nn.Linear(6, 3), 0

        def forward(self, inputs: Tensor) -> Tensor:
            self.calls += self.training
            outputs: Tensor = self.layer(inputs)
            return outputs * math.nan if self.calls == 10 else outputs

    trainer = make_trainer(tmp_path)
    trainer.step.forward = trainer.model = Breaks()
    with pytest.raises(NumericsError, match=r"step 10: the loss is nan at lr [\d.e-]+; scale the inputs"):
        trainer.fit()
    state = open_checkpoint(tmp_path)[1]
    assert state["progress"]["step"] == 7


def test_nan_in_the_data_is_called_by_its_name() -> None:
    data = rows(8)
    data.tensors[0][2, 1] = math.nan
    with pytest.raises(NumericsError, match="the batch itself holds nan or inf, first in its row 0"):
        rehearse(Task(nn.CrossEntropyLoss()), nn.Linear(5, 4), loader(TensorDataset(*data[2:4])), CPU)


@pytest.mark.parametrize(
    ("model", "targets", "message"),
    [
        (nn.Linear(7, 4), torch.zeros(8).long(), r"the model Linear fails on a batch of \[2, 5\] float32, \[2\] int64"),
        (nn.Linear(5, 4), torch.full((8,), 9), r"label 9 is out of range: the model has 4 outputs"),
        (nn.Linear(5, 4), torch.full((8,), -1), r"label -1 is out of range"),
        (nn.Linear(5, 4), torch.zeros(8), r"CrossEntropyLoss needs whole-number labels"),
    ],
)
def test_data_that_do_not_fit_model_or_loss_are_refused_before_training(
    model: nn.Module, targets: Tensor, message: str
) -> None:
    data = TensorDataset(torch.randn(8, 5), targets)
    with pytest.raises(DataError, match=message):
        rehearse(Task(nn.CrossEntropyLoss()), model, loader(data), CPU)


def test_shapes_that_would_broadcast_are_refused() -> None:
    data = TensorDataset(torch.randn(8, 5), torch.randn(8))
    with pytest.raises(DataError, match=r"outputs have shape \[2, 1\] and targets \[2\]; they must be equal"):
        rehearse(Task(nn.MSELoss()), nn.Linear(5, 1), loader(data), CPU)


def squared(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().mean()


def squared_of_all(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.reshape(-1) - targets.reshape(-1)).square().mean()


class OwnStep(Task):
    def step(self, model: Any, batch: Any) -> StepOutput:
        outputs = model(batch[0])
        return StepOutput(nn.functional.mse_loss(outputs, batch[1]), outputs, None, len(outputs))


def test_losses_of_ones_own_that_broadcast_are_refused_and_those_that_do_not_are_fine() -> None:
    data, model = TensorDataset(torch.randn(8, 5), torch.randn(8)), nn.Linear(5, 1)
    for task in (Task(squared), Task({"a": (squared, 1.0)})):
        with pytest.raises(DataError, match=r"outputs of shape \[2, 1\] against targets of shape \[2\] to .*; make"):
            rehearse(task, model, loader(data), CPU)
    for task in (Task(nn.functional.mse_loss), Task({"a": (nn.L1Loss(), 0.5)}), OwnStep()):
        with pytest.raises(DataError, match=r"Using a target size .* different to the input size|they must be equal"):
            rehearse(task, model, loader(data), CPU)
    rehearse(Task(squared_of_all), model, loader(data), CPU)
    equal = TensorDataset(data.tensors[0], data.tensors[1][:, None])
    for task in (Task(squared), Task(nn.functional.mse_loss), OwnStep()):
        rehearse(task, model, loader(equal), CPU)


def test_rehearsal_changes_neither_model_nor_random_streams() -> None:
    model = DropoutNet()
    before, stream = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    rehearse(Task(nn.CrossEntropyLoss()), model, make_trainer().train_loader, CPU)
    stream = torch.get_rng_state()
    rehearse(Task(nn.CrossEntropyLoss()), model, make_trainer_loader(), CPU)
    assert torch.equal(stream, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def make_trainer_loader() -> Loader:
    return loader(TensorDataset(torch.arange(12.0).reshape(2, 6), torch.tensor([0, 1])))


def test_two_failed_saves_are_forgiven_and_the_third_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(tmp_path)
    assert trainer.saver.store is not None
    calls = []

    def fail(*_: object) -> None:
        calls.append(1)
        raise ResourceError("the disk is full")

    monkeypatch.setattr(trainer.saver.store, "save", fail)
    with pytest.raises(ResourceError, match="the disk is full"):
        trainer.fit()
    assert len(calls) == 3
    assert trainer.progress.epoch == 3


def test_a_hook_may_ask_to_stop() -> None:
    class StopAfterTwo(Hook):
        def on_epoch_end(self, trainer: Trainer, values: Any) -> None:
            if trainer.progress.epoch == 2:
                trainer.stop("enough")

    trainer = make_trainer(hooks=(StopAfterTwo(),))
    trainer.fit()
    assert trainer.progress.epoch == 2


def test_a_task_may_own_the_whole_update() -> None:
    class TwoSteps(Task):
        def update(self, model: Any, batch: Any, optimizers: Any) -> StepOutput:
            for _ in range(2):
                output = self.step(model, batch)
                optimizers["optimizer"].zero_grad()
                output.loss.backward()
                optimizers["optimizer"].step()
            return output

    torch.manual_seed(0)
    model = nn.Linear(5, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = Trainer(
        TwoSteps(nn.CrossEntropyLoss()),
        model,
        loader(rows(20), 10),
        {"optimizer": optimizer},
        TrainerSettings(epochs=1),
    )
    trainer.fit()
    torch.manual_seed(0)
    other = nn.Linear(5, 4)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    for inputs, targets in loader(rows(20), 10).batches():
        for _ in range(2):
            optimizer.zero_grad()
            nn.functional.cross_entropy(other(inputs), targets).backward()
            optimizer.step()
    assert torch.equal(model.weight, other.weight)


def test_a_compiled_model_trains_evaluates_and_saves_under_its_own_names(tmp_path: Path) -> None:
    eager = make_trainer(tmp_path / "a", epochs=2).fit()
    assert make_trainer(tmp_path / "b", epochs=2, compile=CompileSettings(backend="eager")).fit() == pytest.approx(
        eager, rel=1e-5
    )
    names = [list(open_checkpoint(tmp_path / name)[1]["model"]) for name in "ab"]
    assert names[0] == names[1]


def test_bf16_trains_on_a_cpu_and_fp16_is_refused(tmp_path: Path) -> None:
    assert math.isfinite(make_trainer(tmp_path, epochs=1, amp_dtype="bf16").fit()["val/loss"])
    with pytest.raises(ConfigError, match="fp16 needs a GPU; use bf16"):
        make_trainer(amp_dtype="fp16")


@pytest.mark.parametrize(
    ("name", "args", "expected"),
    [
        ("PolynomialLR", {}, 30),
        ("LinearLR", {"start_factor": 1.0, "end_factor": 0.0}, 30),
        ("LinearLR", {}, None),  # rises: torch's own default, a warm-up of 5
        ("ConstantLR", {}, None),
    ],
)
def test_schedules_that_fall_to_the_end_are_as_long_as_the_run(name: str, args: Any, expected: int | None) -> None:
    assert run_length(name, args, "epoch", 10, 300).get("total_iters") == expected
    by_step = run_length(name, args, "step", 10, 300).get("total_iters")
    assert by_step == (300 if expected else None)
    assert "total_iters" not in run_length(name, args, None, math.inf, 300)
    assert run_length(name, args, None, math.inf, math.inf) == {}


SCHEDULES: dict[str, Any] = {
    "OneCycleLR": {"max_lr": 1.0, "total_steps": 200},
    "CosineAnnealingLR": {"T_max": 200},
    "PolynomialLR": {"total_iters": 150, "power": 2.0},
    "LinearLR": {"total_iters": 90},
    "ExponentialLR": {"gamma": 0.99},
    "MultiStepLR": {"milestones": [40, 120]},
    "CyclicLR": {"base_lr": 0.1, "max_lr": 1.0, "step_size_up": 30},
    "LambdaLR": {"lr_lambda": lambda move: 1 / (1 + move)},
    "CosineAnnealingWarmRestarts": {"T_0": 50},
}


@pytest.mark.filterwarnings("ignore")  # torch misses the optimizer's steps
@pytest.mark.parametrize("every", ["step", "epoch"])
@pytest.mark.parametrize("name", [*SCHEDULES, ""])
def test_a_long_schedule_is_drawn_as_it_would_be_followed(
    name: str, every: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drawn() -> list[float]:
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5, momentum=0.9)
        scheduler = getattr(torch.optim.lr_scheduler, name)(optimizer, **SCHEDULES[name]) if name else None
        own = Schedule(optimizer, scheduler, every, warmup_steps=12)
        return rates_over({"optimizer": optimizer}, {"lr_scheduler": own}, 200, 10)["lr"]

    followed = drawn()
    monkeypatch.setattr(schedule, "MAX_FOLLOWED", 50)
    monkeypatch.setattr(schedule, "NUM_SAMPLED", 30)
    sampled = drawn()
    if name == "CosineAnnealingWarmRestarts" and every == "step":
        assert sampled == []  # it has no formula
    else:
        assert sampled == pytest.approx([followed[index * 199 // 29] for index in range(30)], rel=1e-6)


def test_a_run_made_longer_takes_up_the_curve_of_the_new_length() -> None:
    def rates(lengths: list[int]) -> list[float]:
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        seen: list[float] = []
        state = None
        for length in lengths:
            cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=length)
            schedule = Schedule(optimizer, cosine, "step")
            if state is not None:
                schedule.load_state_dict(state)
            while schedule.num_steps < length:
                seen.append(optimizer.param_groups[0]["lr"])
                optimizer.step()
                schedule.after_step()
            state = schedule.state_dict()
        return seen

    assert rates([4, 10])[4:] == pytest.approx(rates([10])[4:])


def test_an_epoch_that_ends_with_an_evaluation_by_steps_is_one_record(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, eval_every_steps=5, epochs=5)
    trainer.fit()
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    steps = [int(line.split(",")[1]) for line in lines[1:]]
    assert steps == [5, 7, 10, 14, 15, 20, 21, 25, 28, 30, 35]


def test_a_hook_that_comes_after_the_trainer_was_made_is_told_all_events() -> None:
    class Counting(Hook):
        def __init__(self) -> None:
            self.steps = self.ends = 0

        def on_step_end(self, trainer: Trainer) -> None:
            self.steps += 1

        def on_fit_end(self, trainer: Trainer) -> None:
            self.ends += 1

    trainer, late = make_trainer(), Counting()
    trainer.hooks.append(late)
    trainer.fit()
    assert (late.steps, late.ends) == (trainer.progress.step, 1)


def test_a_folder_of_runs_is_answered_with_its_newest(tmp_path: Path) -> None:
    make_trainer(tmp_path / "name" / "run").fit()
    with pytest.raises(CheckpointError, match=r"a folder of runs; the newest with a checkpoint is .*name/run$"):
        open_checkpoint(tmp_path / "name")
    (tmp_path / "quite_gone.py").touch()
    with pytest.raises(CheckpointError, match=r"no such run(?!.*\.py)"):
        open_checkpoint(tmp_path / "quite_gone.pth")
