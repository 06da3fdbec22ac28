"""Steps that go wrong: found before they are applied, told with their cause, left out or rolled back."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import train
from src.trainer.checkpoints.resume import open_checkpoint
from src.trainer.checkpoints.store import load_checkpoint
from src.trainer.faults.nonfinite import FiniteGradients, SpikeRule
from src.trainer.monitor import Monitor
from src.trainer.settings import TrainerSettings
from src.trainer.task import Task
from src.trainer.trainer import Trainer
from src.utils.errors import CheckpointError, NumericsError
from tests.chaos import unequal
from tests.trainer_kit import NoisyRows, assert_same_weights, make_trainer, weights


class NanGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        return inputs.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * math.nan


class Fragile(nn.Module):
    """Breaks whenever a marked row is among its inputs: marks are large first features."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3))
        self.head, self.kind = nn.Linear(16, 3), kind

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.body(inputs)
        if not self.training or inputs[:, 0].max() < 50:
            return self.head(hidden)  # type: ignore[no-any-return]
        if self.kind == "loss":
            hidden = torch.log(hidden - 1000.0)
        if self.kind == "gradient":
            hidden = NanGradient.apply(hidden)  # type: ignore[no-untyped-call]
        outputs: Tensor = self.head(hidden)
        return outputs * 1e4 if self.kind == "spike" else outputs


MARKED = 23


def drawn_after(state: Tensor) -> Tensor:
    return torch.rand(9, generator=torch.Generator().set_state(state))


def fragile_trainer(folder: Path | None = None, kind: str = "loss", looks: bool = True, **options: Any) -> Trainer:
    """Return a trainer whose row 23 breaks a step in every epoch; `looks` is False for what a GPU does."""
    torch.set_num_threads(1)
    trainer = make_trainer(folder, **{"schedule": "none", "epochs": 3, **options})
    torch.manual_seed(3)
    model = Fragile(kind)
    trainer.step.forward = trainer.forward = trainer.model = trainer.stateful["model"] = model
    trainer.optimizers["optimizer"].param_groups[0]["params"][:] = model.parameters()
    trainer.step._parameters[:] = model.parameters()
    dataset = trainer.train_loader.part.dataset
    assert isinstance(dataset, NoisyRows)
    dataset.inputs[MARKED, 0] = 100.0
    if not looks:
        trainer.guard.is_careful = trainer.guard._is_always_careful = False
    return trainer


@pytest.mark.parametrize("line_search", [None, "strong_wolfe"])
def test_a_loss_that_goes_wrong_within_a_line_search_is_found(line_search: str | None, tmp_path: Path) -> None:
    class Fails(nn.Linear):
        num_passes = 0

        def forward(self, inputs: Tensor) -> Tensor:
            self.num_passes += self.training
            outputs = super().forward(inputs)
            return outputs + (math.inf if self.num_passes >= 2 else 0.0)

    torch.manual_seed(3)
    model = Fails(6, 3)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4, line_search_fn=line_search)
    loader = make_trainer(None).train_loader
    trainer = Trainer(
        Task(nn.CrossEntropyLoss()), model, loader, {"optimizer": optimizer}, TrainerSettings(max_steps=2)
    )
    with pytest.raises(NumericsError, match=r"step 1: the loss is nan at lr 0.1; .*\nfirst inf: add at \S+test_guard"):
        trainer.fit()


def bad_batch(trainer: Trainer, epoch: int = 0) -> tuple[int, list[int]]:
    """Return number and rows of the batch that row 23 is in."""
    batches = trainer.train_loader.rows(epoch, 0, 7)
    assert batches is not None
    return next((number, rows) for number, rows in enumerate(batches) if MARKED in rows)


@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 1.0}, {"accumulate_steps": 2}])
@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_a_bad_step_is_not_applied_and_told_with_its_rows_layer_line_and_capsule(
    kind: str, options: dict[str, Any], tmp_path: Path
) -> None:
    trainer = fragile_trainer(tmp_path, kind, **options)
    number, rows = bad_batch(trainer)
    step = number // options.get("accumulate_steps", 1) + 1
    with pytest.raises(NumericsError) as raised:
        trainer.fit()
    what, where, how = str(raised.value).splitlines()
    if kind == "loss":
        assert f"step {step}: the loss is nan at lr 0.01; scale the inputs" in what
        assert "first nan: log at " in where and "test_guard.py" in where
    else:
        assert f"step {step}: the loss is finite, but its gradient is not, at lr 0.01" in what
        assert "first nan: mul" in where and "first gradient: body.1." in where and "derivative: NanGradient" in where
    assert load_checkpoint(tmp_path / f"failure-{step:08d}.pt")["failure"]["rows"].count(rows) == 1
    assert kind == "gradient" or f"rows {rows[0]}, {rows[1]}, " in where
    assert how == f"to repeat this step: python train.py --replay {tmp_path / f'failure-{step:08d}.pt'}"
    assert trainer.progress.step == step - 1
    assert all(torch.isfinite(value).all() for value in trainer.model.state_dict().values())


def test_a_capsule_holds_the_run_as_it_was_before_the_step(tmp_path: Path) -> None:
    number, rows = bad_batch(fragile_trainer())
    whole = fragile_trainer(max_steps=number)
    whole.fit()
    state = whole.state_dict()
    trainer = fragile_trainer(tmp_path)
    with pytest.raises(NumericsError):
        trainer.fit()
    capsule = load_checkpoint(tmp_path / f"failure-{number + 1:08d}.pt")
    assert [path for name in ("model", "optimizer") for path in unequal(capsule[name], state[name], name)] == []
    assert torch.equal(*(drawn_after(streams["rng"]["torch"]) for streams in (capsule, state)))
    failure = capsule["failure"]
    assert (failure["step"], failure["epoch"], failure["batch"], failure["rows"]) == (number + 1, 0, number, [rows])
    ((inputs, targets),) = failure["batches"]
    assert (inputs[:, 0] > 50).sum() == 1 and len(targets) == 8


def test_nan_in_the_data_is_told_with_its_row_of_the_dataset() -> None:
    trainer = fragile_trainer(kind="none")
    trainer.train_loader.part.dataset.inputs[MARKED, 2] = math.nan  # type: ignore[attr-defined]
    with pytest.raises(NumericsError, match="the batch itself holds nan or inf, first in row 23 of the dataset"):
        trainer.fit()


@pytest.mark.parametrize("kind", ["loss", "gradient"])
@pytest.mark.parametrize("looks", [True, False])
def test_skip_leaves_out_the_bad_steps_and_nothing_else(kind: str, looks: bool, tmp_path: Path) -> None:
    trainer = fragile_trainer(tmp_path / kind, kind, looks=looks, nonfinite="skip")
    trainer.fit()
    assert (trainer.progress.step, trainer.progress.bad_steps) == (21, 3)
    by_hand = fragile_trainer(kind="none")
    model, optimizer = by_hand.model, by_hand.optimizers["optimizer"]
    model.train()
    for epoch in range(3):
        for number, (inputs, targets) in enumerate(by_hand.train_loader.batches(epoch)):
            buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), targets).backward()
            if number != bad_batch(by_hand, epoch)[0]:
                optimizer.step()
                continue
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])
    assert_same_weights(weights(trainer), weights(by_hand))


@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_more_bad_steps_than_allowed_end_the_run(policy: str) -> None:
    trainer = fragile_trainer(nonfinite=policy, max_bad_steps=2, epochs=9)
    with pytest.raises(NumericsError, match=r"trainer.max_bad_steps is 2"):
        trainer.fit()
    assert trainer.progress.epoch == 2


def test_rollback_takes_weights_and_moments_back_and_goes_on_behind_the_bad_batch() -> None:
    trainer = fragile_trainer(nonfinite="rollback", epochs=1, ema_decay=None)
    start = weights(trainer)
    number, _ = bad_batch(trainer)
    seen: list[dict[str, Tensor]] = []
    make = trainer.guard.make

    def watched(batches: Any) -> None:
        make(batches)
        seen.append(weights(trainer))

    trainer.guard.make = watched  # type: ignore[method-assign]
    trainer.fit()
    assert_same_weights(seen[number], start)
    assert trainer.progress.step == 7
    assert not torch.equal(seen[-1]["head.weight"], start["head.weight"])


@pytest.mark.parametrize("policy", ["skip", "rollback"])
@pytest.mark.parametrize("stop", [2, 9, 13])
def test_a_run_with_bad_steps_that_is_stopped_and_resumed_ends_with_equal_weights(
    policy: str, stop: int, tmp_path: Path
) -> None:
    straight = fragile_trainer(tmp_path / "a", nonfinite=policy, save_every_epochs=9)
    straight.fit()
    fragile_trainer(tmp_path / "b", nonfinite=policy, kill_at=stop, save_every_epochs=9).fit()
    resumed = fragile_trainer(tmp_path / "b", nonfinite=policy, save_every_epochs=9)
    resumed.load_state_dict(open_checkpoint(tmp_path / "b")[1])
    resumed.fit()
    assert_same_weights(weights(straight), weights(resumed))
    assert (tmp_path / "a" / "metrics.csv").read_bytes() == (tmp_path / "b" / "metrics.csv").read_bytes()


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_where_losses_are_read_late_the_step_is_found_by_repeating_those_since_the_last_checkpoint(
    kind: str, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"save_every_steps": 2, "log_every_steps": 7}
    found, told = [], []
    for looks in (True, False):
        trainer = fragile_trainer(tmp_path / str(looks), kind, looks=looks, **options)
        with pytest.raises(NumericsError) as raised:
            trainer.fit()
        found.append(weights(trainer))
        told.append(str(raised.value).replace(str(looks), ""))
    assert_same_weights(*found)
    assert told[0] == told[1]
    assert f"step {bad_batch(trainer)[0] + 1}: the loss is" in told[0]


@pytest.mark.parametrize("is_saved", [True, False])
def test_the_last_step_is_looked_at_too_whether_or_not_the_run_is_saved(is_saved: bool, tmp_path: Path) -> None:
    last = bad_batch(fragile_trainer())[0] + 1
    options = {"epochs": None, "max_steps": last, "save_every_steps": last - 1, "log_every_steps": 99}
    trainer = fragile_trainer(tmp_path if is_saved else None, "gradient", looks=False, **options)
    trainer.val_loaders.clear()  # whose loss would tell
    trainer.monitor = Monitor(None)
    told = f"step {last}: the loss is finite, but its gradient is not" if is_saved else "weights are no longer finite"
    with pytest.raises(NumericsError, match=told):
        trainer.fit()


def test_what_was_noticed_late_and_is_not_found_again_is_said(tmp_path: Path) -> None:
    trainer = fragile_trainer(tmp_path, looks=False, save_every_steps=1)
    load = trainer.load_state_dict

    def mend(*args: Any) -> None:
        load(*args)
        trainer.model.kind = "none"  # type: ignore[assignment]

    trainer.load_state_dict = mend  # type: ignore[method-assign]
    with pytest.raises(NumericsError, match="were repeated, and nothing was wrong with them: the device does not"):
        trainer.fit()


@pytest.mark.parametrize("looks", [True, False])
def test_a_loss_that_jumps_is_skipped(looks: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SpikeRule, "WINDOW", 10)
    trainer = fragile_trainer(tmp_path, "spike", looks=looks, loss_spikes="skip", epochs=3)
    trainer.fit()
    assert trainer.progress.bad_steps in (2, 3), "all but what came before half a window was full"
    ignored = fragile_trainer(kind="spike", epochs=3)
    ignored.fit()
    assert ignored.progress.bad_steps == 0


def test_a_spike_is_more_than_six_deviations_above_the_mean_of_the_window() -> None:
    rule = SpikeRule()
    rule.losses.extend([1.0, 3.0] * 31)
    assert rule.limit() == math.inf, "62 losses are less than half a window"
    rule.losses.extend([1.0, 3.0])
    assert rule.limit() == pytest.approx(2.0 + 6.0 * math.sqrt(64 / 63))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_gradients_that_are_not_finite_are_found_and_finite_ones_keep_their_bits(value: float) -> None:
    look = FiniteGradients(torch.device("cpu"))
    gradients = [torch.randn(5, 3).t(), torch.tensor([-0.0, 1e-45, 3e38]), torch.randn(4).bfloat16()]
    before = [gradient.clone() for gradient in gradients]
    assert look.hold(gradients)
    assert all(torch.equal(first, second) for first, second in zip(before, gradients, strict=True))
    gradients[0][1, 1] = value
    assert not look.hold(gradients)
    assert look.hold(before), "one bad step does not spoil the next"
    sparse = torch.sparse_coo_tensor([[1]], [value], (3,))
    assert not look.hold([sparse]) and look.hold([torch.sparse_coo_tensor([[1]], [2.0], (3,))])
    assert look.hold([]) and look.hold([None])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.complex64])
def test_large_gradients_are_summed_and_one_whose_sum_is_too_large_is_finite_all_the_same(
    value: float, dtype: torch.dtype
) -> None:
    look = FiniteGradients(torch.device("cpu"))
    large, small = torch.ones(2 * look.LARGE, dtype=dtype), torch.ones(3, dtype=dtype)
    for gradients in ([large, small], [small, large], [large, torch.full_like(large, 6e4)], [small, -3e4 * large]):
        before = [gradient.clone() for gradient in gradients]
        assert look.hold(gradients)
        assert all(torch.equal(first, second) for first, second in zip(before, gradients, strict=True))
    assert look.hold([torch.full((look.LARGE,), 3e38)]), "their sum is inf"
    for place in (0, 777, -1):
        bad = large.clone()
        bad[place] = value
        assert not look.hold([small, bad]) and not look.hold([bad]) and look.hold([large])
        bad[place - 2] = -value
        assert not look.hold([bad]), "inf and -inf"
    sparse = torch.sparse_coo_tensor([[1]], [value], (look.LARGE,))
    assert not look.hold([None, sparse, large]) and look.hold([torch.sparse_coo_tensor([[1]], [2.0], (look.LARGE,))])


BREAKABLE = """
import torch
from torch import nn


class Breakable(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.layer, self.drop, self.out, self.kind = nn.Linear(64, 32), nn.Dropout(0.2), nn.Linear(32, 10), kind
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        hidden = self.drop(self.layer(x.flatten(1)))
        self.calls += self.training
        if self.calls == 4:
            hidden = torch.log(hidden) if self.kind == "loss" else torch.where(hidden > 0, hidden.sqrt(), 0)
        return self.out(hidden)
"""


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_replay_shows_the_line_of_the_users_code_and_ends_with_6(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / f"breakable_{kind}.py").write_text(BREAKABLE)
    (tmp_path / "small.yaml").write_text(
        "name: small\ndata: {type: digits.Digits, split: {val: 0.1}}\n"
        f"model: {{type: breakable_{kind}.Breakable, args: {{kind: {kind}}}}}\n"
        "loss: CrossEntropyLoss\noptimizer: {type: SGD, args: {lr: 0.5}}\n"
        f"trainer: {{epochs: 1, save_dir: {tmp_path}, accumulate_steps: 2}}\n"
    )
    with pytest.raises(NumericsError) as raised:
        train.main(["-c", str(tmp_path / "small.yaml")])
    (capsule,) = (tmp_path / "small").glob("*/failure-00000002.pt")
    trusted = ["--trust", f"{tmp_path}/"]
    assert str(raised.value).endswith(f"python train.py --replay {capsule} {' '.join(trusted)}")
    capsys.readouterr()
    assert train.main(["--replay", str(capsule), *trusted]) == 6
    lines = capsys.readouterr().out.splitlines()
    recorded, found = str(raised.value).splitlines()[:2]
    assert lines[:2] == [f"recorded   {recorded}", f"           {found}"]
    assert lines[2].startswith("now        loss ")
    assert f"breakable_{kind}.py:16" in lines[3]
    assert lines[3].strip() in found, "the run had found the same"
    assert ("derivative: Sqrt" if kind == "gradient" else "first nan: log") in lines[3]
    other = "gradient" if kind == "loss" else "loss"
    assert train.main(["--replay", str(capsule), f"model.args.kind={other}", *trusted]) == 6
    with pytest.raises(CheckpointError, match="is no failure capsule; those are RUN/failure-"):
        train.main(["-c", str(tmp_path / "small.yaml"), "trainer.max_steps=1"])
        train.main(["--replay", str(next((tmp_path / "small").glob("*/checkpoints/last.pt"))), *trusted])
