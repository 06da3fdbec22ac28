"""What docs/distributed.md shows works: its commands train, its config is one, its batch script is one."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from src.config.load import config_from_dict, load_config
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "distributed.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return [text.replace("\\\n", " ") for text in re.findall(rf"```{language}\n(.*?)```", PAGE, re.S)]


@pytest.mark.full
@pytest.mark.parametrize("text", blocks("sh"))
def test_every_command_trains(text: str, tmp_path: Path) -> None:
    for line in text.strip().splitlines():
        words = shlex.split(line)
        python = [sys.executable, *(["-m", "torch.distributed.run"] if words[0] == "torchrun" else [])]
        command = [*python, *words[1:], f"trainer.save_dir={tmp_path}"]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=150)
        assert ended.returncode == 0, ended.stdout + ended.stderr
    if "--check" not in text:
        (run,) = (tmp_path / "digits").iterdir()
        assert (run / "checkpoints" / "last.pt").exists()


def test_the_configs_are_such() -> None:
    base = load_config(ROOT / "configs" / "digits.yaml").as_dict()
    sharded, settings = (config_from_dict({**base, **yaml.safe_load(text)}).trainer for text in blocks("yaml"))
    assert sharded.parallel_settings.shard == ("blocks.*",)
    assert settings.parallel_settings.max_restarts == 3


def test_the_batch_script_is_one_and_its_command_is_understood() -> None:
    (text,) = re.findall(r"```slurm\n(.*?)```", PAGE, re.S)
    assert subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True).stderr == ""
    assert "--requeue" in text and "-r auto" in text and "--max-restarts" in text
