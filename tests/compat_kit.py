"""A small project in the style of pytorch-template, and a plain loop that trains it as the original's does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from src.compat.project import open_project

FILES = {
    "model/__init__.py": "",
    "data_loader/__init__.py": "",
    "data_loader/data_loaders.py": """
import torch
from torch.utils.data import TensorDataset

from base import BaseDataLoader


class BlobDataLoader(BaseDataLoader):
    def __init__(self, data_dir, batch_size, shuffle=True, validation_split=0.0, num_workers=1, training=True):
        images = torch.load(f"{data_dir}/images.pt", weights_only=True)
        rows = slice(0, 75) if training else slice(75, None)
        labels = (images[:, 0, :3].mean((1, 2)) > 0).long()
        self.dataset = TensorDataset(images[rows], labels[rows])
        super().__init__(self.dataset, batch_size, shuffle, validation_split, num_workers)
""",
    "model/model.py": """
from os import system

import torch.nn as nn
import torch.nn.functional as F

from base import BaseModel


class BlobModel(BaseModel):
    def __init__(self, num_classes=2):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.drop = nn.Dropout2d(0.2)
        self.fc = nn.Linear(64, num_classes)

    def forward(self, x):
        return F.log_softmax(self.fc(F.relu(self.drop(self.conv(x))).flatten(1)), dim=1)


class KnowingModel(BlobModel):
    def __init__(self, config, num_classes=2):
        super().__init__(num_classes)
        self.vocabulary = config["vocabulary"]
        print("the vocabulary is", self.vocabulary["words"], config["trainer"]["own_key"])
""",
    "model/loss.py": """
import torch.nn.functional as F


def nll_loss(output, target):
    return F.nll_loss(output, target)


def flat_loss(output, target):
    return 0 * output.sum() + 1
""",
    "model/metric.py": """
import torch


def accuracy(output, target):
    with torch.no_grad():
        return (output.argmax(dim=1) == target).sum().item() / len(target)


def top_k_acc(output, target, k=2):
    with torch.no_grad():
        return (output.topk(k, dim=1)[1] == target[:, None]).any(1).float().mean().item()
""",
}

CONFIG: dict[str, Any] = {
    "name": "Blobs",
    "n_gpu": 0,
    "arch": {"type": "BlobModel", "args": {}},
    "data_loader": {
        "type": "BlobDataLoader",
        "args": {"data_dir": "data", "batch_size": 16, "shuffle": True, "validation_split": 0.2, "num_workers": 0},
    },
    "optimizer": {"type": "Adam", "args": {"lr": 1e-2, "weight_decay": 0, "amsgrad": True}},
    "loss": "nll_loss",
    "metrics": ["accuracy", "top_k_acc"],
    "lr_scheduler": {"type": "StepLR", "args": {"step_size": 2, "gamma": 0.5}},
    "trainer": {
        "epochs": 3,
        "save_dir": "saved/",
        "save_period": 1,
        "verbosity": 1,
        "monitor": "min val_loss",
        "early_stop": 10,
        "tensorboard": False,
    },
}


def write_project(folder: Path) -> None:
    """Write the files and 95 small images, of which the last 20 are for testing."""
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "data").mkdir()
    torch.save(torch.randn(95, 1, 6, 6, generator=torch.Generator().manual_seed(1)), folder / "data" / "images.pt")
    write_config(folder / "config.json")


def write_config(path: Path, **changes: Any) -> Path:
    """Write the config with sections changed; `trainer={...}` changes keys within, None leaves a section out."""
    config = json.loads(json.dumps(CONFIG))
    for name, value in changes.items():
        if value is None:
            del config[name]
        elif isinstance(value, Mapping) and isinstance(config.get(name), dict):
            config[name] = {**config[name], **value}
        else:
            config[name] = value
    path.write_text(json.dumps(config))
    return path


def train_as_the_original(epochs: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """Train the project in the current folder with a plain loop, in the original's order of every random draw."""
    theirs = open_project(Path.cwd())
    torch.manual_seed(123)
    np.random.seed(123)
    train = theirs.data.BlobDataLoader(**CONFIG["data_loader"]["args"])
    valid = train.split_validation()
    model = theirs.model.BlobModel()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], **CONFIG["optimizer"]["args"])
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, **CONFIG["lr_scheduler"]["args"])
    for _ in range(epochs):
        model.train()
        for data, target in train:
            optimizer.zero_grad()
            theirs.loss.nll_loss(model(data), target).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            for data, _target in valid:
                model(data)
        scheduler.step()
    return model, optimizer
