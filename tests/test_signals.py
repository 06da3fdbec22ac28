"""Asked to stop, in whatever it is doing, a run saves, leaves with its code, and goes on as if nothing had been."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from src.trainer.checkpoints.resume import open_checkpoint
from src.trainer.hooks import Hook
from src.trainer.settings import TrainerSettings
from src.trainer.trainer import Trainer
from src.utils.errors import ConfigError
from src.utils.paths import PROJECT_ROOT
from src.utils.signals import StopSignals
from tests.chaos import count_orphans, differences, final_run, finish, output_of, prepare, start
from tests.trainer_kit import assert_same_weights, make_trainer, weights

ASKING = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP]


@pytest.mark.parametrize("number", ASKING)
def test_every_signal_that_asks_only_sets_a_flag_and_old_handlers_come_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopSignals() as signals:
        assert signals.received is None
        os.kill(os.getpid(), number)
        assert signals.received == (signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)
        assert signals.reason == number.name
    assert signal.getsignal(number) == before


def test_a_second_ctrl_c_leaves_at_once() -> None:
    with StopSignals(), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


def test_a_hang_up_that_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signals.received is None
    finally:
        signal.signal(signal.SIGHUP, before)


class AskDuringEvaluation(Hook):
    """Asks to stop in the second evaluation, after its first batch."""

    def __init__(self) -> None:
        self.batches = 0

    def __call__(self, module: Any, inputs: Any) -> None:
        self.batches += not module.training
        if self.batches == 4 + 1 and not module.training:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("options", [{}, {"eval_every_steps": 5, "save_every_steps": 4}, {"ema_decay": 0.9}])
def test_an_evaluation_is_left_at_once_and_made_again_after_the_resume(tmp_path: Path, options: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    straight = make_trainer(tmp_path / "a", **options)
    straight.fit()
    stopped = make_trainer(tmp_path / "b", **options)
    asking = AskDuringEvaluation()
    (stopped.ema.model if stopped.ema else stopped.model).register_forward_pre_hook(asking)
    stopped.fit()
    assert stopped.signal == signal.SIGTERM
    assert asking.batches == 5, "no further batch was evaluated"
    assert stopped.progress.step == (10 if "eval_every_steps" in options else 14)
    resumed = make_trainer(tmp_path / "b", **options)
    torch.manual_seed(99)
    resumed.load_state_dict(open_checkpoint(tmp_path / "b")[1])
    resumed.fit()
    assert_same_weights(weights(straight), weights(resumed))
    assert straight.monitor.state_dict() == resumed.monitor.state_dict()
    assert (tmp_path / "a" / "metrics.csv").read_bytes() == (tmp_path / "b" / "metrics.csv").read_bytes()


class Clock(Hook):
    """A clock by which every step takes a minute, and nothing else any time."""

    now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s

    def on_step_end(self, trainer: Trainer) -> None:
        self.now_s += 60


def test_max_time_stops_and_saves_in_time_and_the_run_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr("src.utils.signals.time", clock)
    stopped = make_trainer(tmp_path, hooks=(clock,), max_time="10m", epochs=500)
    stopped.fit()
    assert stopped.signal == signal.SIGTERM
    assert stopped.progress.step == 8 == open_checkpoint(tmp_path)[1]["progress"]["step"], "time for two more is kept"
    resumed = make_trainer(tmp_path, epochs=2)
    resumed.load_state_dict(open_checkpoint(tmp_path)[1])
    resumed.fit()
    assert (resumed.signal, resumed.progress.step) == (None, 14)


@pytest.mark.parametrize(("text", "seconds"), [("3h50m", 13800), ("45s", 45), ("1d", 86400), ("90m", 5400)])
def test_max_time_is_read_as_it_is_written(text: str, seconds: float) -> None:
    assert TrainerSettings(max_time=text).max_time_s == seconds


@pytest.mark.parametrize("text", ["", "3", "h", "0s", "-1h", "3h 50m", "1h2h"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"trainer\.max_time: a time such as 3h50m"):
        TrainerSettings(max_time=text)


CONFIG = """
name: small
data: {type: digits.Digits, split: {val: 0.1}}
loader: {batch_size: 64, num_workers: 2}
model: {type: lenet.LeNet, args: {image_size: 8}}
loss: CrossEntropyLoss
optimizer: {type: SGD, args: {lr: 0.1}}
trainer: {epochs: 5000, save_every_epochs: 1000}
"""


@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, *(pytest.param(each, marks=pytest.mark.full) for each in (signal.SIGUSR1, signal.SIGHUP))],
)
def test_a_signal_to_the_whole_process_group_saves_once_and_leaves_no_process(
    tmp_path: Path, number: signal.Signals
) -> None:
    (tmp_path / "small.yaml").write_text(CONFIG)
    command = [sys.executable, str(PROJECT_ROOT / "train.py"), "-c", str(tmp_path / "small.yaml")]
    output = tmp_path / "output.txt"
    with output.open("w") as file:
        process = subprocess.Popen(
            [*command, f"trainer.save_dir={tmp_path}"], stdout=file, stderr=file, start_new_session=True
        )
    while "epoch" not in output.read_text() and process.poll() is None:
        time.sleep(0.02)
    os.killpg(process.pid, number)
    assert process.wait(20) == 143, output.read_text()
    (run,) = (tmp_path / "small").iterdir()
    status = json.loads((run / "status.json").read_text())
    assert status == {"state": "stopped", "code": 143, "step": open_checkpoint(run)[1]["progress"]["step"],
                      "resumable": True}  # fmt: skip
    assert len(list((run / "checkpoints").glob("step-*.pt"))) <= 2
    with pytest.raises(ProcessLookupError):
        deadline = time.monotonic() + 6
        while time.monotonic() < deadline:
            os.killpg(process.pid, 0)
            time.sleep(0.05)
    assert "Traceback" not in output.read_text()


ASKING_COMPONENTS = """
import os
import pathlib
import time

from tests import trainer_kit

PLACE, NUMBER, FOLDER = os.environ.get("ASK_AT"), int(os.environ.get("ASK_SIGNAL", 0)), pathlib.Path(__file__).parent


def ask(place, is_time):
    if place == PLACE and is_time and not (FOLDER / "asked").exists():
        (FOLDER / "asked").touch()
        os.kill(int(os.environ["ASK_WHOM"]), NUMBER)


class NoisyRows(trainer_kit.NoisyRows):
    def __getitem__(self, row):
        ask("data", row == 100)
        if PLACE == "hang" and row == 100 and not (FOLDER / "hangs").exists():
            (FOLDER / "hangs").touch()
            time.sleep(600)
        return super().__getitem__(row)


class DropoutNet(trainer_kit.DropoutNet):
    num_trained = 0

    def forward(self, x):
        DropoutNet.num_trained += self.training  # averages are kept by a copy, which counts as well
        ask("step", self.training and self.num_trained == 9)
        ask("evaluation", not self.training and self.num_trained > 9)
        return super().forward(x)

    def state_dict(self, *args, **kwargs):
        ask("save", self.num_trained > 9)
        return super().state_dict(*args, **kwargs)
"""


def start_asking(folder: Path, place: str | None, number: int, workers: int) -> int:
    (folder / "noisy.py").write_text(ASKING_COMPONENTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ASK_AT", place or "")
        patch.setenv("ASK_SIGNAL", str(int(number)))
        main = os.getpid  # of the process that `start` forks
        patch.setattr(os, "setsid", lambda: os.environ.__setitem__("ASK_WHOM", str(main())))
        return start(folder, workers)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = prepare(tmp_path_factory.mktemp("signals") / "straight")
    assert finish(start_asking(folder, None, 0, 0), 60) == 0, output_of(folder)
    return final_run(folder)


PLACES = ["data", "step", "evaluation", "save"]
CELLS = [(place, number, workers) for workers in (0, 2) for place in PLACES for number in ASKING]
QUICK = [(place, ASKING[turn], 2 * (turn % 2)) for turn, place in enumerate(PLACES)]


@pytest.mark.parametrize(
    ("place", "number", "workers"),
    [cell if cell in QUICK else pytest.param(*cell, marks=pytest.mark.full) for cell in CELLS],
)
def test_whatever_a_run_is_doing_it_saves_leaves_with_its_code_and_ends_later_as_if_it_had_not_been_asked(
    place: str, number: signal.Signals, workers: int, undisturbed: Path, tmp_path: Path
) -> None:
    folder = prepare(tmp_path / "asked")
    code = finish(start_asking(folder, place, number, workers), 60)
    assert code == (130 if number == signal.SIGINT else 143), output_of(folder)
    assert (folder / "asked").exists()
    run = final_run(folder)
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["code"]) == ("stopped", code)
    saved = open_checkpoint(run)[1]["progress"]["step"]
    assert saved == status["step"] > 0
    assert finish(start_asking(folder, place, number, 2 - workers), 60) == 0, output_of(folder)
    assert differences(undisturbed, run) == []
    assert count_orphans(folder) == 0


@pytest.mark.parametrize("timeout", [0, pytest.param(300, marks=pytest.mark.full)])
def test_a_run_that_waits_for_a_hanging_worker_is_stopped_and_saved_however_long_it_would_wait(
    timeout: int, undisturbed: Path, tmp_path: Path
) -> None:
    folder = prepare(tmp_path / "hanging")
    config = folder / "chaos.yaml"
    config.write_text(config.read_text().replace("batch_size: 8", f"batch_size: 8\n  timeout: {timeout}"))
    pid = start_asking(folder, "hang", 0, 2)
    while not (folder / "hangs").exists() and finish(pid, 0.1) is None:
        pass
    time.sleep(1)  # for the batches read ahead; were they not yet done, the run would be stopped between two
    os.kill(pid, signal.SIGTERM)
    assert finish(pid, 30) == 143, output_of(folder)
    assert count_orphans(folder) == 0
    run = final_run(folder)
    assert json.loads((run / "status.json").read_text())["resumable"]
    assert finish(start_asking(folder, None, 0, 0), 60) == 0, output_of(folder)
    assert differences(undisturbed, run) == []
