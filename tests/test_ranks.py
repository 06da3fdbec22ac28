"""Several real processes train what one process trains: the same weights to rounding, the same counts exactly."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from src.data.loading.share import Share
from src.trainer.checkpoints.memory import TaskMemory
from src.trainer.parallel.shared_step import SharedStep
from src.trainer.settings import TrainerSettings
from src.trainer.task import StepOutput, Task
from src.utils.device import find_device
from src.utils.errors import CheckpointError, ConfigError
from src.utils.processes.ranks import ALONE, Ranks
from tests.ranks_kit import SCENARIOS, Result, by_one, by_ranks

TRAINED = [name for name in SCENARIOS if name not in ("carried", "compressed", "evaluated", "newest")]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, dict[str, Result]]]:
    """What one process finds, and what two find."""
    folder = tmp_path_factory.mktemp("ranks")
    yield {1: by_one([*SCENARIOS], folder), 2: by_ranks(2, [*SCENARIOS], folder)}


def assert_same_training(one: Result, several: Result) -> None:
    assert one["progress"] == several["progress"]
    for name, weight in one["weights"].items():
        assert torch.allclose(weight, several["weights"][name], rtol=0, atol=1e-6), name
    for first, second in zip(one["epochs"], several["epochs"], strict=True):
        assert first == pytest.approx(second, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("name", TRAINED)
def test_two_ranks_train_what_one_process_trains(name: str, found: dict[int, dict[str, Result]]) -> None:
    assert_same_training(found[1][name], found[2][name])


@pytest.mark.parametrize(("dtype", "tolerance"), [("bf16", 1e-2), ("fp16", 1e-3)])
def test_compressed_gradients_differ_by_the_rounding_of_their_type(
    dtype: str, tolerance: float, found: dict[int, dict[str, Result]]
) -> None:
    one, several = (found[each]["compressed"][dtype]["weights"] for each in (1, 2))
    distances = [float((several[name] - weight).abs().max()) for name, weight in one.items()]
    assert 0 < max(distances) < tolerance


def test_what_each_rank_carries_goes_on_exactly(found: dict[int, dict[str, Result]]) -> None:
    for num_ranks in (1, 2):
        carried = found[num_ranks]["carried"]
        assert all(torch.equal(weight, carried["resumed"][name]) for name, weight in carried["straight"].items())
        assert not torch.equal(carried["stopped"]["0.weight"], carried["resumed"]["0.weight"])


def test_all_ranks_go_back_to_the_checkpoint_that_rank_0_has_found(found: dict[int, dict[str, Result]]) -> None:
    assert found[1]["newest"]["steps"] == [1]
    assert found[2]["newest"]["steps"] == [1, 1]


def test_what_ranks_carry_is_not_divided_among_others() -> None:
    task = Task()
    with pytest.raises(CheckpointError, match="carries a state of each of 2 processes; go on with as many"):
        TaskMemory(task, torch.device("cpu")).load_state_dict({"of_ranks": [{}, {}]})


class Second(Ranks):
    local_rank, is_alone = 1, False


def test_ranks_do_not_share_a_gpu() -> None:
    for name in ("cuda:0", "0"):
        with pytest.raises(ConfigError, match="several processes need a GPU each; use cuda, or a list such as 0,1"):
            find_device(name, Second())
    with pytest.raises(ConfigError, match="2 devices, and there is a process number 3"):
        find_device("cpu,cpu", type("Third", (Second,), {"local_rank": 2})())
    assert find_device("cpu,cpu", Second()) == torch.device("cpu")


class ByItself(Task):
    def update(self, model: Any, batch: Any, optimizers: Any) -> StepOutput:
        raise NotImplementedError


def test_what_processes_could_not_do_alike_is_refused() -> None:
    model = nn.Linear(2, 2)
    lbfgs = {"optimizer": torch.optim.LBFGS(model.parameters())}
    for task, optimizers, message in (
        (Task(nn.MSELoss()), lbfgs, "LBFGS asks for the loss several times a step; it trains in one process only"),
        (ByItself(), {}, "a task that changes weights by itself trains in one process only"),
    ):
        with pytest.raises(ConfigError, match=message):
            SharedStep(
                task, model, model, optimizers, TrainerSettings(), torch.device("cpu"), lambda *_: None, ALONE,
                lambda: False,
            )  # fmt: skip


def test_parameters_of_the_loss_are_trained_alike(found: dict[int, dict[str, Result]]) -> None:
    assert torch.allclose(found[1]["learned_loss"]["scale"], found[2]["learned_loss"]["scale"], atol=1e-6)


def assert_same_evaluation(one: Result, several: Result) -> None:
    for name in ("val/accuracy", "val/f1", "val/auc", "val/spread"):
        assert one["classes"][name] == several["classes"][name], name
    assert one["values"]["val/r2"] == pytest.approx(several["values"]["val/r2"], abs=1e-9)


def test_every_row_is_evaluated_once_whatever_the_metric(found: dict[int, dict[str, Result]]) -> None:
    assert_same_evaluation(found[1]["evaluated"], found[2]["evaluated"])


@pytest.mark.full
@pytest.mark.parametrize("num_ranks", [3, 4])
def test_more_ranks_evaluate_alike(num_ranks: int, tmp_path: Path) -> None:
    one, several = by_one(["evaluated"], tmp_path), by_ranks(num_ranks, ["evaluated"], tmp_path)
    assert_same_evaluation(one["evaluated"], several["evaluated"])


@pytest.mark.full
def test_four_ranks_train_what_one_process_trains(tmp_path: Path) -> None:
    one, several = by_one(TRAINED, tmp_path), by_ranks(4, TRAINED, tmp_path)
    for name in TRAINED:
        assert_same_training(one[name], several[name])


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_shares_hold_every_row_once_and_in_order(count: int) -> None:
    for num_rows in range(10):
        bounds = [Share(index, count).bounds(num_rows) for index in range(count)]
        assert [row for first, end in bounds for row in range(first, end)] == list(range(num_rows))
        sizes = [end - first for first, end in bounds]
        assert max(sizes) - min(sizes) <= 1 and sizes == sorted(sizes, reverse=True)
