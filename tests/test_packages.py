"""What is not installed is named with the extra that brings it."""

from __future__ import annotations

import pytest

from src.utils.packages import install_command, not_installed
from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("module", "extra"),
    [
        ("wandb", "trackers"), ("mlflow", "trackers"), ("safetensors", "export"), ("onnx", "export"),
        ("onnxruntime", "export"), ("matplotlib", "plots"), ("transformers", "transfer"), ("peft", "transfer"),
        ("datasets", "hf"), ("ray", "ray"), ("optuna", "optuna"), ("PIL", "images"),
    ],
)  # fmt: skip
def test_a_package_comes_with_its_extra(module: str, extra: str) -> None:
    assert install_command(module) == f'pip install -e ".[{extra}]"'


def test_a_package_of_no_extra_is_installed_by_its_name() -> None:
    assert not_installed("model:", "timm") == (
        "model: needs the package timm, which is not installed; `pip install timm`"
    )


def test_several_packages_are_named_together() -> None:
    assert not_installed("this", "onnx", "onnxruntime") == (
        'this needs the packages onnx and onnxruntime, which are not installed; `pip install -e ".[export]"`'
    )


def test_nobody_else_says_how_to_install() -> None:
    files = [*ROOT.glob("*.py"), *(ROOT / "src").rglob("*.py")]
    known = {"src/utils/packages.py", "src/utils/torch_version.py", "tune.py"}
    found = {file.relative_to(ROOT).as_posix() for file in files if "pip install" in file.read_text(encoding="utf-8")}
    assert found == known
