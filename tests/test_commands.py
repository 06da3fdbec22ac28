"""`train.py` and `test.py` as a user types them: real kills, exit codes, nothing half made.

They are processes of their own where that is what matters: signals, pipes, where one stands, what is found again.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from src.utils.paths import PROJECT_ROOT
from tests.commands_kit import called

CONFIG = """
name: small
data: {type: digits.Digits, split: {val: 0.1, test: 0.1}}
loader: {batch_size: 64}
model: {type: lenet.LeNet, args: {image_size: 8}}
loss: CrossEntropyLoss
metrics: [accuracy]
optimizer: {type: AdamW, args: {lr: 1e-3}}
lr_scheduler: {type: OneCycleLR, args: {max_lr: 4e-3}}
trainer: {epochs: 3, save_every_steps: 5, log_every_steps: 3}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(CONFIG)
    return path


def run(script: str, *words: object, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROJECT_ROOT / script), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **options)  # type: ignore[call-overload,no-any-return]


def only_run(save_dir: Path) -> Path:
    (found,) = (save_dir / "small").iterdir()
    return found


def final(run_dir: Path) -> dict[str, torch.Tensor]:
    state = torch.load(run_dir / "checkpoints" / "last.pt", weights_only=True)
    weights: dict[str, torch.Tensor] = state["model"]
    return weights


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("straight")
    (folder / "small.yaml").write_text(CONFIG)
    result = run("train.py", "-c", folder / "small.yaml", f"trainer.save_dir={folder}", cwd=folder)
    assert result.returncode == 0, result.stderr
    return only_run(folder)


def test_a_run_directory_holds_all_there_is_to_know(straight: Path) -> None:
    names = {path.name for path in straight.iterdir()}
    assert {"config.yaml", "environment.json", "checkpoints", "events", "metrics.csv", "log.txt"} <= names
    environment = json.loads((straight / "environment.json").read_text())
    assert environment["seed"] == 0
    assert "train.py" in " ".join(environment["command"])
    table = pd.read_csv(straight / "metrics.csv")
    assert list(table["epoch"]) == [1, 2, 3]
    assert {"train/loss", "val/loss", "train/accuracy", "val/accuracy", "lr"} <= set(table.columns)


def test_its_saved_config_trains_the_same_weights_again(straight: Path, tmp_path: Path) -> None:
    result = called("train.py", "-c", straight / "config.yaml", f"trainer.save_dir={tmp_path}")
    assert result.returncode == 0, result.stderr
    again = final(only_run(tmp_path))
    assert all(torch.equal(value, again[name]) for name, value in final(straight).items())


def test_a_killed_run_that_goes_on_by_itself_equals_the_undisturbed_one(
    straight: Path, config: Path, tmp_path: Path
) -> None:
    command = [sys.executable, str(PROJECT_ROOT / "train.py"), "-c", str(config), f"trainer.save_dir={tmp_path}"]
    for kill in (True, True, False):
        with subprocess.Popen(
            [*command, "-r", "auto"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as process:
            if kill:
                deadline, before = time.time() + 60, newest_step(tmp_path)
                while newest_step(tmp_path) == before and process.poll() is None and time.time() < deadline:
                    time.sleep(0.005)
                process.send_signal(signal.SIGKILL)
            _, errors = process.communicate()
    assert process.returncode == 0, errors
    killed = only_run(tmp_path)
    assert all(torch.equal(value, final(killed)[name]) for name, value in final(straight).items())
    assert (killed / "metrics.csv").read_bytes() == (straight / "metrics.csv").read_bytes()


def newest_step(save_dir: Path) -> str:
    return max((path.name for path in save_dir.glob("small/*/checkpoints/step-*.json")), default="")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_leaves_with_its_code(config: Path, tmp_path: Path, number: int, code: int) -> None:
    command = [sys.executable, str(PROJECT_ROOT / "train.py"), "-c", str(config), f"trainer.save_dir={tmp_path}"]
    with subprocess.Popen([*command, "trainer.epochs=5000"], stdout=subprocess.PIPE, text=True) as process:
        while not newest_step(tmp_path):
            time.sleep(0.01)
        process.send_signal(number)
        output, _ = process.communicate(timeout=30)
    assert process.returncode == code, output
    assert newest_step(tmp_path)


def test_test_py_needs_the_run_alone_and_makes_no_new_one(straight: Path) -> None:
    runs_before = list(straight.parent.iterdir())
    result = run("test.py", "-r", straight, cwd="/")
    assert result.returncode == 0, result.stderr
    assert "180 rows" in result.stdout
    written = json.loads((straight / "test_metrics.json").read_text())["test"]
    assert f"{written['accuracy']:.6g}" in result.stdout
    assert list(straight.parent.iterdir()) == runs_before


def test_test_py_writes_a_prediction_for_every_row(straight: Path, tmp_path: Path) -> None:
    result = called(
        "test.py", "-r", straight, "--split", "val", "--predict", tmp_path / "p.csv", "--checkpoint", "last"
    )
    assert result.returncode == 0, result.stderr
    table = pd.read_csv(tmp_path / "p.csv")
    assert len(table) == 180
    assert list(table.columns) == ["row", "prediction", "probability"]


def test_predictions_without_labels_are_asked_for_where_there_are_some(straight: Path, tmp_path: Path) -> None:
    words = ("--predict", tmp_path / "p.csv", "data={type: table.Table, args: {file: none.csv}}")
    result = called("test.py", "-r", straight, *words)
    assert result.returncode == 3 and "none.csv: no such file" in result.stderr
    assert f"python predict.py -r {straight} --input FILE needs no labels" in result.stderr


def test_a_schedule_that_does_not_fit_the_run_is_told(config: Path, tmp_path: Path) -> None:
    schedule = "lr_scheduler={type: CosineAnnealingLR, args: {T_max: 100}, warmup_steps: 5000}"
    result = called("train.py", "-c", config, f"trainer.save_dir={tmp_path}", "trainer.epochs=1", schedule)
    assert result.returncode == 0, result.stderr
    assert "lr_scheduler.args.T_max: made for 100 moves, and this run makes 1" in result.stdout
    assert "lr_scheduler.warmup_steps: is 5,000 and the run has" in result.stdout


def test_a_run_that_fails_says_what_is_left_of_it(config: Path, tmp_path: Path) -> None:
    explode = ("optimizer={type: SGD, args: {lr: 1e30}}", "lr_scheduler=null", "trainer.epochs=1")
    result = called("train.py", "-c", config, f"trainer.save_dir={tmp_path}", *explode)
    assert result.returncode == 6
    folder = only_run(tmp_path)
    assert re.search(rf"stopped in step \d+; {folder} holds no checkpoint yet, its log and config", result.stdout)
    assert (folder / "log.txt").exists() and not list((folder / "checkpoints").iterdir())


def test_a_finished_run_goes_on_when_it_is_given_more_epochs(straight: Path, tmp_path: Path) -> None:
    overrides = ["lr_scheduler=null", f"trainer.save_dir={tmp_path}"]
    assert called("train.py", "-c", straight.parents[1] / "small.yaml", *overrides, "trainer.epochs=1").returncode == 0
    found = only_run(tmp_path)
    result = called("train.py", "-r", found, "trainer.epochs=2")
    assert result.returncode == 0, result.stderr
    assert list(pd.read_csv(found / "metrics.csv")["epoch"]) == [1, 2]


MISTAKES: list[tuple[list[str], int, str]] = [
    ([], 2, r"-c CONFIG"),
    (["-c", "nope.yaml"], 2, r"nope.yaml: no such file"),
    (["-c", "."], 2, r"\.: is a folder, a file is needed"),
    (["CONFIG", "trainer.epoch=3"], 2, r"trainer\.epoch.*did you mean .?epochs"),
    (["CONFIG", "model=lenet.LeNt"], 2, r"model.*has no .LeNt.; did you mean .LeNet"),
    (["CONFIG", "model.args.clases=3"], 2, r"model\.args\.clases.*num_classes"),
    (["CONFIG", "trainer.monitor=min val/los"], 2, r"trainer\.monitor.*`los`; did you mean `loss`"),
    (["CONFIG", "-d", "cuda:7"], 2, r"device: cuda:7: no CUDA device|found \d+ GPU"),
    (["CONFIG", "-d", "banana"], 2, r"unknown device"),
    (["CONFIG", "data.split.val=0.6", "data.split.test=0.6"], 2, r"split"),
    (["CONFIG", "model.args.num_classes=5"], 3, r"label \d is out of range: the model has 5 outputs"),
    (["CONFIG", "trainer.amp_dtype=fp16", "-d", "cpu"], 2, r"trainer\.amp_dtype: fp16 needs a GPU"),
    (["CONFIG", "optimizer.args.betas=[2, 3]"], 2, r"optimizer AdamW\(\.\.\.\): Invalid beta parameter"),
    (["CONFIG", "model.args.image_size=28"], 3, r"the model LeNet fails on a batch of \[2, 1, 8, 8\]"),
    (["CONFIG", "-r", "saved/nothing/0101_000000"], 4, r"no such run"),
]


@pytest.mark.parametrize(("words", "code", "message"), MISTAKES, ids=[" ".join(words) for words, _, _ in MISTAKES])
def test_a_mistake_is_one_to_three_lines_has_its_code_and_makes_no_run(
    config: Path, tmp_path: Path, words: list[str], code: int, message: str
) -> None:
    given = [word for part in words for word in (["-c", str(config)] if part == "CONFIG" else [part])]
    extra = [f"trainer.save_dir={tmp_path / 'runs'}"] if "CONFIG" in words else []
    result = called("train.py", *given, *extra, cwd=tmp_path)
    assert result.returncode == code, result.stderr
    assert re.search(message, result.stderr), result.stderr
    assert 1 <= len(result.stderr.splitlines()) <= 3
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "runs").exists()


def test_the_traceback_is_shown_on_request(config: Path) -> None:
    result = run("train.py", "-c", config, "trainer.epoch=3", "--traceback")
    assert result.returncode == 2
    assert "Traceback" in result.stderr


def test_a_reader_that_leaves_does_not_stop_the_training(config: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(PROJECT_ROOT / "train.py"), "-c", str(config), f"trainer.save_dir={tmp_path}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        os.close(process.stdout.fileno())
        errors = process.stderr.read()
        process.stdout = None
        assert process.wait(60) == 0
    assert "Traceback" not in errors
    assert only_run(tmp_path).joinpath("checkpoints", "last.pt").exists()


def test_a_run_of_a_config_outside_the_project_is_tested_with_its_folder_vouched_for(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n\nclass Mine(nn.Sequential):\n"
        "    def __init__(self) -> None:\n        super().__init__(nn.Flatten(), nn.Linear(64, 10))\n"
        "\nfrom src.trainer.hooks import Hook\n\nclass Watch(Hook): ...\n"
    )
    config = CONFIG.replace("{type: lenet.LeNet, args: {image_size: 8}}", "mine.Mine") + "hooks: [mine.Watch]\n"
    (tmp_path / "small.yaml").write_text(config)
    result = called("train.py", "-c", tmp_path / "small.yaml", "trainer.epochs=1", f"trainer.save_dir={tmp_path}/runs")
    assert result.returncode == 0, result.stderr
    refused = called("test.py", "-r", only_run(tmp_path / "runs"))
    assert refused.returncode == 2
    assert "mine.Mine" in refused.stderr and "mine.Watch" in refused.stderr
    assert refused.stderr.count("--trust FOLDER/") == 1
    allowed = run("test.py", "-r", only_run(tmp_path / "runs"), "--trust", f"{tmp_path}/")
    assert allowed.returncode == 0, allowed.stderr
