"""Compiled runs: the numbers of eager ones, a bounded number of graphs, checkpoints that go either way."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from src.data.loading.loader import Loader
from src.data.parts.part import Part
from src.data.settings import LoaderSettings
from src.trainer.checkpoints.resume import open_checkpoint
from src.trainer.compile_settings import CompileSettings
from src.trainer.compiled import MAX_REPLAYED, can_change, choose_mode, compiler_args
from src.trainer.compiled_call import CompiledCall
from src.trainer.hooks import Hook
from src.trainer.settings import TrainerSettings
from src.trainer.task import StepOutput, Task
from src.trainer.trainer import Trainer
from src.utils.errors import ConfigError
from tests.trainer_kit import assert_same_weights, make_trainer, weights

TRACED = CompileSettings(backend="aot_eager")
"""All of the compiler but the making of machine code, which takes seconds."""
WIDE = {"mse": (nn.MSELoss(), 1.0), "l1": (nn.L1Loss(), 0.5)}

activation, scale = torch.relu, 1.0


@pytest.fixture(autouse=True)
def _forget_graphs() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Net(nn.Module):
    """A body, a head, and a part that no output depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.unused = nn.Linear(8, 4), nn.Linear(4, 1), nn.Linear(2, 2)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.body(inputs)))


class Reading(Task):
    """Reads its loss in mid-step, which no graph can hold."""

    def step(self, model: Any, batch: Any) -> StepOutput:
        output = super().step(model, batch)
        print(end=f"{output.loss.item():.0f}"[:0])
        return output


class Rest(Hook):
    """Freezes the head after the first epoch."""

    def on_epoch_end(self, trainer: Trainer, values: Any) -> None:
        trainer.model.head.requires_grad_(False)  # type: ignore[operator, union-attr]


def regression(
    task: Task | None = None, hooks: list[Hook] | None = None, device: str = "cpu", num_rows: int = 100, **settings: Any
) -> Trainer:
    """Return a trainer of a small regression in batches of 32, the last one ragged."""
    torch.manual_seed(0)
    model = Net()
    part = Part("train", TensorDataset(torch.randn(num_rows, 8), torch.randn(num_rows, 1)))
    loader = Loader(part, LoaderSettings(batch_size=32), shuffle=True, seed=0)
    optimizers = {"optimizer": torch.optim.Adam(model.parameters(), lr=0.01)}
    return Trainer(
        task or Task(nn.MSELoss()), model, loader, optimizers, TrainerSettings(**{"epochs": 3, **settings}),
        val_loaders={"val": loader}, hooks=hooks or [], device=torch.device(device),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("task", "settings"),
    [(None, {}), (Task(WIDE), {"max_grad_norm": 0.1}), (None, {"amp_dtype": "bf16"})],
    ids=["plain", "two losses, clipped", "bf16"],
)
def test_a_step_in_one_graph_gives_the_numbers_of_an_eager_one(task: Task | None, settings: dict[str, Any]) -> None:
    eager, whole = regression(task, **settings), regression(task, compile=TRACED, **settings)
    assert whole.fit() == pytest.approx(eager.fit(), rel=1e-5)
    assert whole.step.make == whole.step._update_in_one  # type: ignore[attr-defined]
    assert isinstance(whole.step._graph, CompiledCall) and whole.step._graph._made  # type: ignore[attr-defined]
    for ours, theirs in zip(whole.model.parameters(), eager.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


class Turned(nn.Module):
    """Its weight lies in memory in another order than its axes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.mix = nn.Parameter(torch.randn(4, 6, 5).permute(2, 0, 1)), nn.Conv2d(1, 3, 2)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        maps = torch.einsum("bi,kij->bkj", inputs, self.weight)[:, None].transpose(2, 3)
        return self.mix(maps.contiguous(memory_format=torch.channels_last)).tanh().mean((1, 2, 3))[:, None]


def test_gradients_of_a_step_in_one_graph_lie_in_memory_as_the_weights_do() -> None:
    def trained(fused: bool) -> nn.Module:
        torch.manual_seed(0)
        model, part = Turned(), Part("train", TensorDataset(torch.randn(64, 4), torch.randn(64, 1)))
        loader = Loader(part, LoaderSettings(batch_size=16), shuffle=True, seed=0)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=fused)
        Trainer(
            Task(nn.MSELoss()), model, loader, {"optimizer": optimizer}, TrainerSettings(epochs=2, compile=TRACED)
        ).fit()
        return model

    one, each = trained(True), trained(False)
    for fused, plain in zip(one.parameters(), each.parameters(), strict=True):
        torch.testing.assert_close(fused, plain)
        assert fused.grad is not None and fused.grad.stride() == fused.stride()


@pytest.mark.parametrize("layer", ["", "body"])
def test_hooks_that_are_registered_while_a_compiled_run_goes_on_are_called(layer: str) -> None:
    class Doubles(Hook):
        def on_epoch_end(self, trainer: Trainer, values: Any) -> None:
            if trainer.progress.epoch == 1:
                trainer.model.get_submodule(layer).register_forward_hook(lambda module, args, output: 2 * output)

    compiled, eager = (regression(hooks=[Doubles()], compile=each) for each in (TRACED, False))
    assert compiled.fit() == pytest.approx(eager.fit(), rel=1e-5)


def test_ragged_batches_take_one_more_graph_each_for_training_and_evaluation_and_then_none() -> None:
    counted = torch._dynamo.utils.counters["stats"]
    before = counted["unique_graphs"]
    regression(epochs=1, compile=TRACED).fit()
    assert counted["unique_graphs"] - before == 4
    regression(epochs=3, compile=TRACED).fit()
    assert counted["unique_graphs"] - before == 4


@pytest.mark.parametrize(
    ("batch_size", "arguments", "given", "dynamic"),
    [(8, {}, None, False), (8, {}, True, True), (1, {}, None, None), (8, {"collate_fn": list}, None, None)],
)
def test_which_graph_computes_a_batch_depends_on_its_size_alone_where_there_are_two(
    batch_size: int, arguments: dict[str, Any], given: bool | None, dynamic: bool | None
) -> None:
    part = Part("train", TensorDataset(torch.zeros(9, 2)))
    loader = Loader(part, LoaderSettings(batch_size=batch_size), shuffle=False, seed=0, **arguments)
    assert compiler_args(CompileSettings(dynamic=given), loader)["dynamic"] is dynamic


def test_a_task_that_cannot_be_traced_has_its_model_compiled_and_the_log_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO):
        whole = regression(Reading(nn.MSELoss()), compile=TRACED)
        values = whole.fit()
    assert values == pytest.approx(regression(Reading(nn.MSELoss())).fit(), rel=1e-5)
    told = [record.message for record in caplog.records if "trainer.compile" in record.message]
    assert len(told) == 1 and told[0].startswith("trainer.compile: the model alone is compiled")


def test_parameters_that_begin_to_rest_stay_as_they_are_in_a_compiled_step() -> None:
    eager, whole = regression(hooks=[Rest()]), regression(hooks=[Rest()], compile=TRACED)
    assert whole.fit() == pytest.approx(eager.fit(), rel=1e-5)
    assert all(parameter.grad is None for parameter in whole.model.head.parameters())  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("first", "then"), [(TRACED, False), (False, TRACED)], ids=["with then without", "without then with"]
)
def test_a_run_goes_on_with_or_without_compiling(first: Any, then: Any, tmp_path: Path) -> None:
    whole = regression().fit()
    begun = regression(compile=first, epochs=1)
    begun.fit()
    state = begun.state_dict()
    assert not any("_orig_mod" in name for name in state["model"])
    going_on = regression(compile=then)
    going_on.load_state_dict(state)
    assert going_on.fit() == pytest.approx(whole, rel=1e-5)


def test_a_compiled_step_notices_all_that_a_model_reads_and_a_run_may_change(monkeypatch: pytest.MonkeyPatch) -> None:
    class Switched(nn.Linear):
        power = 1

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return torch.pow(activation(super().forward(inputs)), self.power) * scale

    looked: list[bool] = []

    def look(guards: Any) -> list[bool]:
        looked.extend(can_change(guards))
        return can_change(guards)

    model, inputs = Switched(2, 2), torch.randn(3, 2)
    compiled = torch.compile(model, backend="eager", fullgraph=True, options={"guard_filter_fn": look})
    assert torch.equal(compiled(inputs), model(inputs)) and not all(looked)
    for change in ({"activation": torch.tanh}, {"scale": 3.0}):
        for name, value in change.items():
            monkeypatch.setitem(globals(), name, value)
        assert torch.equal(compiled(inputs), model(inputs)), change
    model.power = 2
    assert torch.equal(compiled(inputs), model(inputs))
    model.register_forward_hook(lambda module, args, output: output + 1)
    assert torch.equal(compiled(inputs), model(inputs))


def test_a_compiled_call_asks_torch_when_something_has_changed_and_only_then() -> None:
    class Raised(nn.Linear):
        power = 1

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return torch.pow(self.bent(super().forward(inputs)), self.power)  # type: ignore[operator]

    model, asked = Raised(2, 2), []
    model.bent = torch.tanh  # type: ignore[assignment]

    def step(batch: torch.Tensor) -> torch.Tensor:
        return model(batch) + 1  # type: ignore[no-any-return]

    call = CompiledCall(step, backend="aot_eager", fullgraph=True, dynamic=False)
    ask_torch = call._compiled
    call._compiled = lambda batch: (asked.append(len(batch)), ask_torch(batch))[1]  # type: ignore[func-returns-value]

    def give(num_rows: int) -> int:
        batch = torch.randn(num_rows, 2)
        assert torch.equal(call(batch), step(batch))
        return len(asked)

    assert [give(3), give(3), give(2), give(3), give(2)] == [1, 1, 2, 2, 2]
    model.power = 2
    assert [give(3), give(3)] == [3, 3]
    for count, factor in enumerate((2.0, 3.0, 4.0), 4):  # a new function may lie where the one before lay
        model.bent = lambda inputs, factor=factor: inputs * factor  # type: ignore[assignment, misc]
        assert [give(3), give(3)] == [count, count]
    model.requires_grad_(False)
    assert [give(3), give(3)] == [7, 7]
    torch._dynamo.reset()
    assert [give(3), give(3)] == [8, 8]
    with torch.compiler.set_stance("force_eager"):
        assert [give(3), give(4)] == [9, 10]
    with torch.compiler.set_stance("eager_on_recompile"):
        assert [give(5), give(5), give(5)] == [11, 12, 13]
    assert [give(3), len(call._made)] == [13, 1]


def test_an_error_in_a_compiled_call_is_that_of_torch_and_leaves_it_usable() -> None:
    def step(batch: torch.Tensor) -> torch.Tensor:
        return batch @ torch.ones(2, 2)

    call = CompiledCall(step, backend="aot_eager", fullgraph=True)
    for _ in range(2):
        assert torch.equal(call(torch.ones(1, 2)), torch.full((1, 2), 2.0))
        with pytest.raises(torch._dynamo.exc.TorchRuntimeError):
            call(torch.ones(1, 3))


def test_graphs_are_chosen_for_small_models_whose_batches_have_one_size() -> None:
    assert choose_mode(4_321, True) == (
        "reduce-overhead",
        "steps are replayed from CUDA graphs: the model has 4,321 parameters, no more than 1,048,576",
    )
    assert choose_mode(MAX_REPLAYED + 1, True)[0] == choose_mode(4_321, False)[0] == "default"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [({}, True), ({"collate_fn": list}, False), ({"batch_sampler": lambda *_: [[0], [1, 2]]}, False)],
)
def test_a_loader_knows_whether_its_batches_have_one_size(arguments: dict[str, Any], expected: bool) -> None:
    part = Part("train", TensorDataset(torch.zeros(9, 2)))
    assert Loader(part, LoaderSettings(), shuffle=False, seed=0, **arguments).has_one_size is expected


def test_a_backend_that_there_is_not_is_told_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"trainer\.compile\.backend: there is no 'inducter'; choose of inductor, "):
        regression(compile=CompileSettings(backend="inducter"))


@pytest.mark.full
def test_machine_code_made_of_a_step_gives_the_numbers_of_an_eager_one(tmp_path: Path) -> None:
    assert regression(compile=True).fit() == pytest.approx(regression().fit(), rel=1e-4)
    make_trainer(tmp_path, epochs=2, compile=True).fit()  # dropout, batch norm, metrics
    assert not any("_orig_mod" in name for name in open_checkpoint(tmp_path)[1]["model"])


@pytest.mark.full
def test_resume_is_exact_in_machine_code_too_with_a_last_batch_of_fewer_rows(tmp_path: Path) -> None:
    straight = make_trainer(tmp_path / "a", epochs=3, compile=True)
    straight.fit()
    make_trainer(tmp_path / "b", kill_at=10, epochs=3, compile=True).fit()
    torch._dynamo.reset()  # as in another process
    resumed = make_trainer(tmp_path / "b", epochs=3, compile=True)
    resumed.load_state_dict(open_checkpoint(tmp_path / "b")[1])
    resumed.fit()
    assert_same_weights(weights(straight), weights(resumed))
    assert (tmp_path / "a" / "metrics.csv").read_bytes() == (tmp_path / "b" / "metrics.csv").read_bytes()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("chosen", [True, CompileSettings(mode="reduce-overhead")])
def test_steps_replayed_from_cuda_graphs_give_the_numbers_of_eager_ones(chosen: Any) -> None:
    trainer = regression(Task(WIDE), device="cuda", compile=chosen)
    assert trainer.step._is_replayed  # type: ignore[attr-defined]
    replayed = trainer.fit()
    assert replayed == pytest.approx(regression(Task(WIDE), device="cuda").fit(), rel=1e-4)
