"""`train.py --open`, `--quiet`, and what stands on a terminal while a model trains."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

from tests.commands_kit import called
from tests.conftest import ROOT

ADDRESS = re.compile(r"board  (http://127\.0\.0\.1:\d+/)")


def command(save_dir: Path, *words: str) -> list[str]:
    script = [sys.executable, "train.py", "-c", "configs/line.yaml", f"trainer.save_dir={save_dir}"]
    return [*script, "trainer.epochs=3", *words]


def is_served(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def listening_at(port: int) -> list[str]:
    """Addresses, in the kernel's hexadecimal form, at which something listens to a port."""
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()[1:]]
    return [
        line[1].partition(":")[0] for line in lines if line[3] == "0A" and int(line[1].partition(":")[2], 16) == port
    ]


def wait_for(is_true: Callable[[], bool], seconds: float = 30) -> bool:
    end = time.monotonic() + seconds
    while not is_true() and time.monotonic() < end:
        time.sleep(0.1)
    return is_true()


def test_open_serves_the_runs_on_this_machine_alone_and_ends_with_the_program_however_that_ends(tmp_path: Path) -> None:
    words = command(tmp_path, "--open", "trainer.epochs=1000000")
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        found = None
        while found is None:
            line = process.stdout.readline()
            assert line, "ended without an address"
            found = ADDRESS.search(line)
        assert is_served(found[1])
        assert set(listening_at(int(found[1].rstrip("/").rpartition(":")[2]))) == {"0100007F"}, "127.0.0.1 alone"
        process.send_signal(signal.SIGKILL)
    assert wait_for(lambda: not is_served(found[1]))


def test_quiet_prints_nothing_while_all_goes_well_and_the_log_has_every_line(tmp_path: Path) -> None:
    done = subprocess.run(command(tmp_path, "--quiet"), cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "" and done.stderr == ""
    (log,) = tmp_path.glob("line/*/log.txt")
    assert "epoch 3/3" in log.read_text()


def test_verbose_tells_what_is_built_where_and_when(tmp_path: Path) -> None:
    done = called(*command(tmp_path, "-v")[1:], cwd=ROOT)
    line = re.compile(r" *\d+\.\d\d s  (.*)")
    told = [found[1] for each in done.stdout.splitlines() if (found := line.fullmatch(each))]
    for begin in ("device cpu", "data   ", "loader train: batches of", "model  linear.Linear("):
        assert any(each.startswith(begin) for each in told), begin
    assert any("epoch 3/3" in each for each in told)

    (run,) = tmp_path.glob("line/*")
    for script, words in {"test.py": ["--split", "train"], "export.py": ["--weights-only"]}.items():
        verbose, quiet = (called(script, "-r", run, *words, option, cwd=ROOT) for option in ("-v", "-q"))
        assert verbose.stdout and "model  linear.Linear(" not in verbose.stdout
        assert verbose.stderr.count("model  linear.Linear(") == 1 and "run    " in verbose.stderr
        assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")


def test_a_bar_on_a_terminal_shows_loss_rate_samples_per_second_and_time_left(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (40, 160))
    words = command(tmp_path, "trainer.epochs=100", "trainer.log_every_steps=5")
    with subprocess.Popen(words, cwd=ROOT, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        seen = b""
        while process.poll() is None or select.select([ours], [], [], 0)[0]:
            try:
                seen += os.read(ours, 65536)
            except OSError:  # all is read
                break
    os.close(ours)
    assert process.returncode == 0
    text = seen.decode(errors="replace")
    assert re.search(r"\d+/\d+ \[\d\d:\d\d<\d\d:\d\d.*(step/s|s/step), loss \S+  lr \S+  [\d,]+/s\]", text), text[
        -2000:
    ]
