"""Freezing, and rates and decays by pattern: what is trained is exactly what the config says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from src.config.load import config_from_dict
from src.run.experiment import build_experiment, build_optimizers
from src.trainer.freezing import Freezing
from src.trainer.groups import parameter_groups
from src.trainer.settings import GroupSettings, ParameterSettings
from src.utils.errors import ConfigError
from tests.trainer_kit import make_trainer

CONFIG = {
    "name": "frozen",
    "data": {"type": "digits.Digits"},
    "model": {"type": "mlp.MLP", "args": {"in_features": 64, "hidden": [8], "out_features": 10}},
    "loss": "CrossEntropyLoss",
    "optimizer": {"type": "AdamW", "args": {"lr": 0.01, "weight_decay": 0.1}},
}


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_a_config_freezes_and_groups() -> None:
    groups = [{"match": "layers.3.*", "lr": 1e-3}]
    config = config_from_dict(
        {**CONFIG, "parameters": {"freeze": ["layers.1.*"], "groups": groups, "no_decay_on_norms_and_biases": True}}
    )
    assert config_from_dict(config.as_dict()) == config
    experiment = build_experiment(config, torch.device("cpu"))
    optimizer = build_optimizers(config, experiment)[0]["optimizer"]
    found = {
        (group["lr"], group["weight_decay"]): [p.dim() for p in group["params"]] for group in optimizer.param_groups
    }
    assert found == {(1e-3, 0.1): [2], (1e-3, 0.0): [1]}


def test_the_first_group_that_matches_counts_and_the_rest_keeps_the_optimizers_rate() -> None:
    model = net()
    settings = ParameterSettings(groups=(GroupSettings("2.weight", lr=0.5), GroupSettings("2.*", lr=0.1)))
    optimizer = torch.optim.SGD(parameter_groups(dict(model.named_parameters()), settings), lr=1.0)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert [rates[id(p)] for p in model.parameters()] == [1.0, 1.0, 1.0, 1.0, 0.5, 0.1]


@pytest.mark.parametrize(("pattern", "near"), [("layer.1.*", "layers.1."), ("layers.1.wieght", "layers.1.weight")])
@pytest.mark.parametrize("key", ["freeze", "groups"])
def test_a_pattern_that_matches_nothing_is_an_error_with_near_names(key: str, pattern: str, near: str) -> None:
    given = [pattern] if key == "freeze" else [{"match": pattern, "lr": 1.0}]
    config = config_from_dict({**CONFIG, "parameters": {key: given}})
    with pytest.raises(
        ConfigError, match=rf"parameters\.{key}: '{pattern}'.*matches no.*did you mean '{near}".replace("*'", r"\*'")
    ):
        build_optimizers(config, build_experiment(config, torch.device("cpu")))


def test_a_frozen_batch_norm_does_not_move_while_others_do(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, num_steps=35)
    Freezing(trainer.model, ["0.*", "1.*"])
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.fit()
    moved = {name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"4.weight", "4.bias"}
