"""What this project promises: every config is right, trains, goes on and can be tested. Add what yours promises."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted(path for path in (ROOT / "TASK").glob("*.yaml"))


def run(*words: object) -> str:
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.name)
def test_a_config_builds_and_tries_a_step(config: Path) -> None:
    assert "parameters" in run("train.py", "-c", config, "--check")


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.name)
def test_a_config_trains_and_goes_on(config: Path, tmp_path: Path) -> None:
    save_dir = f"trainer.save_dir={tmp_path}"
    run("train.py", "-c", config, save_dir, "trainer.max_steps=2")
    assert "going on after step 2" in run("train.py", "-c", config, "-r", "auto", save_dir, "trainer.max_steps=4")
