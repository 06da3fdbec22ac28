"""Components -> objects: what the run fills in, functions that are used as they are, constructors that raise."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from src.config import Component, config_from_dict, load_config
from src.config.build import build, build_parts
from src.config.mistakes import placed
from src.config.registry import use_folder
from src.config.signatures import check_components
from src.utils.errors import ConfigError, DataError, KeelError
from tests.test_config_mistakes import GOOD, load

OWN = """
from torch import nn
from src.utils.errors import DataError

class Picky(nn.Module):
    def __init__(self, width: int = 1, error: str = "") -> None:
        super().__init__()
        self.width = width
        if error == "value":
            raise ValueError("width must be even")
        if error == "key":
            raise KeyError("width")
        if error == "keel":
            raise DataError("data/x.csv: no such file")

def make_net(width: int, depth: int = 1) -> nn.Module:
    return nn.Linear(width, depth)

def double(x, factor: float = 2.0):
    return x * factor

def weighted(outputs, targets, weight: float):
    return weight * (outputs - targets).abs().mean()

class Files:
    def __init__(self, path: str) -> None:
        open(path)
    def __getitem__(self, index): ...

def every_other(samples):
    return samples[::2]
"""


@pytest.fixture(autouse=True)
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_parts.py").write_text(OWN)
    use_folder(folder)
    return folder


def test_classes_are_called_and_the_config_keeps_its_arguments() -> None:
    component = Component("mlp.MLP", {"in_features": 4, "hidden": [3], "out_features": 2})
    model = build("model", component)
    assert isinstance(model, nn.Module) and component.args["hidden"] == [3]
    assert build("model", Component("make_net", {"width": 3})).in_features == 3


def test_functions_that_are_components_themselves() -> None:
    double = build("transforms", Component("double"))
    assert double(3) == 6 and double.__name__ == "double"
    triple = build("transforms", Component("double", {"factor": 3.0}))
    assert isinstance(triple, functools.partial) and triple(2) == 6
    loss = build("loss", Component("weighted", {"weight": 0.5}))
    assert loss(torch.ones(2), torch.zeros(2)) == 0.5
    assert build("loss", Component("cross_entropy")) is nn.functional.cross_entropy


def test_what_the_run_provides_goes_where_the_signature_has_it() -> None:
    parameters = [nn.Parameter(torch.zeros(1))]
    optimizer = build("optimizer", Component("SGD", {"lr": 0.1}), parameters)
    length = {"total_steps": 30, "T_max": 10}
    cycle = build("lr_scheduler", Component("OneCycleLR", {"max_lr": 1.0}), optimizer, **length)
    assert cycle.total_steps == 30
    args = {"max_lr": 1.0, "epochs": 2, "steps_per_epoch": 4}
    assert build("lr_scheduler", Component("OneCycleLR", args), optimizer, **length).total_steps == 8
    assert build("lr_scheduler", Component("CosineAnnealingLR"), optimizer, **length).T_max == 10
    assert build("lr_scheduler", Component("CosineAnnealingLR", {"T_max": 5}), optimizer, **length).T_max == 5
    assert build("lr_scheduler", Component("StepLR", {"step_size": 3}), optimizer, **length).step_size == 3


@pytest.mark.parametrize(
    ("kind", "component", "kind_of_error", "expected"),
    [
        ("model", Component("Picky", {"error": "value"}), ConfigError, "model Picky(...): width must be even"),
        ("model", Component("Picky", {"error": "key"}), ConfigError, "model Picky(...): KeyError: 'width'"),
        ("model", Component("Picky", {"error": "keel"}), DataError, "data/x.csv: no such file"),
        ("data", Component("Files", {"path": "/no/such"}), DataError, "data Files(...): FileNotFoundError"),
        ("optimizer", Component("SGD", {"lr": 0.1}), ConfigError, "optimizer SGD(...): TypeError"),
    ],
)
def test_constructors_that_raise(
    kind: str, component: Component, kind_of_error: type[Exception], expected: str
) -> None:
    with pytest.raises(kind_of_error) as caught:
        build(kind, component)
    assert str(caught.value).startswith(expected)
    assert caught.value.__cause__ is not None or component.args.get("error") == "keel"


def test_own_files_are_checked(tmp_path: Path) -> None:
    overrides = ["model=own_parts.Picky", "model.args.witdh=3", "loss={type: weighted, args: {targets: 1}}"]
    config = load(
        tmp_path,
        GOOD,
        [*overrides, "loader.collate_fn=every_othr", "data.transforms=[double, {type: double, args: {factor: x}}]"],
    )
    with pytest.raises(ConfigError) as caught:
        check_components(config)
    lines = str(caught.value).splitlines()
    assert len(lines) == 5, lines
    for expected in [
        "command line #5 data.transforms.1.args.factor: a number is needed, found 'x'",
        "command line #2 model.args.witdh: unknown argument; did you mean `width`?",
        "command line #3 loss.args.targets: given twice",
        "command line #3 loss.args.weight: missing; weighted needs it",
        "command line #4 loader.collate_fn.type: unknown collate_fn `every_othr`; did you mean `own_parts.",
    ]:
        assert any(line.startswith(expected) for line in lines), (expected, lines)


def test_parts_have_their_own_transforms() -> None:
    values = {
        "name": "x",
        "data": {"type": "digits.Digits", "split": {"val": 0.1, "test": 100}, "train": {"transforms": ["double"]}},
        "model": "own_parts.Picky",
    }
    config = config_from_dict(values)
    check_components(config)
    parts = build_parts(config)
    assert list(parts) == ["train", "val", "test"] and len(parts["test"]) == 100
    assert len(parts["train"].transforms) == 1 and not parts["val"].transforms


def test_an_error_of_torch_with_a_list_of_overloads_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "noisy.py").write_text(
        "import torch\n\n\nclass Noise(torch.utils.data.Dataset):\n    def __init__(self, n):\n"
        "        self.rows = torch.randn(n, 3)\n\n    def __getitem__(self, row):\n        return self.rows[row]\n"
    )
    use_folder(tmp_path)
    with pytest.raises(ConfigError) as caught:
        build("data", Component("noisy.Noise", {"n": "many"}, place="x.yaml:2:3 data"))
    (line,) = str(caught.value).splitlines()
    assert line.startswith("data noisy.Noise(...): TypeError: randn()") and line.endswith("(x.yaml:2:3 data)")


PEOPLE = """\
name: people
data: {type: table.Table, args: {file: FOLDER/people.csv, target: y, scale_inputs: StandardScaler}, split: {val: 0.5}}
model: {type: mlp.MLP, args: {in_features: 2, hidden: [3], out_features: 1}}
loss: mse
optimizer: {type: SGD, args: {lr: 0.1}}
trainer: {epochs: 1}
"""


@pytest.mark.parametrize(
    ("override", "says"),
    [
        (
            "data.args.scale_inputs=StandarScaler",
            ".args.scale_inputs: no 'StandarScaler' .*did you mean StandardScaler?",
        ),
        ("data.args.features=[age, citi]", ".args.features: .*people.csv: no column 'citi'; did you mean city?"),
        ("data.args.target=z", ".args.target: .*people.csv: no column 'z'; there are age, city, y"),
        ("data.args.features=[age, y]", ".args.features: `y` is the target"),
        ("data.split={val: 2, groups: cty}", ".split.groups: .*people.csv: no column 'cty'; did you mean city?"),
        ("data.split={val: 2, test: 3}", r".split \(val: 2, test: 3\): takes 5 of 4 rows; train would have 0 rows"),
    ],
)
def test_what_is_wrong_with_data_once_they_are_read_is_told_with_key_and_place(
    override: str, says: str, tmp_path: Path
) -> None:
    (tmp_path / "people.csv").write_text("age,city,y\n1,a,3\n2,b,4\n3,a,5\n4,b,6\n")
    (tmp_path / "x.yaml").write_text(PEOPLE.replace("FOLDER", str(tmp_path)))
    config = load_config(tmp_path / "x.yaml", [override])
    with pytest.raises(KeelError) as raised, placed(config.places):
        build_parts(config)
    assert re.fullmatch(re.escape("command line #1 data") + says.replace("?", r"\?") + ".*", str(raised.value))
