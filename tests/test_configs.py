"""Every config that ships begins with its three lines and trains two steps, from wherever one stands."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import train
from tests.conftest import ROOT

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
SHARED = ROOT.parent / "shared" / "data"
LOCAL_DATA = {  # config -> (what must be there, overrides that point to it)
    "mnist": (
        SHARED / "mnist" / "t10k-images-idx3-ubyte.gz",
        [f"data.train.args={{folder: '{SHARED}/mnist', part: test}}", f"data.test.args.folder='{SHARED}/mnist'"],
    ),
    "startups": (SHARED / "50_Startups.csv", [f"data.args.file='{SHARED}/50_Startups.csv'"]),
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def words_for(config: Path) -> list[str]:
    """What train.py is given to train the config on local data, saving in the current folder."""
    needed, local = LOCAL_DATA.get(config.stem, (None, []))
    if needed is not None and not needed.exists():
        pytest.skip(f"{needed.name} is not there")
    return ["-c", str(config), f"trainer.save_dir='{Path.cwd()}'", "logger.bar=false", *local]


def run_script(*words: str) -> str:
    """Run a script as a process of its own and return what it printed."""
    command = [sys.executable, str(ROOT / words[0]), *words[1:]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def final_values(folder: Path) -> dict[str, float]:
    """The last row of the only run's metrics.csv."""
    header, *rows = next(folder.glob("*/*/metrics.csv")).read_text(encoding="utf-8").splitlines()
    return {key: float(value) for key, value in zip(header.split(","), rows[-1].split(","), strict=True) if value}


def test_the_configs_of_the_readme_are_there() -> None:
    names = {path.name for path in CONFIGS}
    assert {"digits.yaml", "mnist.yaml", "startups.yaml", "line.yaml", "diabetes_mlp.yaml"} <= names


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_three_lines_say_what_a_config_is(config: Path) -> None:
    lines = config.read_text(encoding="utf-8").splitlines()
    shows, expect, command, fourth = [line for line in lines if not line.startswith("# yaml-language-server:")][:4]
    assert re.match(r"# Shows: \w.*[.]$", shows) and re.match(r"# Expect: \w.*[.]$", expect)
    script = "tune.py" if "\ntune:" in config.read_text(encoding="utf-8") else "train.py"
    assert command == f"# Run: python {script} -c configs/{config.name}"
    assert not fourth.startswith("#")


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_a_config_trains_two_steps(config: Path, tmp_path: Path) -> None:
    assert train.main([*words_for(config), "trainer.max_steps=2"]) == 0
    assert final_values(tmp_path)["step"] == 2
    assert list(tmp_path.glob("*/*/checkpoints/last.pt"))


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "metric", "least", "overrides"),
    [
        ("mnist", "val/accuracy", 0.97, ["data.split.val=0.2"]),
        ("startups", "val/r2", 0.8, []),
        ("diabetes_mlp", "val/r2", 0.3, []),
    ],
)
def test_a_config_keeps_its_promise(name: str, metric: str, least: float, overrides: list[str], tmp_path: Path) -> None:
    assert train.main([*words_for(ROOT / "configs" / f"{name}.yaml"), *overrides]) == 0
    assert final_values(tmp_path)[metric] >= least


def test_the_line_is_found(tmp_path: Path) -> None:
    run_script("train.py", *words_for(ROOT / "configs" / "line.yaml"))
    assert final_values(tmp_path)["val/loss"] < 1e-6


def test_digits_are_read_well(tmp_path: Path) -> None:
    assert train.main(words_for(ROOT / "configs" / "digits.yaml")) == 0
    found = re.search(r"accuracy +([\d.]+)", run_script("test.py", "-r", str(next(tmp_path.glob("digits/*")))))
    assert found and float(found[1]) >= 0.97
