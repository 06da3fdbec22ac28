"""The lines of docs that name torchvision and timm, run on stand-ins: neither can be installed beside this torch.

A stand-in has the packages' own layout, names and signatures, and next to nothing behind them. It shows that the lines
are found, checked and built, not what the real packages compute.
"""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.conftest import ROOT

FILES = {
    "torchvision/__init__.py": "from torchvision import models, transforms\n",
    "torchvision/transforms/__init__.py": "",
    "torchvision/transforms/v2/__init__.py": "from ._color import ColorJitter\n",
    "torchvision/transforms/v2/_color.py": """
from typing import Any, Optional, Sequence, Union
import torch
from torch import nn

class ColorJitter(nn.Module):
    def __init__(
        self,
        brightness: Optional[Union[float, Sequence[float]]] = None,
        contrast: Optional[Union[float, Sequence[float]]] = None,
        saturation: Optional[Union[float, Sequence[float]]] = None,
        hue: Optional[Union[float, Sequence[float]]] = None,
    ) -> None:
        super().__init__()
        self.brightness = brightness

    def forward(self, *inputs: Any) -> Any:
        return inputs[0] * torch.empty(()).uniform_(1 - self.brightness, 1 + self.brightness)
""",
    "torchvision/models/__init__.py": "from .resnet import *\n",
    "torchvision/models/resnet.py": """
import functools
from enum import Enum
from typing import Any, Callable, Optional
from torch import nn

__all__ = ["ResNet", "ResNet18_Weights", "resnet18"]

class ResNet18_Weights(Enum):
    DEFAULT = "IMAGENET1K_V1"

class ResNet(nn.Sequential):
    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes))

def handle_legacy_interface(builder: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(builder)
    def inner(*args: Any, **kwargs: Any) -> Any:
        return builder(*args, **kwargs)
    return inner

@handle_legacy_interface
def resnet18(*, weights: Optional[ResNet18_Weights] = None, progress: bool = True, **kwargs: Any) -> ResNet:
    assert weights is None
    return ResNet(**kwargs)
""",
    "timm/__init__.py": "from .models import create_model\n",
    "timm/models/__init__.py": "from ._factory import create_model\n",
    "timm/models/_factory.py": """
from typing import Any, Dict, Optional, Union
from torch import nn

def create_model(
    model_name: str,
    pretrained: bool = False,
    pretrained_cfg: Optional[Union[str, Dict[str, Any]]] = None,
    checkpoint_path: Optional[str] = None,
    scriptable: Optional[bool] = None,
    no_jit: Optional[bool] = None,
    **kwargs: Any,
) -> nn.Module:
    assert model_name == "resnet10t" and not pretrained
    channels, classes = kwargs.pop("in_chans"), kwargs.pop("num_classes")
    assert not kwargs
    return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))
""",
}
(JITTER,) = re.findall(r"`(\{type: torchvision[^`]*\})`", (ROOT / "docs" / "data.md").read_text(encoding="utf-8"))
MODELS = {
    "timm": "{type: timm.create_model, args: {model_name: resnet10t, in_chans: 1, num_classes: 10}}",
    "torchvision": "{type: torchvision.models.resnet18, args: {num_classes: 10}}",
}


@pytest.mark.full
@pytest.mark.parametrize("package", MODELS)
def test_a_model_and_a_transform_of_packages_that_are_named_by_path_train(package: str, tmp_path: Path) -> None:
    if any(find_spec(name) for name in ("torchvision", "timm")):
        pytest.skip("the real ones are here")
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    command = [sys.executable, str(ROOT / "train.py"), "-c", str(ROOT / "configs" / "digits.yaml"), "-d", "cpu"]
    command += [f"model={MODELS[package]}", f"data.transforms=[{JITTER}]", "trainer.max_steps=2", "trainer.epochs=1"]
    environment = {"PYTHONPATH": str(tmp_path), "PATH": "", "OMP_NUM_THREADS": "1", "HOME": str(tmp_path)}
    for words in ([f"trainer.save_dir={tmp_path}/saved"], ["--print-config"]):
        done = subprocess.run([*command, *words], capture_output=True, text=True, env=environment, timeout=120)
        assert done.returncode == 0, done.stderr
    assert "torchvision.transforms.v2.ColorJitter" in done.stdout
    wrong = [*command, "data.transforms.0.args.brightnes=1", "--check"]
    done = subprocess.run(wrong, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 2 and "did you mean `brightness`?" in done.stderr
