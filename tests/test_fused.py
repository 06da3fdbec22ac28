"""By which of torch's ways optimizers compute: as the config says, on a resume too, and never past a tensor's end."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from src.config.load import config_from_dict
from src.run.experiment import build_experiment, build_optimizers
from src.trainer.checkpoints.memory import OptimizerMemory
from src.trainer.optimizers import check_fused
from src.utils.alike import Unlike
from src.utils.errors import ConfigError

CONFIG = {
    "name": "fused",
    "data": {"type": "digits.Digits"},
    "model": {"type": "mlp.MLP", "args": {"in_features": 64, "hidden": [8], "out_features": 10}},
    "loss": "CrossEntropyLoss",
}
NOT_THERE = "not there"


@pytest.mark.parametrize(
    ("kind", "args", "foreach", "fused"),
    [
        ("AdamW", {}, False, None),
        ("torch.optim.SGD", {"lr": 0.1}, False, None),
        ("AdamW", {"fused": True}, None, True),
        ("AdamW", {"foreach": True}, True, None),
        ("AdamW", {"capturable": False}, None, None),
        ("NAdam", {}, False, NOT_THERE),
        ("LBFGS", {}, NOT_THERE, NOT_THERE),
    ],
)
def test_an_optimizer_is_told_what_torch_would_choose_unless_the_config_says_otherwise(
    kind: str, args: dict[str, Any], foreach: Any, fused: Any
) -> None:
    config = config_from_dict({**CONFIG, "optimizer": {"type": kind, "args": args}})
    optimizer = build_optimizers(config, build_experiment(config, torch.device("cpu")))[0]["optimizer"]
    found = [(group.get("foreach", NOT_THERE), group.get("fused", NOT_THERE)) for group in optimizer.param_groups]
    assert found == [(foreach, fused)]
    assert config.optimizer.args == args  # type: ignore[union-attr]


def made(like: Tensor, fused: bool) -> torch.optim.Optimizer:
    return torch.optim.AdamW([nn.Parameter(like)], lr=0.01, weight_decay=0.1, fused=fused)


def trained(optimizer: torch.optim.Optimizer, seed: int) -> Tensor:
    """Make twenty steps, with gradients that lie in memory as the weights do, as those of a backward pass."""
    (parameter,) = optimizer.param_groups[0]["params"]
    generator = torch.Generator().manual_seed(seed)
    for _ in range(20):
        parameter.grad = torch.empty_like(parameter).copy_(torch.randn(parameter.shape, generator=generator))
        optimizer.step()
    weight: Tensor = parameter.detach()
    return weight


@pytest.mark.parametrize("ways", [(False, True), (True, False), (True, True)])
@pytest.mark.parametrize("layouts", [(torch.contiguous_format, torch.channels_last), (torch.channels_last,) * 2])
def test_a_run_goes_on_by_the_way_and_in_the_layout_of_its_config_with_the_same_numbers(
    ways: tuple[bool, bool], layouts: tuple[torch.memory_format, torch.memory_format]
) -> None:
    weights = torch.linspace(-1, 1, 5 * 3 * 4 * 4).reshape(5, 3, 4, 4)
    before = made(weights.clone(memory_format=layouts[0]), ways[0])
    then = made(trained(before, 0).clone(memory_format=layouts[1]), ways[1])
    OptimizerMemory(then).load_state_dict(copy.deepcopy(OptimizerMemory(before).state_dict()))
    assert then.param_groups[0]["fused"] is ways[1]
    torch.testing.assert_close(trained(then, 1), trained(before, 1))
    assert not torch.allclose(trained(then, 2), weights)


def test_a_fused_update_of_weights_with_gaps_is_refused() -> None:
    class Sliced(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.turned = nn.Parameter(torch.randn(4, 6, 5).permute(2, 0, 1))
            self.weight = nn.Parameter(torch.randn(8, 6)[:, :3])

    model = Sliced()
    check_fused(torch.optim.AdamW(model.parameters()), dict(model.named_parameters()))
    check_fused(torch.optim.AdamW([model.turned], fused=True), dict(model.named_parameters()))
    with pytest.raises(ConfigError, match=r"optimizer\.args\.fused: weight \[8, 3\] does not lie in memory in one"):
        check_fused(torch.optim.AdamW(model.parameters(), fused=True), dict(model.named_parameters()))


def test_another_number_of_groups_is_told() -> None:
    one, two = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    state = OptimizerMemory(torch.optim.SGD([one, two], lr=0.1)).state_dict()
    apart = OptimizerMemory(torch.optim.SGD([{"params": [one]}, {"params": [two]}], lr=0.1))
    with pytest.raises(Unlike, match="groups of parameters are 1 there, 2 here"):
        apart.load_state_dict(state)


@pytest.mark.parametrize("moment", ["exp_avg", "exp_avg_sq"])
def test_moments_of_another_shape_are_refused_before_a_kernel_reads_past_their_end(moment: str) -> None:
    optimizer = made(torch.zeros(1000, 50), fused=True)
    trained(optimizer, 0)
    state = copy.deepcopy(OptimizerMemory(optimizer).state_dict())
    state["state"]["state"][0][moment] = torch.zeros(3)
    with pytest.raises(Unlike, match=rf"state\.0\.{moment} is a tensor.*\[3\].*\[1000, 50\]"):
        OptimizerMemory(optimizer).load_state_dict(state)
