"""Models that leave the project: what is written is what was trained, or nothing is written."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import export
import train
from src.trainer.results import export as formats
from src.trainer.results.export import export_model
from src.utils.errors import ConfigError, NumericsError
from tests.conftest import ROOT

CONFIG = """
name: digits
data: {type: digits.Digits, split: {val: 0.1, test: 0.1}}
model: {type: lenet.LeNet, args: {image_size: 8}}
loss: CrossEntropyLoss
optimizer: {type: AdamW, args: {lr: 5e-3}}
trainer: {epochs: 1, device: cpu}
"""
NEEDED = {
    "weights": [],
    "safetensors": ["safetensors"],
    "torch_export": [],
    "onnx": ["onnx", "onnxscript", "onnxruntime"],
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    (folder / "digits.yaml").write_text(CONFIG)
    assert train.main(["-c", str(folder / "digits.yaml"), f"trainer.save_dir={folder}"]) == 0
    (found,) = (folder / "digits").iterdir()
    return found


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("safetensors", "onnx")]


@pytest.mark.parametrize("chosen", ["weights", "torch_export", *SLOW])
def test_the_program_in_the_readme_gives_what_the_run_gives(run: Path, tmp_path: Path, chosen: str) -> None:
    for package in NEEDED[chosen]:
        pytest.importorskip(package)
    folder = tmp_path / "out"
    for _ in range(2):  # the second replaces the first
        assert export.main(["-r", str(run), "--format", chosen, "--out", str(folder)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
    assert {"labels.json", "preprocessing.json", "samples.npz", "README.md", "config.yaml"} < {
        path.name for path in folder.iterdir()
    }
    assert json.loads((folder / "labels.json").read_text()) == [str(k) for k in range(10)]
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    path = {"PYTHONPATH": str(ROOT)} if chosen in ("weights", "safetensors") else {}  # the others need no code of ours
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=path, capture_output=True, text=True, check=True, timeout=120
    )
    difference, labels = done.stdout.splitlines()
    assert float(difference) < 1e-4 and labels.count("'") == 16


@pytest.mark.parametrize("chosen", ["weights", "safetensors", "torch_export"])
def test_a_written_model_that_differs_is_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: str
) -> None:
    for package in NEEDED[chosen]:
        pytest.importorskip(package)
    name, write = formats.FORMATS[chosen]

    def damaged(model: nn.Module, inputs: formats.Inputs, path: Path) -> formats.Run:
        read = write(model, inputs, path)
        return lambda some: [each + 0.01 for each in read(some)]

    monkeypatch.setitem(formats.FORMATS, chosen, (name, damaged))
    with pytest.raises(NumericsError, match=r"off by 0\.01"):
        export.main(["-r", str(run), "--format", chosen, "--out", str(tmp_path / "out")])
    assert not list(tmp_path.iterdir())


class OnlyEight(nn.Module):
    """Depends on values: no graph can hold it."""

    def forward(self, x: Tensor) -> Any:
        return x * 2 if float(x.sum()) > 0 else x


def test_a_model_that_is_no_graph_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="OnlyEight cannot be exported as torch_export"):
        export_model(OnlyEight().eval(), (torch.ones(8, 2),), tmp_path, "torch_export")


@pytest.mark.slow
def test_a_failed_export_to_onnx_tells_the_cause_and_no_colours(tmp_path: Path) -> None:
    for package in NEEDED["onnx"]:
        pytest.importorskip(package)
    with pytest.raises(ConfigError) as told:
        export_model(OnlyEight().eval(), (torch.ones(8, 2),), tmp_path, "onnx")
    assert "\x1b" not in str(told.value) and "[96m" not in str(told.value) and "step 1/3" not in str(told.value)
    assert "data-dependent" in str(told.value)


def test_nan_is_no_agreement(tmp_path: Path) -> None:
    model = nn.Linear(2, 1).eval()
    nn.init.constant_(model.bias, float("nan"))
    with pytest.raises(NumericsError, match="off by nan"):
        export_model(model, (torch.ones(4, 2),), tmp_path, "torch_export")


def test_a_folder_of_somebody_else_is_left_alone(run: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(ConfigError, match=r"was not made by export\.py"):
        export.main(["-r", str(run), "--format", "torch_export", "--out", str(tmp_path)])
    assert (tmp_path / "thesis.txt").exists()


def test_preprocessing_is_written_as_plain_data() -> None:
    learned = {"mean": torch.tensor([1.0, 2.0]), "names": ["a"], "deep": {"scale": np.float64(3)}}
    assert export.plain(learned) == {"mean": [1.0, 2.0], "names": ["a"], "deep": {"scale": 3.0}}
