"""What outputs mean follows from the loss where it is one of torch's, and from the data where it is anyone's own."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import predict
import test as test_command
import train
from src.data.parts.facts import count_classes
from src.run.saved_run import SavedRun
from src.trainer.results.predictions import Meaning
from src.utils.errors import DataError


class Focal(nn.Module):
    """A loss that nobody else knows."""

    def forward(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(outputs, targets)


def data(**attributes: Any) -> Any:
    return SimpleNamespace(**attributes)


LABELS, ZERO_ONE = torch.tensor([0, 2, 1, 2]), torch.tensor([0.0, 1.0, 1.0])


@pytest.mark.parametrize(
    ("criterion", "dataset", "shape", "kind"),
    [
        (Focal(), data(targets=LABELS), (4, 3), "classes"),
        (Focal(), data(class_names=["a", "b", "c"]), (4, 3), "classes"),
        (None, data(num_classes=3, targets=LABELS), (4, 3), "classes"),  # the model returns its own loss
        ({"own": (Focal(), 1.0), "size": (nn.MSELoss(), 0.1)}, data(num_classes=3), (4, 3), "classes"),
        (Focal(), data(class_names=["no", "yes"], targets=ZERO_ONE), (4, 1), "binary"),
        (Focal(), data(num_classes=2), (4,), "binary"),
        (Focal(), data(targets=LABELS), (4, 1), "values"),  # whole numbers as targets of a regression
        (Focal(), data(targets=LABELS * 7), (4, 2), "values"),  # mean and variance of such
        (Focal(), data(num_classes=10), (4, 784), "values"),  # an image again, whatever it shows
        (Focal(), data(num_classes=3, targets=torch.rand(4)), (4, 3), "values"),
        (Focal(), data(num_classes=3, targets=torch.ones(4, 3)), (4, 3), "values"),  # several labels a row
        (Focal(), data(targets=[{"boxes": []}]), (4, 3), "values"),
        (Focal(), data(), (4, 3), "values"),
        (nn.CrossEntropyLoss(), data(), (4, 3), "classes"),
        (nn.BCEWithLogitsLoss(), data(), (4,), "binary"),
        (nn.MSELoss(), data(num_classes=2, targets=LABELS), (4, 1), "values"),
    ],
)
def test_outputs_are_scores_where_there_are_as_many_as_classes(
    criterion: Any, dataset: Any, shape: tuple[int, ...], kind: str
) -> None:
    meaning, outputs = Meaning.of(criterion, dataset), torch.randn(shape)
    assert meaning.kind(outputs) == kind
    assert (meaning.probabilities(outputs) is None) == (kind == "values")
    assert ("probability" in meaning.columns(outputs)) == (kind != "values")


def test_probabilities_stay_as_they_are() -> None:
    given = torch.tensor([[0.9, 0.1], [0.25, 0.75]])
    for outputs in (given, given.log()):
        found = Meaning("classes").probabilities(outputs)
        assert found is not None and torch.allclose(found, given)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_probabilities_of_half_precision_are_no_scores(dtype: torch.dtype) -> None:
    given = torch.rand(50, 10, generator=torch.Generator().manual_seed(0)).softmax(1).to(dtype)
    found = Meaning("classes", num_classes=10).probabilities(given)
    assert found is not None and torch.equal(found, given.float())


def test_maps_of_scores_are_no_rows_of_a_table() -> None:
    maps, meaning = torch.randn(2, 3, 8, 8), Meaning.of(Focal(), data(num_classes=3))
    assert meaning.probabilities(maps) is None
    with pytest.raises(DataError, match=r"found shape \[2, 3, 8, 8\]; override Task.predict"):
        meaning.columns(maps)


def test_each_of_several_labels_has_a_probability_of_its_own() -> None:
    meaning = Meaning("binary", class_names=["cat", "dog", "sun"])
    columns = meaning.columns(torch.tensor([[0.0, 100.0, -100.0]]))
    assert {name: float(values[0]) for name, values in columns.items()} == {
        "probability_cat": 0.5,
        "probability_dog": 1.0,
        "probability_sun": 0.0,
    }


def test_a_dataset_that_says_nothing_has_the_classes_that_it_holds() -> None:
    assert count_classes(data(targets=[0, 1, 1])) == 2
    assert count_classes(data(targets=[-1, 1])) is None
    assert count_classes(data(targets=[])) is None


OWN = """
name: sizes
data: {type: table.Table, args: {file: FILE, target: size}, split: {val: 0.2, test: 0.2}}
loader: {batch_size: 16}
model: {type: linear.Linear, args: {in_features: 1, out_features: OUT}}
loss: LOSS
optimizer: {type: AdamW, args: {lr: 0.1}}
trainer: {epochs: 4, device: cpu}
logger: {tensorboard: false, bar: false}
"""
LOSSES = """
from torch.nn import functional as F


def own(outputs, targets):
    return F.binary_cross_entropy_with_logits(outputs[:, 0], targets.float())
"""


@pytest.mark.parametrize(("loss", "outputs"), [("focal_loss", 3), ("losses.own", 1)])
def test_a_loss_of_ones_own_gives_names_and_a_report_of_classes(tmp_path: Path, loss: str, outputs: int) -> None:
    random = np.random.default_rng(0)
    area = random.uniform(-2, 2, 100)
    names = np.where(area > 0.7, "large", np.where(area < -0.7, "small", "middle"))
    if outputs == 1:
        names = np.where(area > 0, "large", "a small one")
    pd.DataFrame({"area": area, "size": names}).to_csv(tmp_path / "houses.csv", index=False)
    pd.DataFrame({"area": [-2, 2]}).to_csv(tmp_path / "new.csv", index=False)
    (tmp_path / "losses.py").write_text(LOSSES)
    config = tmp_path / "own.yaml"
    config.write_text(
        OWN.replace("FILE", str(tmp_path / "houses.csv")).replace("OUT", str(outputs)).replace("LOSS", loss)
    )
    assert train.main(["-c", str(config), f"trainer.save_dir={tmp_path}/runs"]) == 0
    (run,) = (tmp_path / "runs" / "sizes").iterdir()
    trust = ["--trust", f"{tmp_path}/"]
    assert test_command.main(["-r", str(run), *trust]) == 0
    assert "<h2>Confusion</h2>" in (run / "report" / "index.html").read_text()

    old = SavedRun(run, trusted=trust[1:])
    assert old.state.pop("num_classes") == old.meaning.num_classes == max(outputs, 2), "older versions did not save it"

    (tmp_path / "houses.csv").unlink()  # what the outputs are stands in the checkpoint
    out = tmp_path / "out.jsonl"
    assert predict.main(["-r", str(run), "--input", str(tmp_path / "new.csv"), "--out", str(out), *trust]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["prediction"] for row in rows] == ["small" if outputs == 3 else "a small one", "large"]
    assert all(0 <= row["probability"] <= 1 for row in rows)


NAMED = """
from pathlib import Path

import torch


class Named(torch.utils.data.Dataset):
    class_names = ("no", "yes")

    def __init__(self, file):
        self.class_names = Path(file).read_text().split()

    def __len__(self):
        return 40

    def __getitem__(self, row):
        return torch.full((1,), float(row)), row % 2
"""


def test_names_that_a_dataset_gives_itself_count_more_than_those_of_its_class_and_outlive_the_data(
    tmp_path: Path,
) -> None:
    (tmp_path / "named.py").write_text(NAMED)
    (tmp_path / "names.txt").write_text("cat dog")
    text = OWN.replace("table.Table", "named.Named").replace("FILE, target: size", str(tmp_path / "names.txt"))
    (tmp_path / "named.yaml").write_text(text.replace("OUT", "2").replace("LOSS", "CrossEntropyLoss"))
    assert train.main(["-c", str(tmp_path / "named.yaml"), f"trainer.save_dir={tmp_path}/runs"]) == 0
    (run,) = (tmp_path / "runs" / "sizes").iterdir()
    (tmp_path / "names.txt").unlink()
    assert SavedRun(run, trusted=(f"{tmp_path}/",)).class_names == ["cat", "dog"]
