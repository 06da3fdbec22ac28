"""Laws of trying a state: what cannot make a step is named, what can is left as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from src.trainer.checkpoints.memory import OptimizerMemory
from src.trainer.checkpoints.trial import check_moments, check_next_move, check_settings
from src.utils.alike import Unlike
from tests.chaos import unequal

OPTIMIZERS: list[Callable[..., torch.optim.Optimizer]] = [
    torch.optim.AdamW,
    torch.optim.RMSprop,
    torch.optim.Adagrad,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.Rprop,
    torch.optim.Adafactor,
    lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True),
    lambda parameters: torch.optim.AdamW(parameters, amsgrad=True, foreach=True),
]


def trained(make: Callable[..., torch.optim.Optimizer]) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    optimizer = make(model.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(5, 4)).square().sum().backward()
        optimizer.step()
    return model, optimizer


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_a_good_state_is_tried_and_left_as_it_was(make: Callable[..., torch.optim.Optimizer]) -> None:
    model, optimizer = trained(make)
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    gradients = [each.grad.clone() for each in model.parameters() if each.grad is not None]
    check_settings(optimizer)
    check_moments(optimizer)
    assert not list(unequal(before, (model.state_dict(), optimizer.state_dict())))
    assert all(map(torch.equal, gradients, [each.grad for each in model.parameters()]))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        (
            "exp_avg",
            torch.zeros(2, 2),
            r"state.0.exp_avg is a tensor \[2, 2\] .*, a tensor \[3, 4\] of float32 is needed",
        ),
        ("exp_avg", None, "state.0.exp_avg is missing"),
        ("exp_avg_sq", "x", "state.0.exp_avg_sq is .*, a tensor"),
        ("step", torch.tensor(-1.0), "state.0 makes no step: .*zero"),
    ],
)
def test_a_state_that_makes_no_step_is_named_with_what_is_needed(key: str, value: Any, told: str) -> None:
    _, optimizer = trained(torch.optim.AdamW)
    state = OptimizerMemory(optimizer).state_dict()
    if value is None:
        del state["state"]["state"][0][key]
    else:
        state["state"]["state"][0][key] = value
    with pytest.raises(Unlike, match=told):
        OptimizerMemory(trained(torch.optim.AdamW)[1]).load_state_dict(state)


def test_an_optimizer_that_makes_no_step_without_a_state_either_is_not_judged() -> None:
    class Odd(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            raise KeyError("only with gradients that are sparse")

    parameter = nn.Parameter(torch.zeros(3))
    optimizer = Odd([parameter], lr=0.1)
    optimizer.state[parameter] = {"sum": torch.zeros(3)}
    check_moments(optimizer)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("betas", (1e300, 0.9), r"param_groups\[0\]: Invalid beta"),
        ("betas", (0.9,), r"param_groups\[0\]: "),
        ("eps", -1.0, r"param_groups\[0\]: Invalid epsilon"),
    ],
)
def test_settings_that_the_constructor_would_refuse_are_refused(key: str, value: Any, told: str) -> None:
    _, optimizer = trained(torch.optim.AdamW)
    state = copy.deepcopy(OptimizerMemory(optimizer).state_dict())
    state["state"]["param_groups"][0][key] = value
    with pytest.raises(Unlike, match=told):
        OptimizerMemory(optimizer).load_state_dict(state)


def test_a_state_of_a_parameter_that_is_no_mapping_is_refused() -> None:
    _, optimizer = trained(torch.optim.AdamW)
    state = copy.deepcopy(OptimizerMemory(optimizer).state_dict())
    state["state"]["state"][0] = []
    with pytest.raises(Unlike, match=r"state\.0 is a list, a mapping is needed"):
        OptimizerMemory(optimizer).load_state_dict(state)


def test_the_ends_of_a_curve_are_those_of_the_config_whatever_a_checkpoint_says() -> None:
    _, optimizer = trained(torch.optim.AdamW)
    lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=9)
    state = copy.deepcopy(OptimizerMemory(optimizer).state_dict())
    state["state"]["param_groups"][0] |= {"max_momentum": -1, "lr": 0.05}
    OptimizerMemory(optimizer).load_state_dict(state)
    assert optimizer.param_groups[0]["max_momentum"] == 0.95 and optimizer.param_groups[0]["lr"] == 0.05


@pytest.mark.parametrize(
    ("make", "key", "value"),
    [
        (lambda optimizer: lr_scheduler.StepLR(optimizer, 3), "step_size", 0),
        (lambda optimizer: lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 3), "T_i", None),
        (lambda optimizer: lr_scheduler.ReduceLROnPlateau(optimizer), "best", "x"),
        (lambda optimizer: lr_scheduler.OneCycleLR(optimizer, 0.1, 10), "base_lrs", []),
    ],
)
def test_a_schedule_that_cannot_move_on_is_named_and_one_that_can_is_left_as_it_was(
    make: Callable[[Any], Any], key: str, value: Any
) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=0.1, momentum=0.9)
    scheduler = make(optimizer)
    before = copy.deepcopy((scheduler.state_dict(), optimizer.state_dict()))
    check_next_move(scheduler, optimizer)
    assert not list(unequal(before, (scheduler.state_dict(), optimizer.state_dict())))
    if key in scheduler.state_dict() and key != "base_lrs":
        scheduler.load_state_dict({**scheduler.state_dict(), key: value})
        with pytest.raises(Unlike, match="cannot move on: "):
            check_next_move(scheduler, optimizer)
