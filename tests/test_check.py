"""`--check`: what it tells, what it warns of, and that it leaves nothing behind."""

from __future__ import annotations

import re
import tempfile
import warnings
from pathlib import Path

import pytest
import torch

import train
from src.config import load_config
from src.config.registry import use_folder
from src.data.loading.choose_workers import usable_cores
from src.data.loading.worker import WorkerLoader
from src.run.check import check
from src.run.experiment import build_experiment
from src.utils.errors import CheckpointError, NumericsError
from tests.conftest import ROOT
from tests.test_configs import LOCAL_DATA

DIGITS = ROOT / "configs" / "digits.yaml"
SHIPPED = sorted((ROOT / "configs").rglob("*.yaml"))


STREAM = """
import torch

class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        while True:
            row = torch.randn(4)
            yield row, row.sum().reshape(1)

def two(outputs, targets):
    return {"mae": (outputs - targets).abs().mean(), "bias": (outputs - targets).mean()}
"""
STREAM_CONFIG = """
name: stream
data: {train: {type: stream.Stream}}
loader: {batch_size: 7}
model: {type: torch.nn.Linear, args: {in_features: 4, out_features: 1}}
loss: mse
metrics: [r2, stream.two]
optimizer: {type: SGD, args: {lr: 0.05}}
trainer: {max_steps: 20, eval_every_steps: 5, device: cpu}
"""


def report(*overrides: str, path: Path = DIGITS) -> str:
    return "\n".join(check(load_config(path, overrides)))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.relative_to(ROOT / "configs").as_posix())
def test_every_shipped_config_passes(path: Path) -> None:
    needed, local = LOCAL_DATA.get(path.stem, (None, []))
    if needed is not None and not needed.exists():
        pytest.skip(f"{needed.name} is not there")
    use_folder(path.parent)
    text = report("trainer.device=cpu", *local, path=path)
    warnings = [line for line in text.splitlines() if line.startswith("warning")]
    if path.stem == "mnist":  # here the test images stand in for the training images
        assert len(warnings) == 1 and "rows have the same inputs as rows of train" in warnings.pop()
    assert not warnings, text


def test_it_tells_what_a_run_would_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    text = report(f"trainer.save_dir={tmp_path / 'runs'}", "trainer.epochs=10")
    for line in (
        "train 1,258",
        "LeNet, ",
        "AdamW group 0: lr",
        "weight_decay 0.05",
        "400 steps, 10 epochs of 40 steps",
    ):
        assert line in text, text
    for word in (
        "shapes",
        "[32, 1, 8, 8] float32",
        "outputs [32, 10]",
        "▁",
        "KiB",
        "read back",
        "val/accuracy",
        "a step",
    ):
        assert word in text, text
    assert [path for path in tmp_path.iterdir() if not path.name.startswith("torchinductor")] == []  # torch's own


def test_it_warns_of_a_schedule_of_another_length() -> None:
    text = report("lr_scheduler.args.T_max=100", "trainer.epochs=2", "lr_scheduler.every=epoch")
    assert text.startswith("config     digits: the arguments of digits.Digits, lenet.LeNet, CrossEntropyLoss, AdamW, ")
    assert "warning    command line #1 lr_scheduler.args.T_max: made for 100 moves, and this run makes 2" in text


@pytest.mark.parametrize(
    ("override", "told"),
    [
        (
            "lr_scheduler={type: StepLR, args: {step_size: 100}}",
            "args.step_size: the rate first changes after 100 moves",
        ),
        (
            "lr_scheduler={type: MultiStepLR, args: {milestones: [3, 9]}}",
            "milestones: the rate first changes after 3 mo",
        ),
        (
            "lr_scheduler={type: OneCycleLR, args: {max_lr: 0.1, total_steps: 50}}",
            "total_steps: made for 50 moves, and ",
        ),
        (
            "lr_scheduler={type: OneCycleLR, args: {max_lr: 0.1, total_steps: 500}}",
            "total_steps: made for 500 moves, a",
        ),
        (
            "parameters.freeze=[{match: 'features.*', from_epoch: 5}]",
            "freeze.0.from_epoch: is 5 and the run has 3 epoch",
        ),
        (
            "parameters.freeze=[{match: 'features.*', from_epoch: 1, until_epoch: 3}]",
            "features.* is never trained again",
        ),
    ],
)
def test_it_warns_at_its_place_of_what_will_never_happen(override: str, told: str) -> None:
    (warning,) = [
        line
        for line in report("trainer.epochs=3", override, "lr_scheduler.warmup_steps=0").splitlines()
        if line.startswith("warning")
    ]
    assert warning.startswith("warning    command line #2 ") and told in warning


def test_what_is_never_trained_in_this_run_is_not_counted_as_trainable() -> None:
    freeze = "parameters.freeze=[{match: 'features.*', until_epoch: %d}]"
    never, later = (report("trainer.epochs=3", freeze % end, "lr_scheduler=null") for end in (9, 2))
    assert "freeze.0.until_epoch: is 9 and the run has 3 epochs: features.* is never trained" in never
    trained = never.partition("from epoch 1 on ")[2].partition(" parameters")[0]
    assert f"parameters, {trained} trainable" in never and "(0 trainable)" in never
    assert "never" not in later and "(0 trainable)" not in later


def test_schedules_and_phases_of_the_right_length_are_not_warned_of() -> None:
    for override in (
        "lr_scheduler={type: StepLR, args: {step_size: 2}}",
        "lr_scheduler={type: OneCycleLR, args: {max_lr: 0.1}}",
        "parameters.freeze=[{match: 'features.*', until_epoch: 1, every: 2}]",
    ):
        assert "warning" not in report("trainer.epochs=3", override, "lr_scheduler.warmup_steps=0"), override


def test_it_warns_of_a_loss_that_does_not_change() -> None:
    text = report("optimizer=SGD", "optimizer.args.lr=1e-30", "lr_scheduler=null")
    assert "warning    the loss does not change" in text


def test_it_warns_of_rows_that_are_in_two_parts() -> None:
    text = report("data.split={val: 0.1, test: 0}", "data.test={type: digits.Digits}")
    assert "warning    test: 1,617 of 1,797 rows have the same inputs as rows of train, such as row 0 as row 0" in text
    assert "the same inputs" not in report()


def test_it_warns_of_parameters_that_are_never_used(tmp_path: Path) -> None:
    (tmp_path / "twice.yaml").write_text(
        "name: twice\ndata: {type: digits.Digits, split: {val: 0.1}}\nmodel: {type: forgetful.Forgetful}\n"
        "loss: CrossEntropyLoss\noptimizer: {type: SGD, args: {lr: 0.1}}\n"
    )
    (tmp_path / "forgetful.py").write_text(
        "from torch import nn\n\n\nclass Forgetful(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.used, self.unused = nn.Linear(64, 10), nn.Linear(3, 3)\n\n"
        "    def forward(self, x):\n        return self.used(x.flatten(1))\n"
    )
    use_folder(tmp_path)
    text = report("trainer.device=cpu", path=tmp_path / "twice.yaml")
    assert "warning    parameters never used: no gradient reaches them: unused.weight, unused.bias" in text


def test_the_command_prints_it_and_makes_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["-c", str(DIGITS), "--check", f"trainer.save_dir={tmp_path / 'runs'}"]) == 0
    assert "checkpoint" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()


def test_it_tells_which_numbers_there_would_be_how_often_and_where() -> None:
    text = " ".join(report("trainer.max_grad_norm=1", "trainer.eval_every_steps=7", "logger.csv=false").split())
    assert "logged train/loss, train/accuracy, train/f1, val/loss, val/accuracy, val/f1, lr: every 7 steps" in text
    assert "step/loss, step/lr, step/grad_norm: every 50 steps into the console, log.txt, TensorBoard" in text


def test_a_schedule_of_many_steps_is_drawn_and_one_that_ends_at_0_too_early_is_warned_of() -> None:
    long = report("trainer.epochs=10000", "lr_scheduler={type: CosineAnnealingLR, every: step, warmup_steps: 0}")
    assert "400,000 steps" in long and "first 0.005, highest 0.005, last 7" in long
    text = report("trainer.epochs=10", "lr_scheduler={type: PolynomialLR, args: {total_iters: 5}}")
    assert "warning    lr is 0 for the last 50% of the run" in text


def test_it_says_where_a_run_would_go_on_what_changed_and_what_does_not_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["trainer.max_steps=3", f"trainer.save_dir={tmp_path}", "logger.tensorboard=false"]
    assert train.main(["-c", str(DIGITS), *small]) == 0
    (run,) = tmp_path.glob("digits/*")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    capsys.readouterr()
    assert train.main(["-r", str(run), "--check", "trainer.max_steps=9", "trainer.patience=4"]) == 0
    told = capsys.readouterr().out
    assert f"goes on    {run}: after step 3 (epoch 1, batch 3); all of it fits" in told
    assert "trainer.max_steps  3 -> 9" in told and "trainer.patience   0 -> 4" in told
    with pytest.raises(CheckpointError, match=r"model.args.num_classes: 10 -> 11"):
        train.main(["-r", str(run), "--check", "model.args.num_classes=11"])
    with pytest.raises(CheckpointError, match=r"\[10, 84\] there, \[11, 84\] here"):
        train.main(["-r", str(run), "--check", "model.args.num_classes=11", "--allow-change", "model"])
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_batch_sampler_gets_the_sampler_it_draws_from_and_pinning_means_nothing_on_the_cpu() -> None:
    wanted = "loader.batch_sampler={type: BatchSampler, args: {batch_size: 8, drop_last: true}}"
    config = load_config(DIGITS, [wanted, "loader.pin_memory=true"])
    loader = build_experiment(config, torch.device("cpu")).loaders["train"]
    batches = list(loader.batches(epoch=0))
    assert len(batches) == len(loader) == 157 and all(len(targets) == 8 for _, targets in batches)
    assert not torch.equal(batches[0][0], next(iter(loader.batches(epoch=1)))[0])
    assert not loader.pin_memory


def test_a_sampler_that_needs_the_number_of_rows_is_told() -> None:
    config = load_config(DIGITS, ["loader.sampler={type: WeightedRandomSampler, args: {weights: [1, 1, 2]}}"])
    assert len(build_experiment(config, torch.device("cpu")).loaders["train"]) == 40


def test_steps_that_go_wrong_when_they_are_tried_are_told() -> None:
    with pytest.raises(NumericsError, match=r"the loss is (nan|inf)|its gradient is not; scale the inputs"):
        report("optimizer=SGD", "optimizer.args.lr=1e30", "lr_scheduler=null")


UNOWNED = """
import random

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from src.trainer.task import Task

OWN = torch.Generator().manual_seed(3)


class Rows(Dataset):
    def __init__(self, own=False):
        self.rng = np.random.default_rng(7) if own else None

    def __len__(self):
        return 64

    def __getitem__(self, row):
        noise = self.rng.random() if self.rng else np.random.rand() + random.random()
        return torch.full((4,), row + float(noise)), row % 3


class Jitter:
    def __init__(self, own=False):
        self.rng = random.Random() if own else random

    def __call__(self, x):
        return x + self.rng.random()


class Noise(nn.Module):
    def __init__(self, own=False):
        super().__init__()
        self.own = own

    def forward(self, x):
        return x + torch.rand(x.shape, generator=OWN if self.own else None)


class Net(nn.Module):
    def __init__(self, own=False, own_start=False):
        super().__init__()
        self.first, self.noise, self.last = nn.Linear(4, 8), Noise(own), nn.Linear(8, 3)
        if own_start:
            nn.init.normal_(self.last.weight, generator=OWN)

    def forward(self, x):
        return self.last(self.noise(self.first(x)))


class Counting(Task):
    def __init__(self, criterion=None, own=False):
        super().__init__(criterion)
        self.own, self.steps = own, 0

    def step(self, model, batch):
        output = super().step(model, batch)
        self.steps += model.training and self.own
        output.loss = output.loss * (1 + self.steps)
        return output


class Order:
    def __init__(self, part, generator, own=False):
        self.num_rows, self.generator = len(part), OWN if own else generator

    def __len__(self):
        return self.num_rows

    def __iter__(self):
        return iter(torch.randperm(self.num_rows, generator=self.generator).tolist())
"""
UNOWNED_CONFIG = """
name: unowned
data: {train: {type: unowned.Rows, args: {}, transforms: [{type: unowned.Jitter, args: {}}]}}
loader: {batch_size: 8, sampler: {type: unowned.Order, args: {}}}
model: {type: unowned.Net, args: {}}
task: {type: unowned.Counting, args: {}}
loss: CrossEntropyLoss
optimizer: {type: SGD, args: {lr: 0.01}}
trainer: {epochs: 1}
"""


@pytest.fixture(scope="module")
def unowned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unowned")
    (folder / "unowned.py").write_text(UNOWNED)
    (folder / "unowned.yaml").write_text(UNOWNED_CONFIG)
    return folder / "unowned.yaml"


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("trainer.epochs=1", None),
        ("data.train.args.own=true", "data: dataset Rows gives other values in the same epoch for the same row; draw"),
        ("data.train.transforms.0.args.own=true", "data: transform Jitter gives other values"),
        ("loader.sampler.args.own=true", "loader: its sampler gives another order"),
        ("model.args.own=true", "model: noise (Noise) gives other values for the same inputs"),
        ("model.args.own_start=true", "model: the initial last.weight is another each time"),
        ("task.args.own=true", "loss, or task Counting, gives other values"),
    ],
)
def test_it_names_what_draws_from_a_stream_that_nobody_owns(override: str, told: str | None, unowned: Path) -> None:
    use_folder(unowned.parent)
    text = report("trainer.device=cpu", override, path=unowned)
    warnings = [line for line in text.splitlines() if line.startswith("warning")]
    assert (len(warnings) == 0) == (told is None), text
    assert told is None or f"warning    {told}" in warnings[-1]


def test_a_constant_rate_is_called_so_and_memory_has_a_unit_of_its_size() -> None:
    text = report("lr_scheduler=null", "optimizer.args.lr=0.1")
    assert "lr         constant: 0.1\n" in text and "█" not in text
    assert re.search(r"memory     weights [\d.]+ KiB, gradients", text), text


def test_of_data_without_length_no_length_is_told_and_every_value_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "stream.py").write_text(STREAM)
    (tmp_path / "x.yaml").write_text(STREAM_CONFIG)
    use_folder(tmp_path)
    for override in ("seed=1", "lr_scheduler={type: StepLR, every: epoch, args: {step_size: 3}}"):
        text = report(override, path=tmp_path / "x.yaml")
        assert "length     20 steps\n" in text and "warning" not in text, text
    assert "train/two/mae, train/two/bias" in text
    assert "train/two," not in text
    text = report("lr_scheduler={type: StepLR, every: step, args: {step_size: 30}}", path=tmp_path / "x.yaml")
    assert "step_size: the rate first changes after 30 moves, and this run makes 20" in text


def test_data_to_evaluate_that_may_never_end_are_warned_of_at_their_place(tmp_path: Path) -> None:
    (tmp_path / "stream.py").write_text(STREAM)
    path = tmp_path / "stream.yaml"
    data = "data: {train: {type: stream.Stream}, val: {type: stream.Stream}}"
    path.write_text(STREAM_CONFIG.replace("data: {train: {type: stream.Stream}}", data))
    use_folder(tmp_path)
    text = "\n".join(check(load_config(path, ["metrics=[r2]"])))
    assert f"warning    {path}:3:38 data.val: has no __len__: an evaluation ends when these data end" in text


def test_more_workers_than_cores_are_told_once_and_not_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("src.trainer.rehearsal.misfits.usable_cores", lambda: 1)
    text = report("loader.num_workers=2", "loader.val={num_workers: 2}")
    assert text.count("workers on") == 1
    assert "warning    command line #1 loader.num_workers: 2 workers on 1 cores" in text
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        WorkerLoader([1], num_workers=usable_cores() + 1)
