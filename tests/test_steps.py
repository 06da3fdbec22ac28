"""Steps of any kind: closures, local losses, several updates of one per update of another, state, phases; resumed."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import TensorDataset

from src.config.load import config_from_dict
from src.data.loading.loader import Loader
from src.data.parts.part import Part
from src.data.settings import LoaderSettings
from src.logger.logger import Logger
from src.run.check import check
from src.run.experiment import build_experiment, build_optimizers, build_trainer
from src.trainer.checkpoints.memory import TaskMemory
from src.trainer.checkpoints.resume import open_checkpoint
from src.trainer.freezing import Freezing
from src.trainer.settings import FreezeSettings, TrainerSettings
from src.trainer.step import Step
from src.trainer.task import StepOutput, Task
from src.trainer.trainer import Trainer
from src.utils.errors import ConfigError, NumericsError
from tests.trainer_kit import KillAt, assert_same_weights, make_trainer, weights

CPU = torch.device("cpu")


def rows(num_rows: int = 40) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(num_rows, 5, generator=generator)
    return TensorDataset(inputs, inputs[:, :3].argmax(1))


def loader(data: Any, batch_size: int = 10, part: str = "train") -> Loader:
    return Loader(Part(part, data), LoaderSettings(batch_size=batch_size), shuffle=part == "train", seed=0)


# --- closures ---------------------------------------------------------------------------------------------------------


def lbfgs_trainer(
    batch_size: int, accumulate_steps: int, folder: Path | None = None, kill_at: int | None = None
) -> Trainer:
    torch.manual_seed(0)
    model = nn.Linear(5, 3)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4, history_size=3)
    settings = TrainerSettings(max_steps=6, accumulate_steps=accumulate_steps)
    return Trainer(
        Task(nn.CrossEntropyLoss()), model, loader(rows(), batch_size), {"optimizer": optimizer}, settings,
        checkpoints=folder, hooks=[KillAt(kill_at)],
    )  # fmt: skip


def test_lbfgs_steps_as_in_a_loop_by_hand() -> None:
    trainer = lbfgs_trainer(10, 1)
    torch.manual_seed(0)
    model = nn.Linear(5, 3)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4, history_size=3)
    for epoch in range(2):
        for inputs, targets in list(trainer.train_loader.batches(epoch))[: 6 - 4 * epoch]:

            def closure(inputs: Tensor = inputs, targets: Tensor = targets) -> Tensor:
                optimizer.zero_grad()
                loss = F.cross_entropy(model(inputs), targets)
                loss.backward()
                return loss

            optimizer.step(closure)
    trainer.fit()
    assert trainer.progress.step == 6
    assert torch.equal(trainer.model.weight, model.weight)  # type: ignore[arg-type]


def test_lbfgs_accumulates_ragged_batches_to_the_mean_over_all_rows() -> None:
    small, large = lbfgs_trainer(7, 6), lbfgs_trainer(40, 1)  # 40 rows in batches of 7: the last has 5
    small.fit()
    large.fit()
    assert torch.allclose(small.model.weight, large.model.weight, atol=1e-5)  # type: ignore[arg-type]


def test_lbfgs_goes_on_exactly(tmp_path: Path) -> None:
    straight = lbfgs_trainer(10, 1)
    straight.fit()
    lbfgs_trainer(10, 1, tmp_path, kill_at=3).fit()
    resumed = lbfgs_trainer(10, 1, tmp_path)
    resumed.load_state_dict(open_checkpoint(tmp_path)[1])
    assert resumed.progress.step == 3
    resumed.fit()
    assert_same_weights(weights(straight), weights(resumed))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_grad_norm": 1.0}, r"trainer\.max_grad_norm: LBFGS searches along the true gradient"),
        ({"nonfinite": "skip"}, "LBFGS moves the weights while it searches"),
        ({"several": True}, "LBFGS trains alone; beside others it needs a task with an `update` of its own"),
    ],
)
def test_what_makes_no_sense_with_a_closure_is_refused(settings: dict[str, Any], message: str) -> None:
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    optimizers: dict[str, Optimizer] = {"optimizer": torch.optim.LBFGS(first.parameters())}
    if settings.pop("several", False):
        optimizers["optimizer.second"] = torch.optim.SGD(second.parameters())
    with pytest.raises(ConfigError, match=message):
        Step(Task(nn.MSELoss()), first, optimizers, TrainerSettings(**settings), CPU, lambda output, batch: None)


def test_lbfgs_and_phases_are_refused_together() -> None:
    freeze = [{"match": "layers.1.*", "until_epoch": 1}]
    config = config_from_dict({**DIGITS, "optimizer": "LBFGS", "parameters": {"freeze": freeze}})
    with pytest.raises(ConfigError, match=r"parameters\.freeze: LBFGS goes on in directions of earlier steps"):
        build_optimizers(config, build_experiment(config, CPU))


def test_lbfgs_is_used_by_its_name_and_stops_at_a_loss_that_is_no_number(tmp_path: Path) -> None:
    whole = {**DIGITS, "loader": {"batch_size": 2000}}
    config = config_from_dict({**whole, "optimizer": {"type": "LBFGS", "args": {"line_search_fn": "strong_wolfe"}}})
    values = build_trainer(config, build_experiment(config, CPU), CPU, Logger([]), tmp_path).fit()
    assert values["train/loss"] < 1.0
    config = config_from_dict({**whole, "optimizer": {"type": "LBFGS", "args": {"lr": 1e30, "max_iter": 5}}})
    trainer = build_trainer(config, build_experiment(config, CPU), CPU, Logger([]), tmp_path)
    with pytest.raises(NumericsError):
        trainer.fit()


# --- no optimizer, no global loss -------------------------------------------------------------------------------------


def test_no_optimizer_is_refused_unless_the_task_trains_by_itself() -> None:
    with pytest.raises(ConfigError, match="optimizer: is missing, and without one only a task with an `update`"):
        Trainer(Task(nn.MSELoss()), nn.Linear(5, 3), loader(rows()), {}, TrainerSettings())


class LocalTask(Task):
    """Each layer is trained by a loss of its own; no gradient passes between layers."""

    def update(self, model: Any, batch: Any, optimizers: Mapping[str, Optimizer]) -> StepOutput:
        hidden, targets = batch
        scalars: dict[str, Tensor] = {}
        for name, optimizer in optimizers.items():
            block = model.get_submodule(name)
            hidden = block["layer"](hidden.detach()).relu()
            outputs = block["head"](hidden)
            loss = F.cross_entropy(outputs, targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scalars[name] = loss.detach()
        return StepOutput(loss.detach(), outputs.detach(), targets, float(len(targets)), scalars)


def test_layers_learn_by_losses_of_their_own() -> None:
    torch.manual_seed(0)
    sizes = {"lower": (5, 16), "upper": (16, 16)}
    model = nn.ModuleDict(
        {name: nn.ModuleDict({"layer": nn.Linear(*size), "head": nn.Linear(16, 3)}) for name, size in sizes.items()}
    )
    optimizers: dict[str, Optimizer] = {
        f"optimizer.{name}": torch.optim.Adam(block.parameters(), lr=0.01) for name, block in model.items()
    }
    trainer = Trainer(LocalTask(), model, loader(rows()), optimizers, TrainerSettings(epochs=30))
    values = trainer.fit()
    assert values["train/lower"] < 0.6 and values["train/upper"] == values["train/loss"] < 0.4


class HebbianTask(Task):
    """Oja's rule (1982): no loss, no gradient, no optimizer."""

    def update(self, model: Any, batch: Any, optimizers: Mapping[str, Optimizer]) -> StepOutput:
        (inputs, _), weight = batch, model.weight
        with torch.no_grad():
            outputs = inputs @ weight.T
            weight += 0.05 * (outputs.T @ inputs / len(inputs) - (outputs**2).mean(0)[:, None] * weight)
        return StepOutput((inputs - outputs @ weight).pow(2).mean(), outputs, None, float(len(inputs)))


def test_a_task_learns_without_optimizer_and_gradient() -> None:
    data = rows(200)
    stretched = TensorDataset(data.tensors[0] * torch.tensor([4.0, 1, 1, 1, 1]), data.tensors[1])
    torch.manual_seed(0)
    trainer = Trainer(HebbianTask(), nn.Linear(5, 1, bias=False), loader(stretched), {}, TrainerSettings(epochs=5))
    trainer.fit()
    assert abs(trainer.model.state_dict()["weight"][0, 0]) > 0.98  # the first principal component


# --- several updates of one per update of another ---------------------------------------------------------------------


class RatioTask(Task):
    """Two updates of the critic to one of the maker, counted across batches."""

    num_batches = 0

    def update(self, model: Any, batch: Any, optimizers: Mapping[str, Optimizer]) -> StepOutput:
        inputs, _ = batch
        self.num_batches += 1
        made = model["maker"](torch.randn_like(inputs))
        name, sign = ("maker", -1.0) if self.num_batches % 3 == 0 else ("critic", 1.0)
        loss = sign * (model["critic"](made) - model["critic"](inputs)).mean()
        optimizers[name].zero_grad()
        loss.backward()
        optimizers[name].step()
        return StepOutput(loss.detach(), made.detach(), None, float(len(inputs)))

    def state_dict(self) -> dict[str, Any]:
        return {"num_batches": self.num_batches}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.num_batches = state["num_batches"]


def ratio_trainer(folder: Path, kill_at: int | None = None) -> Trainer:
    torch.manual_seed(0)
    model, task = nn.ModuleDict({"maker": nn.Linear(5, 5), "critic": nn.Linear(5, 1)}), RatioTask()
    optimizers: dict[str, Optimizer] = {
        f"optimizer.{name}": torch.optim.RMSprop(part.parameters(), lr=0.01) for name, part in model.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    return Trainer(
        task, model, loader(rows()), optimizers, TrainerSettings(max_steps=11), checkpoints=folder,
        hooks=[KillAt(kill_at)], memory={"task": TaskMemory(task, CPU)},
    )  # fmt: skip


def test_a_ratio_of_updates_goes_on_exactly(tmp_path: Path) -> None:
    straight = ratio_trainer(tmp_path / "straight")
    straight.fit()
    ratio_trainer(tmp_path / "killed", kill_at=4).fit()
    resumed = ratio_trainer(tmp_path / "killed")
    resumed.load_state_dict(open_checkpoint(tmp_path / "killed")[1])
    resumed.fit()
    assert_same_weights(weights(straight), weights(resumed))
    counts = [int(optimizer.state_dict()["state"][0]["step"]) for optimizer in straight.optimizers.values()]
    assert counts == [3, 8]


# --- state from batch to batch ----------------------------------------------------------------------------------------


class Carrying(Task):
    """Adds a running sum of its inputs to them; each pass starts at zero."""

    def __init__(self, criterion: Any) -> None:
        super().__init__(criterion)
        self.begun: list[tuple[str, int]] = []
        self.total = torch.zeros(5)

    def begin(self, part: str, epoch: int) -> None:
        self.begun.append((part, epoch))
        self.total = torch.zeros(5)

    def step(self, model: Any, batch: Any) -> StepOutput:
        inputs, targets = batch
        self.total += inputs.sum(0) / 10  # in place, as careless users do
        return super().step(model, (inputs + self.total, targets))

    def state_dict(self) -> dict[str, Any]:
        return {"total": self.total}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.total = state["total"]


def carrying_trainer(folder: Path | None = None, kill_at: int | None = None, **settings: Any) -> Trainer:
    torch.manual_seed(0)
    model, task = nn.Linear(5, 3), Carrying(nn.CrossEntropyLoss())
    return Trainer(
        task, model, loader(rows(), 8), {"optimizer": torch.optim.SGD(model.parameters(), lr=0.1)},
        TrainerSettings(**{"epochs": 3, **settings}), val_loaders={"val": loader(rows(20), 8, "val")},
        checkpoints=folder, hooks=[KillAt(kill_at)], memory={"task": TaskMemory(task, CPU)},
    )  # fmt: skip


def test_a_pass_over_a_part_is_announced_to_the_task() -> None:
    trainer: Any = carrying_trainer(epochs=2)
    trainer.fit()
    assert trainer.task.begun == [("train", 0), ("val", 0), ("train", 1), ("val", 1)]


def test_an_evaluation_in_mid_epoch_leaves_the_state_of_training_as_it_was() -> None:
    plain, evaluating = carrying_trainer(), carrying_trainer(eval_every_steps=2)
    plain.fit()
    evaluating.fit()
    assert_same_weights(weights(plain), weights(evaluating))


@pytest.mark.parametrize("kill_at", [3, 5, 6])
def test_a_state_goes_on_exactly(kill_at: int, tmp_path: Path) -> None:
    straight = carrying_trainer(eval_every_steps=3)
    straight.fit()
    carrying_trainer(tmp_path, kill_at, eval_every_steps=3).fit()
    resumed = carrying_trainer(tmp_path, eval_every_steps=3)
    resumed.load_state_dict(open_checkpoint(tmp_path)[1])
    resumed.fit()
    assert_same_weights(weights(straight), weights(resumed))


# --- phases -----------------------------------------------------------------------------------------------------------

PHASES = {
    "until": [FreezeSettings("0.*", until_epoch=2), FreezeSettings("1.*", until_epoch=2)],
    "from": [FreezeSettings("[01].*", from_epoch=3)],
    "alternating": [
        FreezeSettings("[01].*", until_epoch=1, every=2), FreezeSettings("4.*", from_epoch=1, until_epoch=2, every=2)
    ],
}  # fmt: skip
MOVES = {  # whether (body, head) move in epochs 0 to 4
    "until": [(False, True), (False, True), (True, True), (True, True), (True, True)],
    "from": [(True, True), (True, True), (True, True), (False, True), (False, True)],
    "alternating": [(False, True), (True, False), (False, True), (True, False), (False, True)],
}


def phased_trainer(name: str, folder: Path | None = None, **options: Any) -> Trainer:
    trainer = make_trainer(folder, schedule="none", **options)  # AdamW, whose momentum and decay would move what rests
    trainer.freezing = Freezing(trainer.model, PHASES[name])
    return trainer


@pytest.mark.parametrize("name", PHASES)
def test_what_rests_does_not_move_and_what_is_trained_does(name: str) -> None:
    seen: list[dict[str, Tensor]] = []
    trainer = phased_trainer(name)
    seen.append(weights(trainer))
    epochs = trainer._end_epoch

    def end_epoch(timing: Any) -> None:
        seen.append(weights(trainer))
        epochs(timing)

    trainer._end_epoch = end_epoch  # type: ignore[method-assign]
    trainer.fit()
    for epoch, (before, after) in enumerate(pairwise(seen)):
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        body = {each for each in before if each[0] in "01"}  # with the statistics of the batch norm
        head = {each for each in before if each[0] == "4"}
        assert moved == (body if MOVES[name][epoch][0] else set()) | (head if MOVES[name][epoch][1] else set()), epoch


@pytest.mark.parametrize("name", PHASES)
@pytest.mark.parametrize("kill_at", [10, 14, 18])
def test_phases_go_on_exactly(name: str, kill_at: int, tmp_path: Path) -> None:
    straight = phased_trainer(name, tmp_path / "straight", eval_every_steps=4)
    straight.fit()
    phased_trainer(name, tmp_path / "killed", kill_at=kill_at, eval_every_steps=4).fit()
    resumed = phased_trainer(name, tmp_path / "killed", eval_every_steps=4)
    resumed.load_state_dict(open_checkpoint(tmp_path / "killed")[1])
    resumed.fit()
    assert_same_weights(weights(straight), weights(resumed))


DIGITS: dict[str, Any] = {
    "name": "phases",
    "data": {"type": "digits.Digits", "split": {"val": 0.2}},
    "model": {"type": "mlp.MLP", "args": {"in_features": 64, "hidden": [8, 8], "out_features": 10}},
    "loss": "CrossEntropyLoss",
    "optimizer": {"type": "AdamW", "args": {"lr": 0.01}},
    "trainer": {"epochs": 4, "device": "cpu"},
}


def test_what_is_trained_later_has_its_group_and_rate_from_the_start(tmp_path: Path) -> None:
    parameters = {
        "freeze": ["layers.1.*", {"match": "layers.3.*", "until_epoch": 2}],
        "groups": [{"match": "layers.3.*", "lr": 1e-4}],
    }
    config = config_from_dict({**DIGITS, "parameters": parameters})
    assert config_from_dict(config.as_dict()) == config
    experiment = build_experiment(config, CPU)
    trainer = build_trainer(config, experiment, CPU, Logger([]), tmp_path)
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    groups = trainer.optimizers["optimizer"].param_groups
    assert [(group["lr"], [names[id(each)] for each in group["params"]]) for group in groups] == [
        (1e-4, ["layers.3.weight", "layers.3.bias"]),
        (0.01, ["layers.5.weight", "layers.5.bias"]),
    ]


def test_a_check_tells_the_phases() -> None:
    freeze = ["layers.1.*", {"match": "layers.3.*", "until_epoch": 2}]
    text = "\n".join(check(config_from_dict({**DIGITS, "parameters": {"freeze": freeze}})))
    assert "phase      from epoch 1 on 90 parameters are trained, frozen: layers.1.*, layers.3.*" in text
    assert "phase      from epoch 3 on 162 parameters are trained, frozen: layers.1.*" in text


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"match": "layer.1.*", "until_epoch": 2}, r"parameters\.freeze: 'layer\.1\.\*' matches no parameter"),
        ({"match": "*", "until_epoch": 1}, r"with \* nothing is left to train in epoch 1"),
        ({"match": "*", "from_epoch": 2, "every": 3}, r"with \* nothing is left to train in epoch 3"),
        ({"match": "*", "from_epoch": 2, "until_epoch": 2}, r"'\*' is frozen from epoch 2 until 2"),
        ({"match": "*", "from_epoch": 2, "until_epoch": 5, "every": 4}, r"until_epoch 5 is beyond `every: 4`"),
    ],
)
def test_a_phase_that_cannot_be_is_told(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config = config_from_dict({**DIGITS, "parameters": {"freeze": [entry]}})
        build_experiment(config, CPU)


# --- layer-wise decay -------------------------------------------------------------------------------------------------


def test_each_layer_has_a_share_of_the_rate_of_the_one_above() -> None:
    config = config_from_dict({**DIGITS, "parameters": {"layer_decay": 0.5}})
    groups = build_optimizers(config, build_experiment(config, CPU))[0]["optimizer"].param_groups
    assert [group["lr"] for group in groups] == pytest.approx([0.0025, 0.005, 0.01])


def test_layers_of_an_encoder_are_its_numbered_blocks_below_them_the_embeddings_above_them_the_head() -> None:
    from src.trainer.groups import layer_depths

    names = ["body.embeddings.words.weight", "body.embeddings.norm.bias"]
    names += [f"body.encoder.layer.{block}.{part}" for block in (0, 1) for part in ("attention.0.weight", "norm.bias")]
    names += ["body.pooler.weight", "head.weight"]
    assert list(layer_depths(names).values()) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_a_schedule_that_would_level_the_rates_is_refused() -> None:
    schedule = {"type": "OneCycleLR", "args": {"max_lr": 0.1}}
    config = config_from_dict({**DIGITS, "parameters": {"layer_decay": 0.5}, "lr_scheduler": schedule})
    with pytest.raises(ConfigError, match=r"lr_scheduler: OneCycleLR gives all 3 groups of `parameters` one rate"):
        build_optimizers(config, build_experiment(config, CPU))
    schedule = {"type": "OneCycleLR", "args": {"max_lr": [0.1, 0.2, 0.4]}}
    config = config_from_dict({**DIGITS, "parameters": {"layer_decay": 0.5}, "lr_scheduler": schedule})
    build_optimizers(config, build_experiment(config, CPU))
