"""Optimizers that update in one kernel: chosen where torch has one, with the numbers of the other way."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from src.config.load import config_from_dict
from src.run.experiment import build_experiment, build_optimizers
from src.trainer.checkpoints.memory import OptimizerMemory
from src.trainer.optimizers import fastest_way

CONFIG = {
    "name": "fused",
    "data": {"type": "digits.Digits"},
    "model": {"type": "mlp.MLP", "args": {"in_features": 64, "hidden": [8], "out_features": 10}},
    "loss": "CrossEntropyLoss",
}


@pytest.mark.parametrize(
    ("kind", "args", "mode", "expected"),
    [
        ("AdamW", {}, "auto", True),
        ("torch.optim.Adam", {"lr": 0.1}, "auto", True),
        ("AdamW", {"fused": False}, "auto", False),
        ("AdamW", {"foreach": True}, "auto", None),
        ("AdamW", {"capturable": False}, "auto", None),
        ("AdamW", {}, "fsdp", None),
        ("SGD", {"lr": 0.1}, "auto", None),
        ("SGD", {"lr": 0.1, "fused": True}, "auto", True),
        ("NAdam", {}, "auto", "none of its own"),
        ("LBFGS", {}, "auto", "none of its own"),
    ],
)
def test_adam_updates_in_one_kernel_unless_the_config_says_how(
    kind: str, args: dict[str, Any], mode: str, expected: Any
) -> None:
    given = {"optimizer": {"type": kind, "args": args}, "trainer": {"parallel": {"mode": mode}}}
    config = config_from_dict({**CONFIG, **given})
    optimizer = build_optimizers(config, build_experiment(config, torch.device("cpu")))[0]["optimizer"]
    assert [group.get("fused", "none of its own") for group in optimizer.param_groups] == [expected]
    assert config.optimizer.args == args  # type: ignore[union-attr]


def test_what_torch_has_no_kernel_for_is_updated_its_own_way() -> None:
    whole, rational = nn.Parameter(torch.zeros(2, dtype=torch.complex64)), nn.Parameter(torch.zeros(2))
    assert fastest_way(torch.optim.AdamW, [rational]) == {"fused": True}
    assert fastest_way(torch.optim.AdamW, [rational, whole]) == {"foreach": False}
    assert fastest_way(torch.optim.AdamW, [nn.Parameter(torch.zeros(2, device="meta"))]) == {}


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
@pytest.mark.parametrize("ways", [(False, True), (True, False)])
def test_a_run_goes_on_by_the_way_that_its_config_says_with_the_same_numbers(
    kind: Any, ways: tuple[bool, bool]
) -> None:
    def steps(optimizer: torch.optim.Optimizer, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for _ in range(20):
            for parameter in optimizer.param_groups[0]["params"]:
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()

    first, second = (nn.Parameter(torch.linspace(-1, 1, 1001)) for _ in range(2))
    before, other = (
        kind([parameter], lr=0.01, weight_decay=0.1, fused=way)
        for parameter, way in zip((first, second), ways, strict=True)
    )
    steps(before, 0)
    state = OptimizerMemory(before).state_dict()
    with torch.no_grad():
        second.copy_(first)
    OptimizerMemory(other).load_state_dict(copy.deepcopy(state))
    assert other.param_groups[0]["fused"] is ways[1]
    steps(before, 1)
    steps(other, 1)
    torch.testing.assert_close(first, second)
    assert not torch.equal(first, torch.linspace(-1, 1, 1001))
