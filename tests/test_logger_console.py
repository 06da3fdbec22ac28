"""Laws of the console: readable in a terminal, in a file, and when nobody reads."""

from __future__ import annotations

import fcntl
import logging
import os
import pty
import struct
import subprocess
import sys
import termios
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from src.logger.console import (
    bar_text,
    closing_summary,
    duration,
    log_to_file,
    number,
    progress_bar,
    setup_console,
)  # fmt: skip
from src.logger.epoch_lines import EpochLines
from src.logger.held_lines import HELD_S, HeldLines
from src.trainer.hooks import Console
from tests.conftest import ROOT
from tests.trainer_kit import make_trainer

TALK = """
import sys, logging
from src.logger.console import LOG, progress_bar, setup_console
setup_console()
bar = progress_bar(2000)
for step in range(2000):
    LOG.info("line %d ▼", step)
    bar.update(1)
print("a print of the user's")
print("still training", file=sys.stderr)
"""


@pytest.mark.parametrize("shell", ["{} | head -n 1", "{} >&-", "{} > /dev/null", "{} > /dev/full"])
def test_training_goes_on_when_nobody_reads(shell: str, tmp_path: Path) -> None:
    script = tmp_path / "talk.py"
    script.write_text(TALK, encoding="utf-8")
    command = "set -o pipefail; " + shell.format(f"{sys.executable} {script}")
    ran = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, env=os.environ | {"PYTHONPATH": "."}, capture_output=True, text=True
    )  # fmt: skip
    assert (ran.returncode, ran.stderr) == (0, "still training\n")
    assert "head" not in shell or ran.stdout == "line 0 ▼\n"


def test_an_ascii_terminal_shows_arrows_as_codes(tmp_path: Path) -> None:
    script = tmp_path / "talk.py"
    script.write_text(TALK, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": ".", "PYTHONIOENCODING": "ascii"}
    ran = subprocess.run([sys.executable, script], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0 and "line 0 \\u25bc" in ran.stdout


def test_the_bar_is_silent_unless_standard_error_is_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(10) as bar:
        bar.update(1)
        bar.set_postfix_str(bar_text({"loss": 0.5, "lr": 1e-3, "samples_per_s": 5210.0}), refresh=False)
    assert capsys.readouterr().err == ""
    assert bar_text({"step/loss": 0.5, "lr": 1e-3, "samples_per_s": 5210.0}) == "loss 0.5000  lr 1.0e-03  5,210/s"


def test_the_bar_tells_the_samples_a_second_since_it_told_them_last(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, console = make_trainer(), Console()
    clock = SimpleNamespace(now_s=100.0, perf_counter=lambda: clock.now_s)
    monkeypatch.setattr("src.trainer.hooks.time", clock)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    console.on_fit_start(trainer)
    for clock.now_s, samples, shown in ((102.0, 100, "50/s"), (112.0, 3100, "300/s")):
        trainer.progress.samples = samples
        console.on_log(trainer, {"step/loss": 0.5})
        assert console.bar.postfix == f"loss 0.5000  {shown}"


def test_lines_go_to_console_and_file_and_no_name_can_fake_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    setup_console()
    log_to_file(tmp_path / "log.txt")
    log = logging.getLogger("src.trainer.trainer")
    log.info("run %s", "x\x1b[2J\r\nINFO done")
    log.debug("not this")
    logging.getLogger("some.library").info("nor this")
    logging.getLogger("some.library").warning("but this")
    assert capsys.readouterr().out == "run x\\x1b[2J\\r\n  INFO done\nwarning: but this\n"
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert [line[24:] for line in lines] == ["INFO    run x\\x1b[2J\\r", "", "WARNING but this"]
    assert lines[1] == "  INFO done"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    now = SimpleNamespace(s=1_000_000.25)
    clocks = SimpleNamespace(time=lambda: now.s, monotonic=lambda: now.s)
    monkeypatch.setattr("src.logger.held_lines.time", clocks)
    return now


def test_lines_that_come_fast_are_told_together_at_their_own_times_and_nothing_overtakes_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], clock: SimpleNamespace
) -> None:
    setup_console()
    log_to_file(tmp_path / "log.txt")
    log = logging.getLogger("src.trainer.hooks")
    held = HeldLines(log)

    def told() -> list[str]:
        return capsys.readouterr().out.split()

    for name in ("line0", "line1", "line2"):
        held.tell(partial(str, name))
        clock.s += 0.01
    assert told() == ["line0"]
    log.warning("halt")
    assert told() == ["line1", "line2", "warning:", "halt"]
    held.tell(lambda: "line3")
    clock.s += 2 * HELD_S
    held.tell_what_is_due()
    assert told() == ["line3"]
    held.tell(lambda: "line4")
    if (child := os.fork()) == 0:
        log.warning("of a worker")
        os._exit(0)
    os.waitpid(child, 0)
    held.close()
    assert told() == ["line4"] and held not in logging.getLogger().handlers
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert [line.split()[-1] for line in lines] == ["line0", "line1", "line2", "halt", "line3", "worker", "line4"]
    assert [line.split()[1][-3:] for line in lines[:3]] == ["250", "260", "270"]


def test_handlers_of_others_get_a_record_for_each_line_at_its_time(
    capsys: pytest.CaptureFixture[str], clock: SimpleNamespace
) -> None:
    setup_console()
    log, seen = logging.getLogger("src.trainer.hooks"), logging.Handler()
    records: list[tuple[str, float]] = []
    seen.emit = lambda record: records.append((record.getMessage(), record.created))  # type: ignore[method-assign]
    log.addHandler(seen)
    held = HeldLines(log)
    for name in ("line0", "line1", "line2"):
        held.tell(partial(str, name))
        clock.s += 0.01
    held.close()
    log.removeHandler(seen)
    assert records == [(f"line{number}", 1_000_000.25 + number / 100) for number in range(3)]
    assert capsys.readouterr().out.split() == ["line0", "line1", "line2"]


def test_lines_of_epochs_are_in_the_file_before_a_checkpoint_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: SimpleNamespace
) -> None:
    setup_console()
    log_to_file(tmp_path / "log.txt")
    trainer = make_trainer(tmp_path, hooks=(Console(has_bar=False),), epochs=5, save_every_epochs=2)
    seen: list[tuple[int, int]] = []
    save = trainer.saver.save

    def look(*args: Any) -> None:
        seen.append((trainer.progress.epoch, (tmp_path / "log.txt").read_text().count("epoch ")))
        save(*args)

    monkeypatch.setattr(trainer.saver, "save", look)
    trainer.fit()
    assert [epoch for epoch, _ in seen] == [told for _, told in seen]
    assert seen


def test_quiet_shows_warnings_only_and_keeps_the_file_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    setup_console(quiet=True)
    log_to_file(tmp_path / "log.txt")
    logging.getLogger("src").info("epoch 1")
    logging.getLogger("src").error("broken")
    assert capsys.readouterr().out == "error: broken\n"
    assert len((tmp_path / "log.txt").read_text().splitlines()) == 2


def test_epoch_lines_are_aligned_and_say_better_worse_and_best() -> None:
    lines = EpochLines(epochs=10, monitor="max val/reward")
    first = {"train/loss": 1.0, "val/loss": 0.5, "val/accuracy": 0.5, "val/reward": 1.0, "val/size": 1.0, "lr": 0.1}
    second = {"train/loss": 0.9, "val/loss": 0.6, "val/accuracy": 0.6, "val/reward": 0.5, "val/size": 1.5, "lr": 0.1}
    a, b = lines.line(first, step=10, epoch=9), lines.line(second, step=20, epoch=10, is_best=True)
    assert a.startswith("epoch  9/10  train  loss 1.000")
    assert b.startswith(
        "epoch 10/10  train  loss 0.9000   ▼  val  loss 0.6000   △  accuracy 0.6000   ▲  reward 0.5000   ▽"
    )
    assert "size 1.500    ↑" in b
    assert b.endswith("lr 1.0e-01   * best")
    assert [a.index(name) for name in ("loss", "accuracy", "size", "lr")] == [
        b.index(name) for name in ("loss", "accuracy", "size", "lr")
    ]
    assert EpochLines().line({"val/loss": float("nan")}, step=500).startswith("step     500  val  loss nan")


def test_the_closing_summary_ends_with_the_next_commands(tmp_path: Path) -> None:
    run = tmp_path / "my runs" / "digits" / "1121_0407"
    commands = ["python test.py -r somewhere", "tensorboard --logdir elsewhere"]
    best = {"val/loss": 0.12345}
    lines = closing_summary(run, seconds=187, best=best, best_at="epoch 7", commands=commands).splitlines()
    assert lines[0] == "done in 3 min 07 s"
    assert lines[1] == f"best:  val/loss 0.1235 after epoch 7, in '{run}'/checkpoints"
    assert lines[2:] == ["next:  python test.py -r somewhere", "       tensorboard --logdir elsewhere"]


@pytest.mark.parametrize(
    ("value", "shown"), [(0.0123, "0.01230"), (12.3456, "12.35"), (1234.5, "1234"), (0.0, "0.000")]
)
def test_numbers_show_the_digits_that_count(value: float, shown: str) -> None:
    assert number(value) == shown


def test_durations_are_in_words_of_their_size() -> None:
    assert [duration(s) for s in (4.21, 59.94, 187, 7500)] == ["4.2 s", "59.9 s", "3 min 07 s", "2 h 05 min"]


NARROW = """
from src.logger.epoch_lines import EpochLines
from src.logger.held_lines import HELD_S, HeldLines
values = {"train/loss": 1.0, "train/f1": 0.5, "val/loss": 2.0, "val/f1": 0.25, "lr": 0.1}
lines = EpochLines(epochs=9)
print(lines.line(values, step=1, epoch=1))
print(lines.line({**values, "lr": 0.2}, step=2, epoch=2, is_best=True))
"""


@pytest.mark.parametrize(
    ("columns", "has_train", "has_rate"), [(150, True, True), (95, False, True), (80, False, False)]
)
def test_a_line_is_no_wider_than_the_terminal(columns: int, has_train: bool, has_rate: bool) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    subprocess.run([sys.executable, "-c", NARROW], cwd=ROOT, env=environment, stdout=theirs, check=True)
    os.close(theirs)
    first, second = os.read(ours, 10_000).decode().splitlines()
    os.close(ours)
    assert second.endswith("   * best") and len(second) <= columns
    assert ("f1 0.5000" in first, "lr 1.0e-01" in first) == (has_train, has_rate)
    assert "loss 1.000" in first and "loss 2.000" in first and "f1 0.2500" in first


def test_a_line_keeps_to_eighty_columns_and_to_what_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("src.logger.epoch_lines.MAX_WIDTH", 80)
    values = {f"{part}/{name}": 0.123456 for part in ("train", "val") for name in ("loss", "accuracy", "recall", "f1")}
    lines = EpochLines(epochs=30, monitor="max val/f1")
    first, second = (lines.line({**values, "lr": 0.1}, step=10, epoch=each, is_best=True) for each in (9, 10))
    assert first == "epoch  9/30  train loss 0.1235   val loss 0.1235   f1 0.1235   * best"
    assert second == first.replace(" 9/", "10/")
    assert EpochLines(epochs=30).line({"train/loss": 1.0, **dict.fromkeys(map(str, range(99)), 1.0)}, step=1) != ""


def test_a_line_of_many_numbers_leaves_those_of_training_out_but_for_its_loss() -> None:
    names = ["loss", "a", "b", "c", "accuracy", "f1"]
    values = {f"{part}/{name}": 0.123456 for part in ("train", "val") for name in names} | {"lr": 0.1}
    line = EpochLines(epochs=10).line(values, step=10, epoch=1)
    assert line.startswith("epoch  1/10  train  loss 0.1235      val  loss 0.1235")
    assert line.count("0.1235") == 7 and "lr 1.0e-01" in line and len(line) < 170
    alone = {f"train/{number}": 0.123456 for number in range(10)}
    assert EpochLines().line(alone, step=10).count("0.1235") == 10
    few = {name: value for name, value in values.items() if not name.endswith(("/a", "/b", "/c"))}
    assert EpochLines(epochs=10).line(few, step=10, epoch=1).count("0.1235") == 6
