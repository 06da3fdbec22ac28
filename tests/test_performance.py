"""What makes training fast, as far as it can be counted. Times are for `make bench`: none is looked at here."""

from __future__ import annotations

import functools
import gc
import math
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils.data import TensorDataset

from benchmarks.picture import picture
from src.data.loading.loader import Loader
from src.data.parts.part import Part
from src.data.settings import LoaderSettings
from src.model.metric import MetricSet, accuracy, f1
from src.trainer.backward import backward
from src.trainer.checkpoints.store import CheckpointStore
from src.trainer.ema import AveragedWeights
from src.trainer.hooks import Hook
from src.trainer.meters import Meters
from src.trainer.optimizers import apply_gradients, drop_gradients
from src.trainer.settings import TrainerSettings
from src.trainer.step import Step
from src.trainer.task import Task
from src.trainer.trainer import Trainer
from src.utils.direct_file import CHUNK_BYTES
from src.utils.host_memory import KEPT_BYTES, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, keep_freed_memory, lasting_objects
from tests.conftest import ROOT

SRC = str(ROOT / "src")


def calls_of_ours(function: Callable[[], Any]) -> int:
    """Count the calls of Python functions of this project."""
    count = 0

    def see(frame: FrameType, event: str, _: Any) -> None:
        nonlocal count
        count += event == "call" and frame.f_code.co_filename.startswith(SRC)

    sys.setprofile(see)
    try:
        function()
    finally:
        sys.setprofile(None)
    return count


def tensors_loader(num_rows: int, batch_size: int = 16, **settings: Any) -> Loader:
    inputs = torch.arange(num_rows * 4, dtype=torch.float32).reshape(num_rows, 4)
    part = Part("train", TensorDataset(inputs, inputs[:, :1].clone()))
    return Loader(part, LoaderSettings(batch_size=batch_size, **settings), shuffle=True, seed=0)


def test_help_imports_no_torch() -> None:
    code = (
        "import sys, runpy\nsys.argv = ['train.py', '--help']\n"
        "try: runpy.run_path('train.py', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print([name for name in ('torch', 'numpy', 'pandas', 'sklearn') if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert shown.splitlines()[-1] == "[]"


def test_a_run_imports_what_it_needs_and_python_walks_over_none_of_it_again(tmp_path: Path) -> None:
    code = (
        "import gc, sys, train\n"
        f"words = ['-c', 'configs/line.yaml', 'trainer.epochs=1', 'trainer.save_dir={tmp_path}']\n"
        "assert train.main([*words, 'logger.tensorboard=false']) == 0\n"
        "print([name for name in ('pandas', 'sklearn', 'tensorboard', 'matplotlib') if name in sys.modules])\n"
        "print(gc.isenabled(), gc.get_freeze_count() > 5 * len(gc.get_objects()))"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert shown.splitlines()[-2:] == ["[]", "True True"]


def test_only_the_first_of_several_runs_in_a_process_leaves_objects_out_of_the_search_for_garbage(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What one run leaves behind for the search must not be out of its reach in the next."""
    frozen: list[int] = []
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append(1))
    monkeypatch.setattr(gc, "get_freeze_count", lambda: len(frozen))
    for _ in range(2):
        with lasting_objects():
            pass
        assert gc.isenabled()
    assert frozen == [1]


@pytest.mark.parametrize(
    "changes", [{}, {"accumulate_steps": 2}, {"max_grad_norm": 1.0}, {"max_grad_norm": 1.0, "accumulate_steps": 2}]
)
def test_nothing_waits_inside_a_step(changes: dict[str, Any]) -> None:
    """On torch's device `meta`, which has no values, whatever wants to know one fails."""
    meta = torch.device("meta")
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 3)).to(meta)
    optimizers = {"optimizer": torch.optim.AdamW(model.parameters())}
    meters = Meters(MetricSet({"accuracy": accuracy, "f1": f1}), meta)
    average = AveragedWeights(model, 0.9)
    settings = TrainerSettings(**changes)
    taken: list[int] = []

    def take(output: Any, _: Any) -> None:
        meters.update(output)
        taken.append(output.num_rows)

    step = Step(Task(nn.CrossEntropyLoss()), model, optimizers, settings, meta, take)
    batches = [(torch.zeros(16, 4), torch.zeros(16, dtype=torch.int64))] * settings.accumulate_steps
    for _ in range(3):
        step.make(batches)
        average.update()
    assert taken == [16] * 3 * settings.accumulate_steps
    with pytest.raises((RuntimeError, NotImplementedError)):
        meters.compute()  # this one does wait


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_nothing_waits_inside_a_step_on_a_gpu() -> None:
    cuda = torch.device("cuda")
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)).to(cuda)
    optimizers = {"optimizer": torch.optim.AdamW(model.parameters())}
    meters = Meters(MetricSet({"accuracy": accuracy}), cuda)
    settings = TrainerSettings(max_grad_norm=1.0)
    step = Step(Task(nn.CrossEntropyLoss()), model, optimizers, settings, cuda, lambda output, _: meters.update(output))
    batch = (torch.zeros(16, 4).pin_memory(), torch.zeros(16, dtype=torch.int64).pin_memory())
    step.make([batch])
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            step.make([batch])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert meters.compute()["loss"] > 0


@pytest.fixture
def sampled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """How often a step is measured depends on the seconds that steps take: here once."""
    monkeypatch.setattr("src.trainer.account.SAMPLE_EVERY_S", math.inf)


def test_a_tiny_step_makes_few_calls(sampled_once: None) -> None:
    def train(num_steps: int) -> int:
        model = nn.Linear(4, 1)
        optimizers: Any = {"optimizer": torch.optim.SGD(model.parameters(), lr=1e-9)}
        settings = TrainerSettings(max_steps=num_steps, epochs=1, log_every_steps=1000)
        trainer = Trainer(Task(nn.MSELoss()), model, tensors_loader(16 * 300), optimizers, settings)
        return calls_of_ours(trainer.fit)

    train(10)
    assert (train(210) - train(10)) / 200 <= 29.5


def test_an_epoch_of_one_step_makes_few_calls(sampled_once: None) -> None:
    def train(num_epochs: int) -> int:
        model = nn.Linear(4, 1)
        optimizers: Any = {"optimizer": torch.optim.SGD(model.parameters(), lr=1e-9)}
        settings = TrainerSettings(epochs=num_epochs, log_every_steps=1000)
        trainer = Trainer(Task(nn.MSELoss()), model, tensors_loader(16), optimizers, settings, hooks=[Hook(), Hook()])
        return calls_of_ours(trainer.fit)

    train(10)
    assert (train(210) - train(10)) / 200 <= 82.5


def test_reading_tensors_costs_the_same_calls_however_many_rows_there_are() -> None:
    def read(num_rows: int, batch_size: int) -> int:
        loader = tensors_loader(num_rows, batch_size)
        next(iter(loader.batches()))
        return calls_of_ours(lambda: list(loader.batches()))

    assert read(512 * 10, 512) == read(1024 * 10, 1024)
    assert read(64 * 1000, 64) < 200  # none for a batch, and a few for each of the larger reads they are cut from


def test_a_resume_in_mid_epoch_reads_no_row_again() -> None:
    class Counted(TensorDataset):
        num_read = 0

        def __getitem__(self, row: int) -> Any:
            Counted.num_read += 1
            return self.tensors[0][row]

    part = Part("train", Counted(torch.zeros(16 * 300, 4)))
    loader = Loader(part, LoaderSettings(batch_size=16), shuffle=True, seed=0)
    assert len(list(loader.batches(3, 290))) == 10
    assert Counted.num_read == 10 * 16


@pytest.mark.parametrize("num_rows", [16 * 700 + 5, 16 * 20, 7])
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("start", [0, 1, 300, 699])
def test_slices_are_the_batches_that_single_reads_give(num_rows: int, drop_last: bool, start: int) -> None:
    if drop_last and num_rows < 16:
        return
    loader = tensors_loader(num_rows, drop_last=drop_last)
    order = loader._order
    assert order is not None
    single = [loader.part.read(2, rows) for rows in order.batches(2, start)]
    sliced = list(loader.batches(2, start))
    assert len(sliced) == len(single) == max(0, len(loader) - start)
    for ours, theirs in zip(sliced, single, strict=True):
        assert type(ours) is type(theirs)
        for slice_, read in zip(ours, theirs, strict=True):
            assert torch.equal(slice_, read)
            assert slice_.data_ptr() % 64 == 0  # as fresh tensors: else sums may differ in the last bit


def test_a_user_may_change_a_batch_in_place() -> None:
    loader = tensors_loader(64)
    before = [part.clone() for part in loader.part.dataset.tensors]  # type: ignore[attr-defined]
    seen: list[Tensor] = []
    for inputs, targets in loader.batches():
        seen.append(inputs.clone())
        inputs.zero_()
        targets.zero_()
    assert torch.equal(torch.cat(seen).sort(dim=0).values, before[0].sort(dim=0).values)
    for kept, part in zip(before, loader.part.dataset.tensors, strict=True):  # type: ignore[attr-defined]
        assert torch.equal(kept, part)


def test_a_new_best_is_written_once(tmp_path: Path) -> None:
    state = {"format": 1, "model": {"weight": torch.zeros(1 << 18)}}
    CheckpointStore(tmp_path).save(state, 3, is_best=True)
    sizes = {path.stat().st_ino: path.stat().st_size for path in tmp_path.iterdir()}
    tensors = 1 << 20
    assert tensors < sum(sizes.values()) < tensors + 4096
    assert (tmp_path / "best.pt").stat().st_ino == (tmp_path / "last.pt").stat().st_ino


def test_each_byte_of_a_save_is_written_once_and_in_large_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    write = os.write

    def counted(descriptor: int, data: Any) -> int:
        written.append(write(descriptor, data))
        return written[-1]

    monkeypatch.setattr(os, "write", counted)
    state = {"format": 1, "model": {f"layer{number}": torch.zeros(300_000) for number in range(10)}}
    path = CheckpointStore(tmp_path).save(state, 3, is_best=True)
    assert sum(written) == path.stat().st_size
    assert len(written) == -(-path.stat().st_size // CHUNK_BYTES)


def test_gradients_are_dropped_by_the_optimizers_own_rule_if_it_has_one() -> None:
    class Keeping(torch.optim.SGD):
        def zero_grad(self, set_to_none: bool = True) -> None:
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.grad.fill_(0.5)

    for kind, wanted in ((torch.optim.SGD, None), (Keeping, 0.5)):
        weight = nn.Parameter(torch.ones(()))
        weight.grad = torch.tensor(3.0)
        drop_gradients({"optimizer": kind([weight], lr=1.0)})
        assert weight.grad is None if wanted is None else weight.grad.item() == wanted


class Doubling(torch.optim.SGD):
    """Has a `step` of its own, which torch wraps again."""

    def step(self, closure: Any = None) -> Any:
        super().step(closure)
        return super().step(closure)


def decorated(step: Any) -> Any:
    """Wrap as people do, with torch's marks copied."""

    @functools.wraps(step)
    def twice(optimizer: Any, *args: Any) -> Any:
        step(optimizer, *args)
        return step(optimizer, *args)

    return twice


class Decorated(torch.optim.SGD):
    """Its `step` bears the marks of torch's, and is another."""

    step = decorated(torch.optim.SGD.step)


@pytest.mark.parametrize(("kind", "wanted"), [(torch.optim.SGD, -1.0), (Doubling, -2.0), (Decorated, -2.0)])
def test_applying_gradients_is_the_optimizers_own_step(kind: Any, wanted: float) -> None:
    weight = nn.Parameter(torch.zeros(()))
    weight.grad = torch.ones(())
    apply_gradients(kind([weight], lr=1.0))
    assert weight.item() == wanted


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.Adagrad, torch.optim.RMSprop])
def test_applied_gradients_have_the_bits_of_step_and_leave_gradients_switched_on(kind: Any) -> None:
    ours, theirs = (nn.Parameter(torch.linspace(-1, 1, 7)) for _ in range(2))
    optimizers = kind([ours], lr=0.1), kind([theirs], lr=0.1)
    for step in range(3):
        for weight in (ours, theirs):
            weight.grad = torch.linspace(1, 2, 7) ** step
        apply_gradients(optimizers[0])
        optimizers[1].step()
    assert torch.equal(ours, theirs) and torch.is_grad_enabled()
    optimizers[0].param_groups[0]["params"] = [None]
    with pytest.raises(AttributeError):
        apply_gradients(optimizers[0])
    assert torch.is_grad_enabled()


def test_an_update_that_is_to_be_differentiated_is() -> None:
    start = torch.zeros((), requires_grad=True)
    weight = start * 1
    weight.grad = torch.tensor(3.0)
    apply_gradients(torch.optim.SGD([weight], lr=1.0, differentiable=True))
    (slope,) = torch.autograd.grad(weight * 2, start)
    assert (weight.item(), slope.item()) == (-3.0, 2.0) and "Add" in type(weight.grad_fn).__name__


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_backward_pass_gives_the_bits_of_torchs_own(dtype: torch.dtype) -> None:
    def gradient(run: Callable[[Tensor], Any]) -> Tensor:
        weight = nn.Parameter(torch.linspace(-1, 1, 9, dtype=dtype))
        loss = (weight.tanh() * torch.arange(9)).sum()
        loss.register_hook(lambda given: given.mul_(2))  # torch forbids that; it must not reach the next step
        run(loss)
        run(weight.square().mean())  # added to the first
        return weight.grad if weight.grad is not None else torch.empty(0)

    assert all(torch.equal(gradient(backward), gradient(Tensor.backward)) for _ in range(3))


def test_a_loss_that_is_a_weight_itself_has_a_gradient_of_its_own() -> None:
    first, second, third = (torch.zeros((), requires_grad=True) for _ in range(3))
    backward(first)
    backward(second)
    assert first.grad is not None and second.grad is not None
    first.grad.mul_(5)
    second.grad.data.mul_(2)
    with torch.device("meta"):
        backward(third)
    assert [first.grad, second.grad, third.grad] == [5.0, 2.0, 1.0]


def test_whoever_watches_backward_passes_sees_them(caplog: pytest.LogCaptureFixture) -> None:
    class Watcher(TorchFunctionMode):
        seen: list[str] = []

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.seen.append(func.__name__)
            return func(*args, **(kwargs or {}))

    loss = nn.Parameter(torch.ones(3)).sum()
    with Watcher() as watcher:
        backward(loss)
    assert "backward" in watcher.seen
    with caplog.at_level("DEBUG", "torch.autograd.graph"):
        backward(nn.Parameter(torch.ones(3)).sum())
    assert "SumBackward" in caplog.text


@pytest.mark.parametrize("loss", [torch.zeros(()), torch.zeros(2, requires_grad=True)], ids=["constant", "two"])
def test_what_has_no_gradient_fails_as_with_torch(loss: Tensor) -> None:
    with pytest.raises(RuntimeError) as theirs:
        loss.backward()  # type: ignore[no-untyped-call]
    with pytest.raises(RuntimeError) as ours:
        backward(loss)
    assert str(ours.value) == str(theirs.value)


def test_whoever_watches_optimizers_sees_gradients_applied() -> None:
    seen: list[str] = []
    schedulers: list[Any] = []

    def train(watch: Callable[[Any], Any]) -> None:
        weight = nn.Parameter(torch.zeros(()))
        weight.grad = torch.ones(())
        optimizer = torch.optim.SGD([weight], lr=1.0)
        handle = watch(optimizer)
        apply_gradients(optimizer)
        assert weight.item() == -1.0
        if handle is not None:
            handle.remove()

    train(lambda optimizer: optimizer.register_step_pre_hook(lambda *_: seen.append("before")))
    train(lambda optimizer: optimizer.register_step_post_hook(lambda *_: seen.append("after")))
    train(lambda _: register_optimizer_step_pre_hook(lambda *_: seen.append("before any")))
    train(lambda _: register_optimizer_step_post_hook(lambda *_: seen.append("after any")))
    assert seen == ["before", "after", "before any", "after any"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a scheduler warns when it has seen no step
        train(lambda optimizer: schedulers.append(torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)))
        schedulers[0].step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        train(lambda _: None)
    assert any("Optimizer.step#SGD.step" in event.key for event in profile.key_averages())


def test_the_picture_of_a_comparison_has_a_bar_for_every_trainer_as_long_as_its_median() -> None:
    compared = [("tiny <step>", {"Keel": [1.0, 1.1, 9.0], "Other & Co": [2.2, 2.2, 2.2]}), ("LeNet", {"Keel": [1.1]})]
    root = ElementTree.fromstring(picture(compared, "2026-11-21 on a machine"))
    name = "{http://www.w3.org/2000/svg}"
    bars = [float(bar.attrib["width"]) for bar in root.iter(f"{name}rect")]
    texts = [text.text for text in root.iter(f"{name}text")]
    assert bars == pytest.approx([bars[0], 2 * bars[0], bars[0]], abs=0.1)
    assert texts[1:5] == ["Keel", "1.10", "Other & Co", "2.20"]
    assert (texts[-1] or "").endswith("time of a loop by hand. 2026-11-21 on a machine")


def test_keeping_freed_memory_asks_the_c_library_and_never_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []

    class Library:
        def mallopt(self, option: int, value: int) -> None:
            asked.append((option, value))

    monkeypatch.setattr("ctypes.CDLL", lambda _: Library())
    keep_freed_memory()
    assert asked == [(M_TRIM_THRESHOLD, KEPT_BYTES), (M_MMAP_THRESHOLD, 32 << 20)]
    monkeypatch.setattr("ctypes.CDLL", lambda _: object())  # a C library that knows no such option
    keep_freed_memory()
