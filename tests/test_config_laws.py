"""Laws of configs: what is accepted comes back equal, what is misspelt is named, nothing heavy is imported."""

from __future__ import annotations

import copy
import json
import string
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from src.config import Component, Config, config_from_dict, load_config
from src.config.mistakes import Mistakes
from src.config.signatures import check_components
from src.config.yaml_file import read_text, scalar
from src.data.settings import LoaderSettings
from src.utils.errors import ConfigError
from tests.conftest import ROOT
from tests.test_config_mistakes import GOOD, load

FULL: dict[str, Any] = {
    "name": "full",
    "seed": 3,
    "data": {
        "type": "digits.Digits",
        "args": {},
        "split": {"val": 0.2, "test": 0.1, "stratify": True, "seed": 1},
        "transforms": [{"type": "a.B", "args": {}}],
        "train": {"transforms": [{"type": "a.C", "args": {"p": 0.5}}, "a.D"]},
        "val_noisy": {"type": "a.E", "args": {}},
    },
    "loader": {"batch_size": 64, "num_workers": 0, "val": {"batch_size": 512}},
    "model": {"type": "mlp.MLP", "args": {"in_features": 64, "hidden": [32], "out_features": 10}},
    "loss": {"ce": {"type": "CrossEntropyLoss", "args": {}, "weight": 0.5}, "other": "mse"},
    "metrics": ["accuracy", {"name": "f1_macro", "type": "f1_score", "args": {"average": "macro"}}],
    "optimizer": {"type": "AdamW", "args": {"lr": 0.001}},
    "lr_scheduler": {"type": "StepLR", "args": {"step_size": 3}, "every": "epoch", "warmup_steps": 5},
    "trainer": {"epochs": 3, "monitor": "min val/loss", "patience": 2, "keep": 1, "compile": {"mode": "default"}},
    "logger": {"tensorboard": False, "csv": True, "bar": False},
    "task": {"inputs": 0, "targets": 1},
    "hooks": [{"type": "x.Y", "args": {"every": 3}}],
}


def test_full_config_round_trips() -> None:
    config = config_from_dict(FULL)
    assert config_from_dict(config.as_dict()) == config
    assert config_from_dict(yaml.safe_load(yaml.safe_dump(config.as_dict()))) == config
    assert config.task == Component("Task", {"inputs": 0, "targets": 1})
    assert config.data.part_names() == ("train", "val", "test", "val_noisy")


def key_paths(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Key paths whose last key the schema knows: not arguments, and not names the user gave."""
    for key, item in value.items():
        if path[-1:] != ("args",) and path not in (("loss",), ("task",), ("trainer", "compile")):
            yield (*path, key)
        if isinstance(item, dict):
            yield from key_paths(item, (*path, key))


KEYS = [path for path in key_paths(FULL) if path != ("data", "val_noisy")]


@given(st.data())
def test_every_typo_of_a_key_is_reported_with_the_right_spelling(data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(KEYS))
    key = path[-1]
    index = data.draw(st.integers(0, len(key) - 1))
    letter = data.draw(st.sampled_from(string.ascii_lowercase))
    kind = data.draw(st.sampled_from(["drop", "add", "change", "swap"]))
    typo = {
        "drop": key[:index] + key[index + 1 :],
        "add": key[:index] + letter + key[index:],
        "change": key[:index] + letter + key[index + 1 :],
        "swap": key[:index] + key[index : index + 2][::-1] + key[index + 2 :],
    }[kind]
    values = copy.deepcopy(FULL)
    section = values
    for each in path[:-1]:
        section = section[each]
    if typo in section or typo.startswith(("val_", "test_")):
        return
    section[typo] = section.pop(key)
    with pytest.raises(ConfigError) as caught:
        config_from_dict(values)
    where = ".".join((*path[:-1], typo))
    hint = next(line for line in str(caught.value).splitlines() if f"{where}: unknown key; did you mean " in line)
    assert f"`{key}`" in hint.partition("did you mean")[2]


ARGUMENTS = [("model", key) for key in FULL["model"]["args"]] + [("optimizer", "lr"), ("lr_scheduler", "step_size")]


@pytest.mark.parametrize(("section", "key"), ARGUMENTS)
def test_typos_of_arguments_are_reported_with_the_right_spelling(section: str, key: str, tmp_path: Path) -> None:
    values = {**copy.deepcopy(FULL), "data": "digits.Digits", "loader": {}, "hooks": [], "metrics": ["accuracy"]}
    values["trainer"] = {"epochs": 1}
    for typo in (key[1:], key[:-1], key + "x", key[0] + "_" + key[1:]):
        wrong = copy.deepcopy(values)
        wrong[section]["args"][typo] = wrong[section]["args"].pop(key)
        with pytest.raises(ConfigError) as caught:
            check_components(config_from_dict(wrong))
        assert f"{section}.args.{typo}: unknown argument; did you mean `{key}`?" in str(caught.value)


plain_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
arguments = st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), plain_values, max_size=3)
names = st.from_regex(r"[a-z]{1,5}(\.[A-Z][a-z]{1,5})?", fullmatch=True)
component = st.builds(lambda name, args: {"type": name, "args": args}, names, arguments) | names


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    values: dict[str, Any] = {"name": draw(st.from_regex(r"[a-z][a-z0-9._-]{0,20}z", fullmatch=True))}
    values["data"] = {"type": draw(names), "split": {"val": draw(st.sampled_from([0, 0.25, 100]))}}
    values["data"]["transforms"] = draw(st.lists(component, max_size=2))
    values["model"] = draw(component | st.dictionaries(st.sampled_from(["gen", "disc"]), component, min_size=1))
    values["loss"] = draw(st.none() | component)
    values["metrics"] = [{"name": f"m{i}", "type": each} for i, each in enumerate(draw(st.lists(names, max_size=3)))]
    values["trainer"] = {"epochs": draw(st.none() | st.integers(1, 10**6)), "keep": draw(st.integers(1, 9))}
    values["loader"] = {"batch_size": draw(st.integers(1, 512)), "val": {"drop_last": draw(st.booleans())}}
    if not values["data"]["split"]["val"]:
        del values["loader"]["val"]
    values["hooks"] = draw(st.lists(component, max_size=2))
    return values


@given(configs())
def test_accepted_configs_come_back_equal(values: dict[str, Any]) -> None:
    config = config_from_dict(values)
    written = config.as_dict()
    assert config_from_dict(written) == config
    assert config_from_dict(json.loads(json.dumps(written))) == config
    text = yaml.safe_dump(written, allow_unicode=True)
    node = read_text(text, "x", Mistakes())
    assert node is not None


@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**30), 10**30))
def test_numbers_are_read_as_python_writes_them(number: float) -> None:
    assert scalar(repr(number)) == number and type(scalar(repr(number))) is type(number)


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 0.001), ("1E5", 1e5), ("1.e-3", 0.001), (".5", 0.5), ("1e5", 1e5), ("+1", 1), ("-0", 0), ("0x1F", 31)]
    + [
        ("0o17", 15),
        ("1.0", 1.0),
        ("5.", 5.0),
        ("~", None),
        ("null", None),
        ("", None),
        ("true", True),
        ("False", False),
    ]
    + [
        (word, word)
        for word in ("on", "off", "yes", "no", "y", "On", "NO", "2026-01-01", "1:30", "1.2.3", "inf", "nan")
    ]
    + [(word, word) for word in ("e5", "1e", "0x", "1_000", "010", "--1", "1 2", ".", "-", "=", "TrUe", "0b1")],
)
def test_scalars(text: str, value: Any) -> None:
    assert scalar(text) == value and type(scalar(text)) is type(value)


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        read_text(text, "x", Mistakes())
    except ConfigError as error:
        assert str(error).isprintable() or "\n" in str(error)


@given(st.data())
def test_broken_configs_raise_nothing_else(data: st.DataObject) -> None:
    values = copy.deepcopy(FULL)
    for _ in range(data.draw(st.integers(1, 3))):
        *parents, last = data.draw(st.sampled_from(list(key_paths(FULL))))
        section: Any = values
        for key in parents:
            section = section.get(key, {}) if isinstance(section, dict) else {}
        if isinstance(section, dict):
            section[last] = data.draw(plain_values)
    try:
        config = config_from_dict(values)
    except ConfigError as error:
        assert str(error)
    else:
        assert config_from_dict(config.as_dict()) == config


OVERRIDES: list[tuple[list[str], dict[str, Any]]] = [
    (["model=lenet.LeNet"], {"model": Component("lenet.LeNet")}),
    (["model.type=lenet.LeNet"], {"model": Component("lenet.LeNet")}),
    (["model=mlp.MLP"], {"model": Component("mlp.MLP", {"hidden": [3]})}),
    (["model.args.hidden=[1, 2]"], {"model": Component("mlp.MLP", {"hidden": [1, 2]})}),
    (["model={type: a.B, args: {c: 1e-3}}"], {"model": Component("a.B", {"c": 0.001})}),
    (["optimizer=SGD", "optimizer.args.lr=1e-1"], {"optimizer": Component("SGD", {"lr": 0.1})}),
    (["optimizer.type=AdamW"], {"optimizer": Component("AdamW", {})}),
    (["optimizer.args.momentum=0.9"], {"optimizer": Component("SGD", {"lr": 0.5, "momentum": 0.9})}),
    (["loss.args.weight=[1, 2]"], {"loss": Component("CrossEntropyLoss", {"weight": [1, 2]})}),
    (["loss=null"], {"loss": None}),
    (["loss="], {"loss": None}),
    (["name=no"], {"name": "no"}),
    (["seed=1", "seed=2"], {"seed": 2}),
    (["metrics=[]"], {"metrics": {}}),
    (["metrics.0.args.k=2"], {"metrics": {"accuracy": Component("accuracy", {"k": 2})}}),
    (["task.inputs=a"], {"task": Component("Task", {"inputs": "a"})}),
    (["task=my.Task"], {"task": Component("my.Task")}),
    (["loader.batch_size=7"], {"loader": LoaderSettings(batch_size=7)}),
    (["model.args.text=a=b"], {"model": Component("mlp.MLP", {"hidden": [3], "text": "a=b"})}),
    (['model.args.text="1"'], {"model": Component("mlp.MLP", {"hidden": [3], "text": "1"})}),
]


@pytest.mark.parametrize(("overrides", "expected"), OVERRIDES)
def test_overrides(overrides: list[str], expected: dict[str, Any], tmp_path: Path) -> None:
    text = GOOD.replace("model: mlp.MLP", "model: {type: mlp.MLP, args: {hidden: [3]}}").replace("lr: 0.1", "lr: 0.5")
    config = load(tmp_path, text, overrides)
    for key, value in expected.items():
        assert getattr(config, key) == value


def test_bases_merge(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "a.yaml").write_text(GOOD + "seed: 1\nlr_scheduler: {type: StepLR, args: {step_size: 3}}\n")
    (tmp_path / "b.yaml").write_text("seed: 2\ntrainer: {keep: 5}\nmetrics: [r2, mae]\n")
    text = "base: [below/a.yaml, b.yaml]\nlr_scheduler: ExponentialLR\ntrainer: {epochs: 9}\n"
    text += "optimizer: {args: {nesterov: true}}\n"
    config = load(tmp_path, text)
    assert config.seed == 2 and config.trainer.epochs == 9 and config.trainer.keep == 5
    assert list(config.metrics) == ["r2", "mae"]
    assert config.optimizer == Component("SGD", {"lr": 0.1, "nesterov": True})
    assert config.lr_scheduler is not None and config.lr_scheduler.args == {}  # type: ignore[union-attr]
    assert config.places[("trainer", "keep")].endswith("b.yaml:2:11")


def test_merge_keys_and_aliases(tmp_path: Path) -> None:
    text = GOOD + "loader: {val: &big {batch_size: 9}, test: {<<: *big, num_workers: 1}}\n"
    config = load(tmp_path, text)
    assert config.loader_of("test") == LoaderSettings(batch_size=9, num_workers=1)
    assert config.loader_of("val") == LoaderSettings(batch_size=9)


def test_json_is_the_same_config(tmp_path: Path) -> None:
    values = {**FULL, "hooks": [{"type": "x.Y", "args": {"text": "ü \U0001f600 \\ / \n\t\"'"}}]}
    as_json = json.dumps(values, indent="\t").replace("/", "\\/")
    assert load(tmp_path, as_json, name="x.json") == config_from_dict(values)


def test_order_and_left_out_rows_concern_training_alone() -> None:
    values = {**FULL, "loader": {"drop_last": True, "shuffle": True, "sampler": "a.B", "test": {"drop_last": True}}}
    values["loader"]["shuffle"] = None
    config = config_from_dict(values)
    assert config.loader_of("train").drop_last and config.loader_of("train").sampler == Component("a.B")
    assert config.loader_of("val") == LoaderSettings()
    assert config.loader_of("test") == LoaderSettings(drop_last=True)
    assert config_from_dict(config.as_dict()) == config


def test_nothing_heavy_is_imported(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(GOOD)
    code = f"""
import sys, time
from pathlib import Path
from src.config import load_config
start = time.process_time()
load_config(Path({str(path)!r}), ["trainer.epochs=4"])
assert time.process_time() - start < 0.03
heavy = {{"torch", "pandas", "sklearn", "tensorboard", "numpy"}} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configs_round_trip(path: Path) -> None:
    config: Config = load_config(path)
    assert config_from_dict(config.as_dict()) == config
