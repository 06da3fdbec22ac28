"""Going on with another config, and starting from the weights of another run."""

from __future__ import annotations

import copy
import csv
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from src.config import config_from_dict
from src.config.changes import check_changes
from src.trainer.checkpoints.init_from import init_weights, take_weights
from src.trainer.checkpoints.store import load_checkpoint
from src.trainer.settings import InitFrom
from src.utils.errors import CheckpointError
from tests.test_config_laws import FULL
from train import main

REFUSED = [
    "model.args.out_features=11",
    "model=lenet.LeNet",
    "data.split.val=0.3",
    "data.split.seed=5",
    "data.type=idx.IDX",
    "seed=4",
    "loader.batch_size=32",
    "optimizer.args.lr=0.1",
    "optimizer=SGD",
    "loss=mse",
    "lr_scheduler.args.gamma=0.5",
    "trainer.ema_decay=0.9",
]
APPLIED = ["trainer.epochs=9", "trainer.patience=5", "trainer.max_grad_norm=1", "metrics=[accuracy]"]
HARMLESS = [
    "trainer.save_dir=elsewhere",
    "loader.num_workers=2",
    "logger.csv=false",
    "name=other",
    "data.args.folder=/data",
    "trainer.keep=3",
]


def table(overrides: list[str], allowed: tuple[str, ...] = ()) -> list[str]:
    config = config_from_dict(FULL, overrides)
    saved = config_from_dict(FULL).as_dict()
    return check_changes(saved, config, allowed, "saved/x/1")


@pytest.mark.parametrize("override", REFUSED)
def test_what_cannot_change_is_refused_with_its_key_unless_it_is_allowed(override: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        table([override, "trainer.epochs=9"])
    key = override.partition("=")[0]
    assert f"saved/x/1: {key}" in str(caught.value)
    assert "epochs" not in str(caught.value)
    assert ("--allow-change" in str(caught.value)) == (override != "optimizer=SGD"), "its moments are of AdamW"
    assert caught.value.exit_code == 4
    assert table([override], allowed=(key.split(".")[0],))


def test_all_that_cannot_change_is_named_at_once() -> None:
    with pytest.raises(CheckpointError) as caught:
        table([*REFUSED[:1], "seed=4"])
    assert "model.args.out_features: 10 -> 11" in str(caught.value) and "seed: 3 -> 4" in str(caught.value)


def test_however_many_cannot_change_three_lines_name_them_all_and_how_to_allow_them() -> None:
    with pytest.raises(CheckpointError) as caught:
        table(["seed=4", "model.args.out_features=11", "model.args.hidden=[1]", "loader.batch_size=3"])
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    for key in ("seed", "model.args.out_features", "model.args.hidden", "loader.batch_size"):
        assert key in "\n".join(lines[:2])
    assert lines[2].endswith("--allow-change model --allow-change seed --allow-change loader.batch_size")
    assert table(["seed=4", "model.args.hidden=[1]"], ("seed", "model"))


@pytest.mark.parametrize("override", APPLIED)
def test_what_can_change_is_told(override: str) -> None:
    (line,) = table([override])
    assert line.startswith(override.partition("=")[0]) and " -> " in line


def test_what_means_nothing_is_not_told() -> None:
    assert table(HARMLESS) == []


def test_a_setting_that_is_newer_than_the_run_is_no_change() -> None:
    saved = copy.deepcopy(config_from_dict(FULL).as_dict())
    del saved["trainer"]["min_delta"], saved["loader"]["in_order"]
    assert check_changes(saved, config_from_dict(FULL), (), "x") == []


def two_layers(**sizes: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, sizes.get("hidden", 3)), nn.Linear(sizes.get("hidden", 3), sizes.get("out", 2)))


def test_only_what_is_chosen_is_taken() -> None:
    there, here = two_layers(), two_layers(out=5)
    before = here[1].weight.clone()
    take_weights(here, there.state_dict(), InitFrom("x", include=("0.*",)), "x")
    assert torch.equal(here[0].weight, there[0].weight) and torch.equal(here[1].weight, before)
    other = two_layers()
    take_weights(
        other,
        {f"net.{key}": value for key, value in there.state_dict().items()},
        InitFrom("x", rename={"net.": ""}),
        "x",
    )
    assert torch.equal(other[1].weight, there[1].weight)


def test_what_does_not_fit_is_told(caplog: pytest.LogCaptureFixture) -> None:
    there, here = two_layers().state_dict() | {"extra": torch.zeros(1)}, two_layers(out=5)
    with pytest.raises(CheckpointError) as caught:
        take_weights(here, there, InitFrom("x"), "old")
    assert "old: 2 weights match" in str(caught.value)
    assert "1 unexpected here: extra" in str(caught.value)
    assert "1.weight [2, 3] there, [5, 3] here" in str(caught.value)
    with caplog.at_level("INFO", "src"):
        take_weights(here, there, InitFrom("x", strict=False), "old")
    assert "2 weights taken" in caplog.text and "2 of another shape" in caplog.text


@pytest.mark.parametrize(
    "settings", [InitFrom("x", strict=False, rename={"0": "a", "1": "b"}), InitFrom("x", include=("z*",))]
)
def test_no_match_at_all_is_an_error(settings: InitFrom) -> None:
    model = two_layers()
    with pytest.raises(CheckpointError, match="0 weights match"):
        take_weights(model, two_layers().state_dict(), settings, "x")


def test_the_config_takes_a_path_or_a_mapping(tmp_path: Path) -> None:
    def read(init_from: Any) -> Any:
        config = config_from_dict({**FULL, "trainer": {"init_from": init_from}})
        assert config_from_dict(config.as_dict()) == config
        return config.trainer.init_from

    assert read("saved/x") == "saved/x"
    assert read({"path": "saved/x", "exclude": ["head.*"]}) == InitFrom("saved/x", exclude=("head.*",))
    model = two_layers()
    torch.save({"format": 1, "model": model.state_dict()}, tmp_path / "x.pt")
    other = two_layers()
    init_weights(other, str(tmp_path / "x.pt"))
    assert torch.equal(other[0].weight, model[0].weight)


SCHEDULES: list[tuple[dict[str, Any] | None, str]] = [
    (None, "optimizer.args.lr=0.01"),
    ({"type": "StepLR", "args": {"step_size": 2, "gamma": 0.5}}, "optimizer.args.lr=0.01"),
    ({"type": "StepLR", "args": {"step_size": 2, "gamma": 0.5}}, "lr_scheduler.args.gamma=0.1"),
    ({"type": "CosineAnnealingLR", "args": {"T_max": 9}, "every": "step", "warmup_steps": 5}, "optimizer.args.lr=0.01"),
    ({"type": "OneCycleLR", "args": {"max_lr": 0.1}}, "lr_scheduler.args.max_lr=0.01"),
    ({"type": "ReduceLROnPlateau", "args": {"patience": 0, "threshold": 1}}, "optimizer.args.lr=0.01"),
    ({"type": "CyclicLR", "args": {"base_lr": 0.01, "max_lr": 0.1}}, "lr_scheduler.args.max_lr=0.05"),
    ({"type": "phased.two_phases", "args": {"gamma": 0.5}}, "optimizer.args.lr=0.01"),
]
TWO_PHASES = """
from torch.optim.lr_scheduler import ConstantLR, ExponentialLR, LRScheduler, SequentialLR


def two_phases(optimizer, gamma: float) -> LRScheduler:
    return SequentialLR(optimizer, [ConstantLR(optimizer, 0.5, 9), ExponentialLR(optimizer, gamma)], milestones=[4])
"""


@pytest.mark.parametrize(("schedule", "changed"), SCHEDULES)
def test_a_rate_that_is_changed_on_the_way_is_from_there_on_that_of_a_run_that_always_had_it(
    schedule: dict[str, Any] | None, changed: str, tmp_path: Path
) -> None:
    config = {
        "name": "x",
        "data": {"type": "synthetic.noisy_line", "args": {"num_rows": 8}, "split": {"val": 4}},
        "loader": {"batch_size": 2},
        "model": {"type": "linear.Linear", "args": {"in_features": 1}},
        "loss": "mse",
        "optimizer": {"type": "SGD", "args": {"lr": 0.1, "momentum": 0.9}},
        "lr_scheduler": schedule,
        "trainer": {"save_dir": str(tmp_path), "epochs": 6},
        "logger": {"tensorboard": False},
    }
    file = tmp_path / "x.yaml"
    file.write_text(yaml.safe_dump(config))
    (tmp_path / "phased.py").write_text(TWO_PHASES)

    def rates_of(*words: str) -> list[float]:
        assert main([*words, "-q"]) == 0
        newest = max((tmp_path / "x").iterdir())
        rows = csv.DictReader((newest / "metrics.csv").read_text().splitlines())
        return [float(row["lr"]) for row in rows if row["lr"]][3:]

    changes = [changed, "optimizer.args.weight_decay=0.5"]
    rates_of("-c", str(file), "trainer.epochs=3")
    (run,) = (tmp_path / "x").iterdir()
    allow = ["--allow-change", "optimizer", "--allow-change", "lr_scheduler", "--trust", f"{tmp_path}/"]
    changed_rates = rates_of("-r", str(run), "trainer.epochs=6", *changes, *allow)
    (group,) = load_checkpoint(run / "checkpoints" / "last.pt")["optimizer"]["state"]["param_groups"]
    assert group["weight_decay"] == 0.5
    assert changed_rates == pytest.approx(rates_of("-c", str(file), *changes))
