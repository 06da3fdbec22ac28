"""A trained model on inputs without labels: the command as typed, and `load_model` from any program."""

from __future__ import annotations

import gc
import io
import json
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

import predict
import train
from src.config.registry import find, use_folder
from src.data.frame import FrameDataset
from src.run.saved_run import load_model
from src.utils.errors import CheckpointError, ConfigError, DataError
from tests.conftest import ROOT

DIGITS = """
name: digits
data: {type: digits.Digits, split: {val: 0.1, test: 0.1}}
loader: {batch_size: 64}
model: {type: lenet.LeNet, args: {image_size: 8}}
loss: CrossEntropyLoss
optimizer: {type: AdamW, args: {lr: 5e-3}}
trainer: {epochs: 3, device: cpu}
"""
HOUSES = """
name: houses
data:
  type: table.Table
  args: {file: FILE, target: TARGET, categorical: [zone], scale_inputs: StandardScaler, SCALE}
  split: {val: 0.1, test: 0.1}
loader: {batch_size: 16}
model: {type: linear.Linear, args: {in_features: 5, out_features: OUT}}
loss: LOSS
optimizer: {type: AdamW, args: {lr: 0.05}}
trainer: {epochs: 40, device: cpu}
"""


def trained(config: str, folder: Path) -> Path:
    path = folder / "config.yaml"
    path.write_text(config)
    assert train.main(["-c", str(path), f"trainer.save_dir={folder}"]) == 0
    (run,) = path.parent.glob("*/*/run.lock")
    return run.parent


def houses(num_rows: int = 200) -> pd.DataFrame:
    random = np.random.default_rng(0)
    table = pd.DataFrame({"area": random.uniform(50, 200, num_rows), "zone": random.choice([1, 2], num_rows)})
    table["heating"] = random.choice(["gas", "wood"], num_rows)
    table["price"] = 1000 * table["area"] + 20_000 * table["zone"]
    table["size"] = np.where(table["area"] > 125, "large", "small")
    return table


def table_run(folder: Path, target: str, scale: str, out: int, loss: str) -> Path:
    houses().drop(columns={"price", "size"} - {target}).to_csv(folder / "houses.csv", index=False)
    config = HOUSES.replace("FILE", str(folder / "houses.csv")).replace("TARGET", target).replace("SCALE", scale)
    run = trained(config.replace("OUT", str(out)).replace("LOSS", loss), folder)
    (folder / "houses.csv").unlink()  # nothing below may need the training data
    return run


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(DIGITS, tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def prices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return table_run(tmp_path_factory.mktemp("prices"), "price", "scale_target: StandardScaler", 1, "mse")


@pytest.fixture(scope="module")
def sizes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return table_run(tmp_path_factory.mktemp("sizes"), "size", "missing: error", 2, "CrossEntropyLoss")


def command(run: Path, given: object, out: Path) -> pd.DataFrame:
    assert predict.main(["-r", str(run), "--input", str(given), "--out", str(out)]) == 0
    return pd.read_json(out, lines=True) if out.suffix == ".jsonl" else pd.read_csv(out)


def test_a_table_is_predicted_in_its_own_units_without_the_training_data(prices: Path, tmp_path: Path) -> None:
    new = houses(50)[["heating", "zone", "area"]]  # no label, another order
    new.to_csv(tmp_path / "new.csv", index=False)
    table = command(prices, tmp_path / "new.csv", tmp_path / "out.csv")
    assert list(table.columns) == ["row", "prediction"]
    assert list(table["row"]) == list(range(50))
    assert np.corrcoef(table["prediction"], houses(50)["price"])[0, 1] > 0.99
    assert abs(table["prediction"].mean() / houses(50)["price"].mean() - 1) < 0.05


def test_chunks_change_nothing(prices: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    houses(50).to_csv(tmp_path / "new.csv", index=False)
    whole = command(prices, tmp_path / "new.csv", tmp_path / "whole.csv")
    monkeypatch.setattr(predict, "ROWS_AT_ONCE", 1)  # a chunk with a single category, or a single number
    pd.testing.assert_frame_equal(command(prices, tmp_path / "new.csv", tmp_path / "chunks.csv"), whole, rtol=1e-5)


def test_of_a_large_table_only_a_chunk_is_in_memory(
    prices: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks: weakref.WeakSet[FrameDataset] = weakref.WeakSet()
    most_rows = 0

    class Counted(FrameDataset):
        def __init__(self, *args: Any, **given: Any) -> None:
            nonlocal most_rows
            super().__init__(*args, **given)
            gc.collect()
            chunks.add(self)
            most_rows = max(most_rows, sum(map(len, chunks)))

    monkeypatch.setattr("src.data.unlabelled.FrameDataset", Counted)
    monkeypatch.setattr(predict, "ROWS_AT_ONCE", 20)
    houses().drop(columns=["price", "size"]).to_csv(tmp_path / "new.csv", index=False)
    assert len(command(prices, tmp_path / "new.csv", tmp_path / "out.csv")) == 200
    assert 0 < most_rows <= 40  # the one that is predicted, and the next


def test_a_category_of_numbers_may_be_spelt_otherwise(prices: Path, tmp_path: Path) -> None:
    new = houses(20)
    new.to_csv(tmp_path / "new.csv", index=False)
    new["zone"] = new["zone"].map({1: "01", 2: "2.0"})
    new.to_csv(tmp_path / "spelt.csv", index=False)
    expected = command(prices, tmp_path / "new.csv", tmp_path / "a.csv")
    pd.testing.assert_frame_equal(command(prices, tmp_path / "spelt.csv", tmp_path / "b.csv"), expected)


def test_classes_have_their_names_and_standard_input_is_read(
    sizes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    new = houses(30)
    monkeypatch.setattr("sys.stdin", io.StringIO(new.drop(columns=["price", "size"]).to_csv(index=False)))
    assert predict.main(["-r", str(sizes), "--input", "-"]) == 0
    table = pd.read_csv(io.StringIO(capsys.readouterr().out))
    assert list(table.columns) == ["row", "prediction", "probability"]
    assert (table["prediction"] == new["size"]).mean() > 0.9
    assert table["probability"].between(0.5, 1).all()


def test_several_labels_of_a_table_have_the_names_of_their_columns(tmp_path: Path) -> None:
    table = houses(60).assign(large=lambda each: each["area"].gt(125).astype(float), central=[0.0, 1.0] * 30)
    table[["area", "zone", "large", "central"]].to_csv(tmp_path / "labels.csv", index=False)
    config = HOUSES.replace("FILE", str(tmp_path / "labels.csv")).replace("target: TARGET", "target: [large, central]")
    config = config.replace("SCALE", "missing: error").replace("OUT", "2").replace("LOSS", "BCEWithLogitsLoss")
    run = trained(config.replace("in_features: 5", "in_features: 3"), tmp_path)
    found = command(run, tmp_path / "labels.csv", tmp_path / "out.csv")
    assert list(found.columns) == ["row", "probability_large", "probability_central"]


def test_arrays_and_a_folder_of_images_give_the_same(digits: Path, tmp_path: Path) -> None:
    images = np.round(load_digits().images[:40] / 16 * 255).astype(np.uint8)
    np.save(tmp_path / "images.npy", images[:, None])
    np.savez(tmp_path / "images.npz", other=np.zeros(3), images=images[:, None].astype(np.float64) / 255)
    (tmp_path / "folder").mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "folder" / f"{number:03}.png")
    table = command(digits, tmp_path / "images.npy", tmp_path / "a.csv")
    assert (table["prediction"] == load_digits().target[:40]).mean() > 0.7
    zipped = command(digits, f"{tmp_path}/images.npz:images", tmp_path / "b.csv")
    folder = command(digits, tmp_path / "folder", tmp_path / "c.jsonl")
    assert list(folder["row"])[:2] == ["000.png", "001.png"]
    for other in (zipped, folder):
        assert list(other["prediction"]) == list(table["prediction"])
        np.testing.assert_allclose(other["probability"], table["probability"], rtol=1e-4)
    lines = (tmp_path / "c.jsonl").read_text().splitlines()
    assert len(lines) == 40 and set(json.loads(lines[0])) == {"row", "prediction", "probability"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("area,zone\n100,1\n", "^[^:]*new.csv: no column 'heating'"),
        ("area,zone,heating\n100,1,gas\n,1,gas\n", "row 2 column area: empty"),
        ("area,zone,heating\n100,1,gas\nx,1,gas\n", "row 2 column area: 'x' is not a number"),
    ],
)
def test_a_wrong_table_is_refused_and_nothing_is_written(prices: Path, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "new.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        command(prices, tmp_path / "new.csv", tmp_path / "out.csv")
    assert {path.name for path in tmp_path.iterdir()} == {"new.csv"}


def test_what_cannot_work_is_said(digits: Path, prices: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "wrong.npy", np.zeros((2, 3, 8, 8), dtype=np.float32))
    (tmp_path / "new.csv").write_text("a\n1\n")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"LeNet fails on inputs of shape \[3, 8, 8\]"):
        command(digits, tmp_path / "wrong.npy", tmp_path / "out.csv")
    with pytest.raises(ConfigError, match=r"trained on digits\.Digits; give a folder of images"):
        command(digits, tmp_path / "new.csv", tmp_path / "out.csv")
    with pytest.raises(ConfigError, match=r"trained on table\.Table; give a CSV file"):
        command(prices, tmp_path / "wrong.npy", tmp_path / "out.csv")
    with pytest.raises(DataError, match="no image in it"):
        command(digits, tmp_path / "empty", tmp_path / "out.csv")
    with pytest.raises(ConfigError, match=r"written as \.csv or \.jsonl"):
        command(digits, tmp_path / "wrong.npy", tmp_path / "out.xlsx")
    with pytest.raises(DataError, match="no such file"):
        command(digits, tmp_path / "none.npy", tmp_path / "out.csv")


def test_a_model_is_loaded_in_one_line(digits: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    before = torch.random.get_rng_state()
    model = load_model(digits)
    assert torch.equal(torch.random.get_rng_state(), before)  # it leaves the random streams of its caller alone
    assert not model.training and model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    last = load_model(str(digits / "checkpoints" / "last.pt"))
    assert set(last.state_dict()) == set(model.state_dict())
    with pytest.raises(CheckpointError, match="no such run"):
        load_model(tmp_path / "nothing")


def test_loading_a_model_leaves_the_folder_of_the_own_config_in_use(digits: Path, tmp_path: Path) -> None:
    (tmp_path / "student.py").write_text("from torch import nn\n\n\nclass Student(nn.Linear):\n    pass\n")
    use_folder(tmp_path)
    load_model(digits)  # a task does so for its teacher
    assert find("model", "student.Student").__name__ == "Student"


TEXTS = """
name: texts
data: {type: text.Texts, args: {file: FILE, text: review, target: stars}, split: {val: 0.2, test: 0.2}}
loader: {batch_size: 8, collate_fn: text.pad}
model: {type: bag.Bag}
loss: CrossEntropyLoss
optimizer: {type: AdamW, args: {lr: 0.1}}
trainer: {epochs: 4, device: cpu}
"""
BAG = """
from torch import nn


class Bag(nn.Sequential):
    def __init__(self):
        super().__init__(nn.EmbeddingBag(64, 8), nn.Linear(8, 2))
"""


def test_texts_come_through_a_pipe_as_lines_or_as_csv(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = pd.DataFrame({"review": ["very good indeed", "bad, it is"] * 20, "stars": ["good", "bad"] * 20})
    frame.to_csv(tmp_path / "reviews.csv", index=False)
    (tmp_path / "bag.py").write_text(BAG)
    run = trained(TEXTS.replace("FILE", str(tmp_path / "reviews.csv")), tmp_path)
    table = frame.drop(columns="stars").head(3)
    piped = {
        "lines": "\n".join(table["review"]),
        "csv": table.assign(number=1)[["number", "review"]].to_csv(index=False),
        "tabs": table.assign(number=1).to_csv(index=False, sep="\t"),
    }
    words = ["-r", str(run), "--input", "-", "--trust", f"{tmp_path}/"]
    capsys.readouterr()
    told = []
    for text in piped.values():
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        assert predict.main(words) == 0
        told.append(capsys.readouterr().out)
    command = [sys.executable, str(ROOT / "predict.py"), *words]
    done = subprocess.run(command, input=piped["csv"], capture_output=True, text=True, check=True)
    assert told == [done.stdout] * 3, "nothing but predictions is on standard output"
    assert list(pd.read_csv(io.StringIO(told[0]))["prediction"]) == ["good", "bad", "good"]
