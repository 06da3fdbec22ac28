"""Laws of a search space: what is drawn, and which mistakes are told before anything starts. Nothing here needs Ray."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import src.sweep.draws
import tune
from src.config.load import config_from_dict, load_config
from src.config.settings import Config
from src.config.tune import Distribution, TuneSettings
from src.sweep.space import draw, num_trials, plain_name
from src.utils.errors import ConfigError
from tests.conftest import ROOT

SPACE: dict[str, Any] = {
    "optimizer.args.lr": {"loguniform": [1e-4, 1]},
    "optimizer.args.momentum": {"uniform": [0, 0.9]},
    "trainer.epochs": {"randint": [1, 4]},
    "loader.batch_size": {"choice": [8, 16]},
    "seed": {"grid": [0, 1, 2]},
}


def line(space: dict[str, Any], **others: Any) -> Config:
    values = yaml.safe_load((ROOT / "configs/line.yaml").read_text())
    return config_from_dict({**values, "tune": {"space": space, **others}})


def settings(space: dict[str, Any], **others: Any) -> TuneSettings:
    found = line(space, **others).tune
    assert found is not None
    return found


@given(st.integers(0, 2**32 - 1), st.integers(0, 14))
def test_every_value_drawn_lies_in_its_range_and_is_a_function_of_seed_and_number(seed: int, number: int) -> None:
    values = draw(settings(SPACE, samples=5), seed, number)
    assert values == draw(settings(SPACE, samples=99), seed, number), "more samples change nothing of the first"
    assert 1e-4 <= values["optimizer.args.lr"] <= 1 and 0 <= values["optimizer.args.momentum"] <= 0.9
    assert values["trainer.epochs"] in (1, 2, 3) and values["loader.batch_size"] in (8, 16)
    assert values["seed"] == number % 3


def test_every_draw_meets_every_combination_of_the_grids() -> None:
    space = {**SPACE, "trainer.ema_decay": {"grid": [0.9, 0.99]}}
    found = settings(space, samples=4)
    assert num_trials(found) == 4 * 3 * 2
    trials = [draw(found, 0, number) for number in range(24)]
    assert len({(each["seed"], each["trainer.ema_decay"], each["optimizer.args.lr"]) for each in trials}) == 24
    assert len({each["optimizer.args.lr"] for each in trials[:6]}) == 1, "grids alone differ within one draw"


def test_the_draws_of_a_key_do_not_depend_on_the_other_keys() -> None:
    alone = {"optimizer.args.lr": SPACE["optimizer.args.lr"]}
    for number in range(5):
        assert (
            draw(settings(alone, samples=5), 0, number).items()
            <= draw(settings(SPACE, samples=5), 0, 3 * number).items()
        )


def test_a_log_uniform_range_is_filled_evenly_on_its_logarithmic_scale() -> None:
    found = settings({"optimizer.args.lr": {"loguniform": [1e-4, 1]}}, samples=400)
    places = [math.log10(draw(found, 0, number)["optimizer.args.lr"]) for number in range(400)]
    assert all(60 < sum(low <= place < low + 1 for place in places) < 140 for low in (-4, -3, -2, -1))


def test_a_name_is_as_short_as_it_can_be() -> None:
    space = {"optimizer.args.lr": 0, "a.args.width": 0, "b.args.width": 0, "model.type": 0}
    assert [plain_name(key, space) for key in space] == ["lr", "a.args.width", "b.args.width", "model.type"]


def test_a_config_with_a_space_is_printed_and_read_back_and_its_run_takes_no_notice() -> None:
    config = line(SPACE, samples=2)
    assert config_from_dict(config.as_dict()) == config
    assert "tune" not in load_config(ROOT / "configs/line.yaml").as_dict()


MISTAKES = {  # the section, as YAML -> what is told of it
    "{space: {}}": r"x.yaml:\d+:\d+ tune.space: nothing to search",
    "{samples: 3}": "tune.space: missing",
    "{space: {optimiser.args.lr: {choice: [1]}}}": "x.yaml:2:.* optimiser: unknown key; did you mean `optimizer`",
    "{space: {optimizer.args.lrr: {choice: [1, 2]}}}": r"optimizer.args.lrr: unknown argument; did you mean `lr`\?$",
    "{space: {optimizer.args.lr: {loguniform: [0, 1]}}}": "loguniform: must be > 0, found 0",
    "{space: {optimizer.args.lr: {uniform: [0, 1]}}}": r"optimizer.args.lr: must be > 0, found 0",
    "{space: {optimizer.args.lr: {uniform: [1, 0.1]}}}": "the first must be smaller than the second",
    "{space: {optimizer.args.lr: {uniform: [1]}}}": r"two numbers are needed, \[low, high\], found 1",
    "{space: {optimizer.args.lr: {unifrom: [1, 2]}}}": "unknown key; did you mean `uniform`",
    "{space: {optimizer.args.lr: {}}}": "one of choice, .* is needed, found none",
    "{space: {optimizer.args.lr: 0.1}}": "optimizer.args.lr: a mapping is needed, found 0.1",
    "{space: {optimizer.args.lr: {choice: []}}}": "at least one value is needed",
    "{space: {seed: {grid: [1, 1]}}}": "the same value stands there twice",
    "{space: {seed: {grid: [1, 2], choice: [1]}}}": "found choice and grid",
    "{space: {seed: {grid: [1, 2]}}, samples: 2}": "every trial would be made 2 times alike",
    "{space: {seed: {grid: [1, -2]}}}": r"seed: must be >= 0 .*, found -2$",
    "{space: {loader.batch_size: {uniform: [8, 32]}}}": r"a whole number is needed, and uniform draws fractions; "
    r"give randint: \[8, 33\]$",
    "{space: {model.args.in_features: {loguniform: [1, 8]}}}": r"loguniform draws fractions; give randint: \[1, 9\]$",
    "{space: {trainer.ema_decay: {uniform: [0.9, 1]}}}": "must be >= 0 and < 1, found 1$",
    "{space: {optimizer: {args: {lr: {uniform: [0.1, 1]}}}}}": "a key to search is written in one: `optimizer.args`$",
    "{space: {optimizer.lr: {uniform: [0.1, 1]}}}": r"did you mean `optimizer.args.lr`\?$",
    "{space: {trainer.epochs: {choice: [1, many]}}}": "trainer.epochs: a whole number.*'many'",
    "{space: {model.type: {choice: [linear.Linear, linear.Liner]}}}": "did you mean `Linear`",
    "{space: {name: {choice: [a, b]}}}": "is the same for all trials",
    "{space: {seed: {grid: [1]}}, samples: 0}": "tune.samples: must be >= 1",
    "{space: {seed: {grid: [1]}}, sampels: 4}": "did you mean `samples`",
    "{space: {seed: {grid: [1]}}, metric: val/acuracy, mode: max}": "tune.metric: this run logs no metric `acuracy`",
    "{space: {seed: {grid: [1]}}, metric: val/mae}": "tune.mode: missing; min or max",
    "{space: {seed: {grid: [1]}}, mode: max}": "goes with `tune.metric`",
    "{space: {seed: {grid: [1]}}, scheduler: ash}": "asha or none is needed.*did you mean `asha`",
    "{space: {seed: {grid: [1]}}, search: optuna}": "a grid means every value",
    "{space: {seed: {grid: [1]}}, grace_period: 3}": "only means something with scheduler: asha",
    "{space: {seed: {grid: [1]}}, resources_per_trial: {cpu: 4096}}": "one trial takes 4096, and there are",
}


@pytest.mark.parametrize(("section", "told"), MISTAKES.items())
def test_a_mistake_in_the_search_is_a_mistake_of_the_config(section: str, told: str, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    config = tmp_path / "x.yaml"
    config.write_text(f"base: {ROOT / 'configs/line.yaml'}\ntune: {section}\nmetrics: [mean_absolute_error]\n")
    with pytest.raises(ConfigError, match=told):
        tune.main(["-c", str(config), f"trainer.save_dir={tmp_path / 'saved'}"])
    assert [each.name for each in tmp_path.iterdir()] == ["x.yaml"], "nothing was begun"


@pytest.mark.parametrize("said", ["val/accuracy, mode: min", "val/accuracy", "val/loss, mode: max"])
def test_what_is_compared_and_what_a_trial_keeps_its_best_by_cannot_differ(said: str, tmp_path: Path) -> None:
    config = tmp_path / "x.yaml"
    section = f"{{space: {{seed: {{grid: [1]}}}}, metric: {said}}}"
    head = f"base: {ROOT / 'configs/line.yaml'}\nmetrics: [accuracy]\n"
    config.write_text(f"{head}tune: {section}\ntrainer: {{monitor: min val/loss}}\n")
    with pytest.raises(ConfigError, match=r"x.yaml:3:\d+ tune.metric: compares .* by trainer.monitor: min val/loss"):
        load_config(config)
    assert load_config(config, ["trainer.monitor=null", "tune.mode=max"])
    assert load_config(config, ["tune.metric=val/loss", "tune.mode=min"])


def test_trials_watch_what_is_compared(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    from src.sweep.run import ready

    config = tmp_path / "x.yaml"
    section = "tune: {space: {seed: {grid: [1]}}, metric: val/mae, mode: max}"
    config.write_text(f"base: {ROOT / 'configs/line.yaml'}\n{section}\nmetrics: [mae]\n")
    base, _, _ = ready(load_config(config, [f"trainer.save_dir={tmp_path / 'saved'}"]))
    assert base.trainer.monitor == "max val/mae"


@pytest.mark.parametrize(
    "override",
    [
        "tune.space.optimizer.args.lr={choice: [0.5]}",
        "tune.space.optimizer.args.lr.choice=[0.5]",
        "tune.space={optimizer.args.lr: {choice: [0.5]}}",
    ],
)
def test_an_override_says_anew_where_the_values_of_a_key_come_from(override: str, tmp_path: Path) -> None:
    config = tmp_path / "x.yaml"
    values = {"base": str(ROOT / "configs/line.yaml"), "tune": {"space": SPACE}}
    config.write_text(yaml.safe_dump(values))
    found = load_config(config, [override]).tune
    assert found is not None
    assert found.space["optimizer.args.lr"] == Distribution(choice=(0.5,)), "not both the old range and the new list"
    assert found.space.keys() == SPACE.keys()


def test_an_override_takes_a_key_out_of_the_search(tmp_path: Path) -> None:
    config = tmp_path / "x.yaml"
    config.write_text(yaml.safe_dump({"base": str(ROOT / "configs/line.yaml"), "tune": {"space": SPACE}}))
    found = load_config(config, ["tune.space.optimizer.args.lr=null"]).tune
    assert found is not None and found.space.keys() == SPACE.keys() - {"optimizer.args.lr"}
    with pytest.raises(ConfigError, match="lrr: a mapping is needed"):
        load_config(config, ["tune.space.optimizer.args.lrr=null"])


def test_several_mistakes_are_told_at_once(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    config = tmp_path / "x.yaml"
    space = "{optimizer.args.lrr: {choice: [1]}, trainer.epochs: {choice: [1, 0]}, sead: {grid: [1]}}"
    config.write_text(f"base: {ROOT / 'configs/line.yaml'}\ntune: {{space: {space}}}\n")
    with pytest.raises(ConfigError) as raised:
        tune.main(["-c", str(config), f"trainer.save_dir={tmp_path}"])
    assert len(str(raised.value).splitlines()) == 3


def test_without_a_section_or_without_ray_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"tune: missing; say what to search"):
        tune.main(["-c", str(ROOT / "configs/line.yaml")])
    monkeypatch.setattr(src.sweep.draws, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'tune: needs the package ray, .*`pip install -e ".\[ray\]"`'):
        tune.main(["-c", str(ROOT / "configs/tune_digits.yaml")])
