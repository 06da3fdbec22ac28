"""`--print-config`, `--list`, `--explain`, and the JSON Schema."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given

from src.config import config_from_dict, load_config
from src.config.answers import explain, list_kind
from src.config.forms import config_form
from src.config.json_schema import SCHEMA_FILE, json_schema, schema_text, versions
from src.config.printed import place_of, printed
from src.config.registry import HOMES, known_names
from src.utils.errors import ConfigError
from tests.conftest import ROOT
from tests.test_config_laws import FULL, configs

SHIPPED = sorted((ROOT / "configs").rglob("*.yaml"))
DEFINITIONS = json_schema()["definitions"]
DIGITS = ROOT / "configs" / "digits.yaml"


@given(configs())
def test_a_printed_config_reads_back_equal(values: dict[str, Any]) -> None:
    config = config_from_dict(values)
    assert config_from_dict(yaml.safe_load(printed(config))) == config


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_printed_shipped_config_reads_back_equal(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    (tmp_path / "x.yaml").write_text(printed(config))
    assert load_config(tmp_path / "x.yaml") == config


def test_each_value_says_where_it_came_from() -> None:
    config = load_config(DIGITS, ["trainer.epochs=3", "metrics=[accuracy]", "loss=mse"])
    lines = {line.split("#")[0].strip(): line.split("# ")[-1] for line in printed(config).splitlines()}
    assert lines["epochs: 3"] == "command line #1"
    assert lines["- name: accuracy"] == lines["type: accuracy"] == "command line #2"
    assert lines["patience: 0"] == "default"
    assert f"{DIGITS}:" in lines["type: lenet.LeNet"]
    assert place_of(("loss", "type"), config.places) == "command line #3"


@pytest.mark.parametrize("kind", HOMES)
def test_every_kind_can_be_listed(kind: str) -> None:
    assert list_kind(kind)


def test_a_list_shows_arguments_and_defaults() -> None:
    assert "lenet.LeNet(num_classes: int = 10, in_channels: int = 1" in list_kind("models")
    assert "lr: float" in list_kind("optimizers") and "params" not in list_kind("optimizers")
    assert "models" in list_kind("all") and "OneCycleLR" in list_kind("schedulers") == list_kind("lr_scheduler")
    assert list_kind("schedules") == list_kind("schedulers")
    with pytest.raises(ConfigError, match=r"--list modls: no such kind; did you mean .*`models`"):
        list_kind("modls")


EXPLAINED = {
    "trainer.patience": ["Stop after exactly this many evaluations", "a whole number >= 0", "default  0", "nowhere"],
    "optimizer.args.lr": ["learning rate", "float", "0.001", "0.005", "digits.yaml:"],
    "optimizer.args.betas": ["coefficients used", "(0.9, 0.999)", "not given; the default holds"],
    "model.args.num_classes": ["10"],
    "loader.val.batch_size": ["Rows in a batch", "256"],
    "metrics.0.name": ["logged as", "accuracy"],
    "data.val_noisy.type": ["text"],
    "task.inputs": ["Where the model's arguments stand"],
    "logger": ["Where numbers go", "tensorboard"],
}


@pytest.mark.parametrize(("key", "expected"), EXPLAINED.items(), ids=EXPLAINED)
def test_a_key_is_explained(key: str, expected: list[str]) -> None:
    text = explain(key, load_config(DIGITS))
    assert all(part in text for part in expected), text


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("trainer.patiense", "did you mean `patience`"),
        ("optimizer.args.lrr", "AdamW takes no `lrr`; did you mean `lr`"),
        ("optimiser.args.lr", "no component there; did you mean `optimizer`"),
        ("trainer.epochs.x", "no key `x`"),
    ],
)
def test_a_wrong_key_is_not_explained(key: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        explain(key, load_config(DIGITS))


def test_every_setting_has_a_manual() -> None:
    silent = [
        f"{name}.{key}" for name, each in config_form().keys.items() for key in each.keys if not each.keys[key].means
    ]
    assert not silent


@pytest.mark.parametrize(
    "words", ["--help", "-c configs/digits.yaml --print-config", "--explain trainer.epochs", "--list all"]
)
def test_questions_import_nothing_heavy(words: str) -> None:
    code = f"""
import sys, time
import train
try:
    assert train.main({words.split()!r}) == 0
except SystemExit as end:
    assert end.code == 0
heavy = {{"torch", "pandas", "sklearn", "tensorboard", "numpy"}} & set(sys.modules)
assert not heavy, heavy
assert time.process_time() < 1
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60, capture_output=True)


# The JSON Schema.


def test_the_schema_file_is_current() -> None:
    hint = "run `python -m src.config.json_schema`"
    written, wanted = json.loads(SCHEMA_FILE.read_text(encoding="utf-8")), json_schema()
    if not written["$comment"].endswith(versions()):  # other versions of the libraries offer other names
        written, wanted = ({**each, "definitions": 0, "$comment": 0} for each in (written, wanted))
    assert written == wanted, hint


def test_the_schema_offers_the_names_of_components_and_forbids_no_other() -> None:
    schema = json_schema()
    offered = {kind: each["anyOf"][0].get("enum", []) for kind, each in schema["definitions"].items()}
    for kind, names in offered.items():
        assert set(names) <= set(known_names(kind)), kind
    assert [kind for kind, names in offered.items() if not names] == ["worker_init_fn"]  # of which none ships
    expected = {"model": "lenet.LeNet", "optimizer": "AdamW", "lr_scheduler": "OneCycleLR", "loss": "CrossEntropyLoss"}
    expected |= {"metrics": "accuracy", "data": "digits.Digits", "transforms": "Normalize", "task": "Task"}
    assert {kind for kind, name in expected.items() if name not in offered[kind]} == set()
    assert "StepOutput" not in offered["task"] and "Numbers" not in offered["transforms"]
    places = {name: schema["properties"][name] for name in ("model", "optimizer", "data", "loss", "task")}
    for kind, place in places.items():
        assert f'"#/definitions/{kind}"' in json.dumps(place), kind
    assert "#/definitions/sampler" in json.dumps(schema["properties"]["loader"])
    assert accepts(schema, {**FULL, "model": "my_file.MyModel", "optimizer": {"type": "my_file.Mine"}})


def test_what_files_need_for_themselves_is_not_listed() -> None:
    """Nor bases, nor what takes an object or a function, which no config can write."""
    own = {kind: set(known_names(kind)) for kind in HOMES}
    assert own["data"] >= {"digits.Digits", "images.ImageFolder", "synthetic.noisy_line", "table.Table"}
    internals = {"order.Keys", "permutation.Permutation", "stream.PartStream", "worker.PartReader", "images.ImageFiles"}
    assert internals.isdisjoint(own["data"]) and own["worker_init_fn"] == set()
    assert {"Normalize", "Flatten"} <= own["transforms"] and {"Numbers"}.isdisjoint(own["transforms"])
    assert own["task"] == {"Task"} and own["sinks"] == {"mlflow.MLflow", "wandb.WandB"}
    assert own["tokenizer"] == {"words", "characters"} and "Hook" not in own["hooks"]
    assert {"mse", "focal_loss"} <= own["loss"] and "lenet.LeNet" not in own["loss"]
    assert {"accuracy", "perplexity", "f1_score", "max_error"} <= own["metrics"]
    assert not any(name.startswith(("accumulate.", "make_", "check_", "pairwise_")) for name in own["metrics"])
    assert "SGD" in own["optimizer"] and "Optimizer" not in own["optimizer"]
    assert {"LRScheduler", "LambdaLR", "SequentialLR"}.isdisjoint(own["lr_scheduler"])


OWN_FILE = """
from torch import nn
from torch.utils.data import Dataset
from src.trainer.hooks import Hook
from src.trainer.task import Task

class Rows(Dataset): ...
class Net(nn.Module): ...
class Deeper(Net): ...
class DiceLoss(nn.Module): ...
class MyTask(Task):
    def update(self, model, batch, optimizers): ...
class Watch(Hook): ...
class Options: ...
def dice(outputs, targets): ...
def jitter(image, amount=0.1): ...
def make_net(width) -> nn.Module: ...
"""
FITTING = {
    "data": "Rows", "model": "Net Deeper make_net", "module": "Net Deeper make_net", "loss": "DiceLoss dice",
    "metrics": "dice", "task": "MyTask", "hooks": "Watch", "transforms": "jitter",
}  # fmt: skip


def test_of_the_configs_folder_only_what_fits_the_kind_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_kinds.py").write_text(OWN_FILE)
    monkeypatch.setattr("src.config.registry._folders", [tmp_path])
    for kind in HOMES:
        listed = [name.removeprefix("own_kinds.") for name in known_names(kind) if name.startswith("own_kinds.")]
        assert sorted(listed) == sorted(FITTING.get(kind, "").split()), kind


def test_every_shipped_config_names_the_schema() -> None:
    for path in SHIPPED:
        line = next(line for line in path.read_text().splitlines() if "yaml-language-server" in line)
        named = path.parent / line.partition("$schema=")[2]
        assert line.startswith("# yaml-language-server: $schema=") and named.resolve() == SCHEMA_FILE


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_schema_accepts_shipped_configs(path: Path) -> None:
    assert accepts(json_schema(), yaml.safe_load(path.read_text()))
    assert accepts(json_schema(), load_config(path).as_dict())


def test_the_schema_accepts_the_full_form() -> None:
    assert accepts(json_schema(), FULL)
    assert accepts(json_schema(), {**FULL, "base": "x.yaml", "seed": "${trainer.epochs}"})


@pytest.mark.parametrize(
    "wrong",
    [
        {"modle": "x"},
        {"seed": "three"},
        {"seed": -1},
        {"trainer": {"epoch": 3}},
        {"trainer": {"amp_dtype": "bf32"}},
        {"data": {"valid": {"type": "a.B"}}},
        {"optimizer": {"type": "SGD", "lr": 0.1}},
        {"loader": {"val": {"batch": 3}}},
    ],
)
def test_the_schema_refuses_mistakes(wrong: dict[str, Any]) -> None:
    assert not accepts(json_schema(), {**FULL, **wrong})


def accepts(schema: dict[str, Any], value: Any) -> bool:
    """As much of JSON Schema as ours uses."""
    if "$ref" in schema:
        return accepts(DEFINITIONS[schema["$ref"].rpartition("/")[2]], value)
    names = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int, "number": (int, float)}
    if "anyOf" in schema and not any(accepts(each, value) for each in schema["anyOf"]):
        return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    kind = schema.get("type")
    if kind == "null":
        return value is None
    if isinstance(value, bool) and kind in ("integer", "number"):
        return False
    if kind and not isinstance(value, names[kind]):  # type: ignore[arg-type]
        return False
    if kind == "array":
        return all(accepts(schema["items"], item) for item in value)
    if kind == "string" and "pattern" in schema:
        return bool(re.search(schema["pattern"], value))
    if kind in ("integer", "number"):
        below = value < schema.get("minimum", value) or value <= schema.get("exclusiveMinimum", value - 1)
        return not below and value < schema.get("exclusiveMaximum", value + 1)
    if kind != "object":
        return True
    if not set(schema.get("required", ())) <= value.keys():
        return False
    for key, item in value.items():
        pattern = next((each for each in schema.get("patternProperties", ()) if re.search(each, key)), None)
        known = schema.get("properties", {}).get(key) or (pattern and schema["patternProperties"][pattern])
        known = known or schema.get("additionalProperties", True)
        if known is False or (known is not True and not accepts(known, item)):
            return False
    return True


def test_the_schema_is_plain_json() -> None:
    assert json.loads(schema_text()) == json_schema()
