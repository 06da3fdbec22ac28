"""References between sections: put in at load where the config knows them, else by `build` from built objects."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.config import Component, Config, config_from_dict
from src.config.build import build
from src.config.references import Reference
from src.utils.errors import ConfigError
from tests.test_config_mistakes import GOOD, mistakes_of

GOOD_VALUES: dict[str, Any] = {
    "name": "digits",
    "data": {"type": "digits.Digits", "split": {"val": 0.1}},
    "model": {"type": "mlp.MLP", "args": {"in_features": 4, "hidden": [8], "out_features": 2}},
    "optimizer": {"type": "SGD", "args": {"lr": 0.1}},
    "trainer": {"epochs": 3},
}


def config_with(*overrides: str) -> Config:
    return config_from_dict(copy.deepcopy(GOOD_VALUES), overrides)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${trainer.epochs}", 3),
        ("${trainer.epochs * 2 + 1}", 7),
        ("${trainer.epochs / 2}", 1.5),
        ("${-trainer.epochs // 2}", -2),
        ("${model.args.hidden}", [8]),
        ("${model.hidden}", [8]),
        ("${model.hidden[0]}", 8),
        ("${max(model.hidden[0], 10)}", 10),
        ("${len(model.hidden)}", 1),
        ("${trainer.accumulate_steps}", 1),
        ("${loader.batch_size * trainer.accumulate_steps}", 32),
        ("${name}-${trainer.epochs}", "digits-3"),
        ("$${name}", "${name}"),
        ("a $${b} ${name}", "a ${b} digits"),
        ("$$${name}", "$${name}"),
        ("costs 3$", "costs 3$"),
    ],
)
def test_what_the_config_knows_is_put_in(text: str, value: Any) -> None:
    config = config_with(f"model.args.x={text!r}")
    assert isinstance(config.model, Component)
    assert config.model.args["x"] == value and type(config.model.args["x"]) is type(value)
    assert config_from_dict(config.as_dict()) == config


def test_references_in_settings_and_through_references() -> None:
    config = config_with("trainer.max_steps='${trainer.epochs * 100}'", "seed='${trainer.max_steps}'")
    assert config.trainer.max_steps == 300 and config.seed == 300


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed='${trainer.epocs}'", "seed: ${trainer.epocs}: there is no `epocs`; did you mean `epochs`?"),
        ("seed='${trainr.epochs}'", "seed: ${trainr.epochs}: there is no `trainr`; did you mean `trainer`?"),
        ("seed='${seed}'", "seed: refers to itself: seed -> seed"),
        ("model.args.x='${model.args}'", "model.args.x: refers to itself: model.args is around it"),
        ("seed='${name}'", "seed: a whole number is needed, found 'digits'"),
        ("seed='${name * 2}'", "seed: arithmetic needs numbers, found 'digits'"),
        ("seed='${1 / 0}'", "seed: ${1 / 0}: division by zero"),
        ("seed='${env:NO_SUCH_VARIABLE}'", "seed: environment variable NO_SUCH_VARIABLE isn't set"),
        ("model.args.x='${env:NO_SUCH_VARIABLE}'", "model.args.x: environment variable NO_SUCH_VARIABLE isn't set"),
        ("seed='${data.num_classes}'", "seed: ${data.num_classes} is known to a built object only"),
        (
            "trainer.max_steps='${loader.steps_per_epoch}'",
            "is known to a built object only; such values can stand below",
        ),
        ("data.args.x='${data.num_classes}'", "not known when data is built; nothing is built before it"),
        ("data.args.x='${model.width}'", "not known when data is built; nothing is built before it"),
        ("model.args.x='${optimizer.rate}'", "not known when model is built; built by then: data, loader"),
        ("seed='${__import__(\"os\")}'", "is not a key path such as `trainer.epochs`, nor arithmetic"),
        ("seed='${().__class__}'", "is not a key path such as"),
        ("seed='${[x for x in (1,)]}'", "is not a key path such as"),
        ("seed='${9**9**9}'", "is not a key path such as"),
        ("seed='${}'", "is not a key path such as"),
        ("seed='${trainer.epochs'", "`${` without `}`"),
        ("model.args.x='${data.num_classes * trainer.epocs}'", "there is no `epocs`; did you mean `epochs`?"),
    ],
)
def test_mistakes(override: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_with(override)
    lines = str(caught.value).splitlines()
    assert any(line.startswith("command line #1 ") and expected in line for line in lines), lines


def test_what_a_class_offers_is_known_as_well_as_what_an_object_does() -> None:
    class Rows:
        num_classes = 3

        def __init__(self) -> None:
            self.width = 4

    component = Component("mlp.MLP", {"out_features": Reference("${data.num_clases}")})
    with pytest.raises(ConfigError, match="did you mean `num_classes`"):
        build("model", component, available={"data": Rows()})
    component = Component("mlp.MLP", {"out_features": Reference("${data.x}")})
    with pytest.raises(ConfigError, match="known: num_classes, width"):
        build("model", component, available={"data": Rows()})


def test_a_cycle_is_shown(tmp_path: Path) -> None:
    found = mistakes_of(tmp_path, GOOD + "seed: ${trainer.keep}\n", ["trainer.keep=${seed}"])
    assert found == ["command line #1 trainer.keep: refers to itself: trainer.keep -> seed -> trainer.keep"]
    more = ["trainer.keep=${seed}", "trainer.patience=${trainer.keep + 1}", "model.args.x=${trainer.patience}"]
    assert len(mistakes_of(tmp_path, GOOD + "seed: ${trainer.keep}\n", more)) == 1


def test_late_values_come_from_built_objects() -> None:
    config = config_with(
        "model.args.out_features='${data.num_classes}'",
        "model.args.hidden=['${data.num_classes * 2}', '${trainer.epochs}']",
        "lr_scheduler={type: StepLR, args: {step_size: '${trainer.epochs * loader.steps_per_epoch}'}}",
        "optimizer.args.weight_decay='${model.args.out_features / 100}'",
    )
    assert config_from_dict(config.as_dict()) == config
    assert isinstance(config.model, Component) and isinstance(config.optimizer, Component)
    assert config.model.args["out_features"] == Reference("${data.num_classes}")
    available = {"data": SimpleNamespace(num_classes=10), "loader": {"steps_per_epoch": 7}}
    model = build("model", config.model, available=available)
    assert [layer.out_features for layer in model.modules() if hasattr(layer, "out_features")] == [20, 3, 10]
    optimizer = build("optimizer", config.optimizer, model.parameters(), available=available)
    assert optimizer.param_groups[0]["weight_decay"] == 0.1
    assert isinstance(config.lr_scheduler, Component)
    assert build("lr_scheduler", config.lr_scheduler, optimizer, available=available).step_size == 21


@pytest.mark.parametrize(
    ("text", "available", "expected"),
    [
        (
            "${data.num_clases}",
            {"data": SimpleNamespace(num_classes=3)},
            "no value `num_clases`; did you mean `num_classes`?",
        ),
        ("${data.zzz}", {"data": SimpleNamespace(a=1, b=2, _c=3)}, "SimpleNamespace has no value `zzz`; known: a, b"),
        ("${data.num_classes}", {}, "no `data` is built yet; there is nothing"),
        ("${data.__class__}", {"data": SimpleNamespace(a=1)}, "has no value `__class__`; known: a"),
        ("${data.index}", {"data": (1, 2)}, "tuple has no value `index`"),
        ("${loader.steps}", {"loader": {"step": 1}}, "loader has no value `steps`; did you mean `step`?"),
        ("${data.x * 2}", {"data": {"x": "a"}}, "arithmetic needs numbers, found 'a'"),
    ],
)
def test_late_mistakes(text: str, available: dict[str, object], expected: str) -> None:
    config = config_with(f"model.args.out_features='{text}'")
    assert isinstance(config.model, Component)
    with pytest.raises(ConfigError) as caught:
        build("model", config.model, available=available)
    assert str(caught.value).startswith("command line #1 model.args.out_features: ") and expected in str(caught.value)


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA_ROOT", "/data")
    monkeypatch.setenv("SEED", "7")
    config = config_with(
        "data.args.folder='${env:DATA_ROOT}/mnist'", "seed='${env:SEED}'", "trainer.save_dir='${env:DATA_ROOT}'"
    )
    assert config.seed == 7 and config.trainer.save_dir == "/data"
    written = config.as_dict()
    assert written["data"]["args"]["folder"] == "${env:DATA_ROOT}/mnist"  # another machine has another folder
    assert config.data.source is not None
    folder = config.data.source.args["folder"]
    assert isinstance(folder, Reference) and folder.value({}) == "/data/mnist"


@given(st.text("a${}:.*+1", max_size=12))
def test_any_text_resolves_or_is_refused(text: str) -> None:
    values = copy.deepcopy(GOOD_VALUES)
    values["model"]["args"]["x"] = text
    try:
        config = config_from_dict(values)
    except ConfigError:
        return
    assert config_from_dict(config.as_dict()) == config
