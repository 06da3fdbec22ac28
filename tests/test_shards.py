"""Processes that hold a part of the model each train what one process trains, and their checkpoints fit any number."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from src.data.loading.loader import Loader
from src.run.saved_run import load_model
from src.trainer.checkpoints.store import CheckpointStore
from src.trainer.faults.nonfinite import tensors_in
from src.trainer.freezing import Freezing
from src.trainer.hooks import Hook
from src.trainer.parallel.hollow import NeedsValues, build_hollow
from src.trainer.parallel.settings import ParallelSettings
from src.trainer.parallel.shards import find_units
from src.trainer.recompute import recompute
from src.trainer.settings import FreezeSettings, TrainerSettings
from src.trainer.task import Task
from src.trainer.trainer import Trainer
from src.trainer.views import Graph
from src.utils.errors import ConfigError
from src.utils.processes.ranks import ALONE
from tests.conftest import ROOT
from tests.ranks_kit import Result, Scaled, TwoPlayers, by_one, by_ranks, loader_of
from tests.shards_kit import FSDP, SCENARIOS, Block, Deep, Layered, outcomes
from tests.trainer_kit import NoisyRows

SPECIAL = ("built_once", "built_by_all", "mixed", "hidden", "halfway", "halfway_in_shards", "in_background")
EXACT = [name for name in SCENARIOS if name not in (*SPECIAL, "full_in_background", "full_at_once")]


@pytest.fixture(scope="module")
def folder() -> Path:
    return outcomes()[0]


@pytest.fixture(scope="module")
def found() -> dict[int, dict[str, Result]]:
    """What one process finds, and what two find, each going on from what the other has saved."""
    return outcomes()[1]


def assert_same(one: Result, several: Result) -> None:
    assert one["progress"] == several["progress"]
    assert one["weights"].keys() == several["weights"].keys()
    for name, weight in one["weights"].items():
        assert torch.allclose(weight, several["weights"][name], rtol=0, atol=2e-6), name
    for first, second in zip(one["epochs"], several["epochs"], strict=True):
        assert first == pytest.approx(second, rel=2e-6, abs=2e-6)


@pytest.mark.parametrize("name", EXACT)
def test_two_processes_with_half_a_model_each_train_what_one_trains(
    name: str, found: dict[int, dict[str, Result]]
) -> None:
    assert_same(found[1][name], found[2][name])


def test_counts_of_an_evaluation_are_exactly_those_of_one_process(found: dict[int, dict[str, Result]]) -> None:
    for one, two in zip(found[1]["plain"]["epochs"], found[2]["plain"]["epochs"], strict=True):
        for name in ("train/accuracy", "val/accuracy", "val/f1"):
            assert one[name] == two[name]


def test_mixed_precision_differs_by_the_rounding_of_its_type(found: dict[int, dict[str, Result]]) -> None:
    for name, weight in found[1]["mixed"]["weights"].items():
        assert torch.allclose(weight, found[2]["mixed"]["weights"][name], atol=0.02), name
        assert found[2]["mixed"]["weights"][name].dtype == torch.float32


def test_a_run_goes_on_with_another_number_of_processes_or_another_way_of_sharing(
    found: dict[int, dict[str, Result]],
) -> None:
    whole_way = found[1]["whole_way"]
    for run in (
        found[1]["resumed_by_ddp"],
        found[2]["resumed"],
        found[2]["resumed_by_ddp"],
        found[1]["resumed_in_shards"],
        found[2]["resumed_in_shards"],
    ):
        assert run["progress"] == whole_way["progress"]
        for name, weight in whole_way["weights"].items():
            assert torch.allclose(weight, run["weights"][name], rtol=0, atol=2e-6), name


def test_a_model_that_hides_its_tensors_is_refused_in_the_first_step(found: dict[int, dict[str, Result]]) -> None:
    assert found[1]["hidden"] == {"refused": ""}
    assert "Hiding returns an object that hides them; let it return tensors" in found[2]["hidden"]["refused"]


def layout(value: Any) -> Any:
    """Return keys, types, shapes."""
    if isinstance(value, dict):
        return {key: layout(part) for key, part in value.items()}
    if isinstance(value, Tensor):
        return (tuple(value.shape), value.dtype, value.device.type, type(value))
    return type(value)


def test_a_checkpoint_of_shards_looks_like_that_of_one_process(
    folder: Path, found: dict[int, dict[str, Result]]
) -> None:
    one, two = (CheckpointStore(folder / f"half-{number}").newest()[1] for number in (1, 2))
    for name in ("model", "optimizer", "ema"):
        assert layout(one[name]) == layout(two[name])
        assert list(one[name]) == list(two[name])
        assert all(each.untyped_storage().nbytes() == each.nbytes for each in tensors_in(two[name]))


def test_what_only_rank_0_builds_begins_as_in_one_process_to_the_bit_and_trains_alike(
    found: dict[int, dict[str, Result]],
) -> None:
    one, two = found[1]["built_once"], found[2]["built_once"]
    assert two["empty"] == [False, True] and two["let_go"] == [True, True]
    assert layout(one["first"]) == layout(two["first"])
    for first, second in zip(tensors_in(one["first"]), tensors_in(two["first"]), strict=True):
        assert torch.equal(first, second)
    for stream, noise in zip(two["streams"], two["noise"], strict=True):
        assert torch.equal(stream, one["streams"][0]) and torch.equal(noise, one["noise"][0])
    for name, weight in one["weights"].items():
        assert torch.allclose(weight, two["weights"][name], rtol=0, atol=2e-5), name


def test_the_other_ranks_never_hold_a_whole_model(found: dict[int, dict[str, Result]]) -> None:
    one, (_, other) = found[1]["built_once"], found[2]["built_once"]["held"]
    whole = sum(each.nbytes for each in tensors_in(one["first"]))  # with its average and what Adagrad keeps
    assert other < 0.7 * whole <= 0.8 * one["held"][0]


def test_a_model_that_cannot_be_built_without_values_is_built_by_all(found: dict[int, dict[str, Result]]) -> None:
    for quirk, (one,) in found[1]["built_by_all"].items():
        for other in found[2]["built_by_all"][quirk]:
            assert all(torch.equal(one[name], other[name]) for name in one) and one.keys() == other.keys()


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (partial(Layered, "value"), "meta tensor"),
        (partial(Layered, "loose"), "a tensor that is neither a parameter nor a buffer; use register_buffer"),
        (lambda: nn.Linear(torch.randint(1, 5, (1,), device="cpu")[0], 2), "random numbers on a device of its own"),
        (lambda: nn.LazyLinear(2), "its lazy layers take their sizes from a batch"),
    ],
)
def test_why_a_model_cannot_be_built_without_values(build: Callable[[], nn.Module], reason: str) -> None:
    stream = torch.get_rng_state()
    with pytest.raises(NeedsValues, match=reason):
        build_hollow(build)
    assert torch.equal(torch.get_rng_state(), stream)


@pytest.mark.full
def test_four_processes_train_alike_and_go_on_from_one(tmp_path: Path) -> None:
    names = ["plain", "clipped", "grouped", "skipped", "parts"]
    one = by_one([*names, "halfway"], tmp_path, SCENARIOS)
    four = by_ranks(4, [*names, "resumed"], tmp_path, "shards_kit")
    one |= by_one(["resumed"], tmp_path, SCENARIOS)
    for name in [*names, "resumed"]:
        assert_same(one[name], four[name])


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("offload", ["false", "true"])
def test_two_gpus_with_half_a_model_each_train_what_one_trains(offload: str, tmp_path: Path) -> None:
    weights = []
    for devices, rows, sharing in (("0", 64, "mode: none"), ("0,1", 32, f"mode: fsdp, cpu_offload: {offload}")):
        command = ["-c", "configs/digits.yaml", "-d", devices, f"loader.batch_size={rows}", "trainer.epochs=2"]
        own = [f"trainer.parallel={{{sharing}}}", f"trainer.save_dir={tmp_path / devices}", "trainer.ema_decay=0.9"]
        ran = subprocess.run([sys.executable, "train.py", *command, *own], cwd=ROOT, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        (run,) = (tmp_path / devices / "digits").iterdir()
        weights.append(load_model(run, "last").state_dict())
    for name, weight in weights[0].items():
        assert torch.allclose(weight, weights[1][name], atol=1e-4), name


def alone(
    model: nn.Module | None = None, task: Task | None = None, hooks: Sequence[Hook] = (), **settings: Any
) -> Trainer:
    model = model or Deep()
    return Trainer(
        task or Task(nn.CrossEntropyLoss()),
        model,
        loader(),
        {"optimizer": torch.optim.SGD(model.parameters(), lr=0.1)},
        TrainerSettings(parallel=FSDP, **settings),
        hooks=hooks,
        freezing=Freezing(model, [FreezeSettings("first.*", until_epoch=1)] if "epochs" in settings else ()),
    )


def loader() -> Loader:
    return loader_of(NoisyRows(16), ALONE, 8)


class Scalar(Deep):
    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))


class Bare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))


class Tied(Deep):
    def __init__(self) -> None:
        super().__init__()
        self.blocks[1].up.weight = self.blocks[0].up.weight


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"compile": True}, "trainer.compile: does not go with trainer.parallel: fsdp"),
        ({"channels_last": True}, "trainer.channels_last: does not go with trainer.parallel: fsdp"),
        ({"nonfinite": "rollback"}, "trainer.nonfinite: rollback does not go with .*use skip or stop"),
        ({"hooks": [Graph()]}, "hooks: views.Graph cannot trace a model under trainer.parallel: fsdp"),
        ({"epochs": 3}, "parameters.freeze: freezing for some epochs does not go with"),
        ({"model": Scalar()}, "the model's factor has none; make it torch.ones"),
        ({"model": Bare()}, "weight is held by a Bare, which has no forward"),
        ({"model": Tied()}, "blocks.0.up.weight and blocks.1.up.weight are one weight"),
        ({"task": Task(Scaled())}, "loss: Scaled has weights of its own"),
        ({"task": TwoPlayers(nn.CrossEntropyLoss())}, "task: makes its updates itself"),
    ],
)
def test_what_does_not_go_with_shards_is_refused_before_a_step_also_in_one_process(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        alone(**changes)


def test_settings_of_another_mode_are_refused() -> None:
    for settings, key in (({"mode": "ddp", "shard": ("a",)}, "shard"), ({"mode": "fsdp", "find_unused": True}, "find")):
        with pytest.raises(ConfigError, match=f"trainer.parallel.{key}"):
            ParallelSettings(**settings)


def test_by_default_the_elements_of_lists_are_units_and_the_rest_is_one() -> None:
    assert list(find_units(Deep(), ())) == ["blocks.1", "blocks.0", ""]
    assert list(find_units(nn.ModuleDict({"a": Block(), "b": Deep()}), ("b.blocks.*",)))[2:] == ["a", "b"]
    with pytest.raises(ConfigError, match=r"trainer.parallel.shard: 'block.\*' matches no module.*'blocks.\*'"):
        find_units(Deep(), ("block.*",))


def test_recomputed_activations_are_not_kept_and_give_the_same_gradients_to_the_bit() -> None:
    inputs = torch.randn(5, 6)

    def gradients(model: nn.Module) -> tuple[list[Tensor], int]:
        kept: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda each: kept.append(each) or each, lambda each: each):
            loss = model(inputs).square().sum()
        loss.backward()
        return [each.grad for each in model.parameters() if each.grad is not None], len(kept)

    plain, again = Deep(), Deep()
    names = list(again.state_dict())
    recompute(again, ["blocks.*"])
    assert list(again.state_dict()) == names
    (expected, num_kept), (given, fewer) = gradients(plain), gradients(again)
    assert all(torch.equal(one, other) for one, other in zip(expected, given, strict=True))
    assert fewer < num_kept


def test_a_batch_norm_is_not_recomputed() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    with pytest.raises(ConfigError, match=r"trainer.recompute: '0' holds the batch norm 0.1"):
        recompute(model, ["0"])
