"""Layers that take their sizes from the first batch train, resume and load like any other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import train
from src.run.saved_run import load_model
from src.utils.errors import DataError

MODEL = """
from torch import nn


class Lazy(nn.Module):
    def __init__(self, size=3):
        super().__init__()
        self.layers = nn.Sequential(nn.LazyConv2d(4, size), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(10))

    def forward(self, images):
        return self.layers(images)
"""
CONFIG = """
name: lazy
data: {type: digits.Digits, split: {val: 0.2}}
loader: {batch_size: 200}
model: lazy.Lazy
loss: CrossEntropyLoss
optimizer: {type: SGD, args: {lr: 0.1}}
trainer: {epochs: 2, device: cpu}
logger: {tensorboard: false}
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lazy")
    (folder / "lazy.py").write_text(MODEL)
    (folder / "lazy.yaml").write_text(CONFIG)
    return folder / "lazy.yaml"


def test_lazy_layers_train_resume_and_load(config: Path, tmp_path: Path) -> None:
    def weights(name: str, *words: str) -> dict[str, torch.Tensor]:
        assert train.main(["-c", str(config), f"trainer.save_dir={tmp_path}", f"name={name}", *words]) == 0
        (run,) = (tmp_path / name).iterdir()
        return load_model(run, trust=[f"{config.parent}/"]).state_dict()

    whole = weights("whole")
    weights("parts", "trainer.epochs=1")
    parts = weights("parts", "-r", "auto")
    assert whole["layers.3.weight"].shape == (10, 4 * 6 * 6)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_data_that_do_not_fit_lazy_layers_are_told(config: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train: the model's lazy layers find no size: .*Kernel size"):
        train.main(["-c", str(config), f"trainer.save_dir={tmp_path}", "model.args.size=9"])
    assert not (tmp_path / "lazy").exists()
