"""What a run says last: commands that can be typed as they stand."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import test as test_script
import train
from src.config import config_from_dict
from src.logger.run_index import list_runs
from src.run.closing import next_commands
from src.utils.errors import ConfigError, KeelError
from src.utils.paths import shown_path
from tests.conftest import ROOT

CONFIG = """
name: small
data: {type: digits.Digits, DATA}
model: {type: MODEL}
loss: CrossEntropyLoss
optimizer: {type: SGD, args: {lr: 0.1}}
trainer: {epochs: 1, device: cpu, threads: 1}
"""
OWN = """
from torch import nn


class Own(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, 10))
"""
TWO = "split: {val: 0.1}, test_clean: {type: digits.Digits}, test_noisy: {type: digits.Digits}"


def write_config(folder: Path, data: str, model: str = "lenet.LeNet, args: {image_size: 8}") -> list[str]:
    """Write a config and return how to train it."""
    path = folder / "c.yaml"
    path.write_text(CONFIG.replace("DATA", data).replace("MODEL", model))
    return ["-c", str(path), f"trainer.save_dir={folder}/runs"]


def typed(words: list[str], folder: Path) -> str:
    """Run a command of the project in a folder and return what it says."""
    ran = subprocess.run([sys.executable, *words], cwd=folder, env=os.environ, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.parametrize(
    ("data", "tested"),
    [
        ("split: {val: 0.1}", ["val"]),
        pytest.param("split: {val: 0.1, test: 0.1}", ["test"], marks=pytest.mark.full),
        pytest.param(TWO, ["test_clean", "test_noisy"], marks=pytest.mark.full),
    ],
)
def test_the_command_named_last_works_as_it_stands(tmp_path: Path, data: str, tested: list[str]) -> None:
    (tmp_path / "own.py").write_text(OWN)  # outside the project, with a class beside the config
    said = typed([str(ROOT / "train.py"), *write_config(tmp_path, data, "own.Own")], tmp_path)
    named = re.search(r"^ *next: (.*)", said, re.MULTILINE)
    assert named is not None
    python, *words = shlex.split(named[1])
    assert python == "python"
    said = typed(words, tmp_path)
    assert [line.split()[0] for line in said.splitlines() if " rows" in line] == tested


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (["train", "val", "test"], ""),
        (["train", "val", "test_clean", "test_noisy"], ""),
        (["train", "val"], " --split val"),
        (["train", "val_a", "val_b"], " --split val_a"),
        (["train"], None),
    ],
)
def test_what_is_named_fits_the_parts_of_the_run(tmp_path: Path, parts: list[str], words: str | None) -> None:
    raw = {"name": "a", "data": {"type": "digits.Digits"}, "model": {"type": "Linear"}, "loss": "mse"}
    config = config_from_dict({**raw, "optimizer": {"type": "SGD"}, "logger": {"tensorboard": False}})
    found = next_commands(tmp_path / "a" / "1", config, parts)
    script = os.path.relpath(ROOT / "test.py") if Path.cwd().is_relative_to(ROOT) else str(ROOT / "test.py")
    assert found == ([] if words is None else [f"python {script} -r {tmp_path}/a/1{words}"])


def test_without_a_part_called_test_all_that_begin_so_are_tested(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(write_config(tmp_path, TWO)) == 0
    (run,) = (tmp_path / "runs" / "small").iterdir()
    capsys.readouterr()
    assert test_script.main(["-r", str(run)]) == 0
    said = capsys.readouterr().out
    assert [line.split()[0] for line in said.splitlines() if " rows" in line] == ["test_clean", "test_noisy"]
    assert {path.name for path in (run / "report").glob("*.html")} == {"test_clean.html", "test_noisy.html"}
    with pytest.raises(ConfigError, match="choose test_clean or test_noisy with --split"):
        test_script.main(["-r", str(run), "--predict", str(tmp_path / "out.csv")])


def test_folds_say_nothing_of_what_comes_next_and_quiet_is_quiet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*write_config(tmp_path, "split: {val: 0.1}"), "--folds", "2"]
    assert train.main(words) == 0
    said = capsys.readouterr().out
    assert said.count("done in") == 2 and "next:" not in said and "tensorboard" not in said
    assert train.main([*words, "-q"]) == 0
    assert capsys.readouterr().out.startswith("2 folds of ")


def test_a_run_that_was_stopped_says_so_and_how_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*write_config(tmp_path, "split: {val: 0.1}"), "trainer.max_time=1s", "trainer.epochs=1000"]
    assert train.main(words) == 128 + signal.SIGTERM
    said = capsys.readouterr().out
    (run,) = (tmp_path / "runs" / "small").iterdir()
    (named,) = re.findall(r"^ *next: *(.*)", said, re.MULTILINE)
    assert "stopped after" in said and "done in" not in said
    assert shlex.split(named)[1:] == [shown_path(ROOT / "train.py"), "-r", str(run)]
    record, _ = list_runs(tmp_path / "runs")[f"small/{run.name}"]
    assert record.end == "stopped"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--split", "vla"], r"--split vla: this run has the parts train, val; did you mean val\?"),
        (["--split", "val", "--checkpoint", "bst"], "has no checkpoint 'bst'; there are best, last, step-00000001"),
        (["data.split.groups=nix"], r"^command line #1 data.split.groups: .* no attribute 'nix'"),
        (["--splt", "val"], r"unrecognized arguments: --splt; did you mean --split\?"),
    ],
)
def test_what_a_run_does_not_have_is_told_with_what_there_is(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main([*write_config(tmp_path, "split: {val: 0.1}"), "trainer.max_steps=1"]) == 0
    (run,) = (tmp_path / "runs" / "small").iterdir()
    with pytest.raises(KeelError, match=message):
        test_script.main(["-r", str(run), *words])
