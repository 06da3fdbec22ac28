"""Real sweeps on Ray: every trial a run of its own, and nothing lost by kills. Skipped where Ray is not installed."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml

from src.config.load import load_config
from src.logger.console import number
from src.logger.run_index import list_runs
from src.sweep.record import newest_sweep
from src.trainer.checkpoints.resume import open_checkpoint
from tests.conftest import ROOT
from tests.test_readme import blocks, check_output, commands, run

pytest.importorskip("ray")


def write_config(folder: Path, tune: dict[str, Any], **others: Any) -> Path:
    path = folder / "x.yaml"
    values = {"base": str(ROOT / "configs/line.yaml"), "name": "x", "trainer": {"epochs": 3, "save_dir": str(folder)}}
    path.write_text(yaml.safe_dump({**values, "tune": tune, **others}), encoding="utf-8")
    return path


def command(config: Path, *words: str) -> list[str]:
    return [sys.executable, str(ROOT / "tune.py"), "-c", str(config), *words]


def sweep(config: Path, *words: str, code: int = 0) -> tuple[Path, str]:
    """Make a sweep to its end; return its folder and all it printed."""
    done = subprocess.run(command(config, *words), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return the_sweep(config), done.stdout + done.stderr


def the_sweep(config: Path) -> Path:
    found = newest_sweep(config.parent / "x")
    assert found is not None
    return found


def outcomes(folder: Path) -> list[str]:
    return [json.loads(path.read_text())["outcome"] for path in sorted(folder.glob("trial_*/trial.json"))]


def weights(run: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = open_checkpoint(run)[1]["model"]
    return found


def assert_same_run(one: Path, other: Path) -> None:
    assert (one / "metrics.csv").read_bytes() == (other / "metrics.csv").read_bytes()
    mine, theirs = weights(one), weights(other)
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """(config, folder of the sweep, what was printed) of three trials: one good, one hopeless, one that crashes."""
    tune = {
        "space": {"optimizer.args.lr": {"grid": [0.3, 1e-7, 1e38]}},
        "metric": "val/loss",
        "scheduler": "asha",
        "max_concurrent": 1,
    }
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "own.py").write_text("from src.model.linear import Linear\n\n\nclass Own(Linear):\n    pass\n")
    config = write_config(folder, tune, model={"type": "own.Own", "args": {"in_features": 1, "out_features": 1}})
    return config, *sweep(config)


def typed(printed: str, script: str) -> list[str]:
    """Return the words of the command that was printed for a script."""
    found = re.search(rf"python (\S*{script} .*)", printed)
    assert found is not None, printed
    return [sys.executable, *shlex.split(found[1])]


def test_a_good_trial_finishes_a_hopeless_one_is_pruned_and_a_crash_ends_nothing(small: tuple[Path, Path, str]) -> None:
    _, folder, printed = small
    assert outcomes(folder) == ["finished", "pruned", "crashed"]
    table = pd.read_csv(folder / "trials.csv").set_index("trial")
    assert list(table.index) == ["trial_000", "trial_001", "trial_002"], "the best stands first"
    assert table["evaluations"].to_list() == [3, 1, 0]
    row = next(line for line in printed.splitlines() if line.startswith("trial_001  pruned"))
    assert f"val/loss {number(table['val/loss']['trial_001'])}" in row, "what was told is what is in the table"
    assert "stopping: pruned after 1 evaluations" in (folder / "trial_001/log.txt").read_text()
    assert open_checkpoint(folder / "trial_001")[1]["progress"]["epoch"] == 1, "saved where it was stopped"
    assert "trial_002 crashed (exit code 6)" in printed and "trial_002/output.txt" in printed
    assert "3 of 3: 1 finished, 1 pruned, 1 crashed" in printed
    assert [each[0].end for each in list_runs(folder).values()] == ["finished", "pruned", "crashed"]


def test_the_console_shows_no_more_than_our_own_lines(small: tuple[Path, Path, str]) -> None:
    _, _, printed = small
    assert not [line for line in printed.splitlines() if "ray" in line.lower() and ".ray" not in line]
    assert len(printed.splitlines()) < 40, printed


def test_what_is_left_behind_can_be_looked_at_and_used(small: tuple[Path, Path, str]) -> None:
    config, folder, printed = small
    page = (folder / "trials.html").read_text()
    assert "<svg" in page and all(f">{value}</text>" in page for value in ("0.3", "1e-07", "1e+38"))
    assert not (folder / ".ray").exists()
    best = config.with_name("x_best.yaml")
    assert best.read_text().startswith("# Best of 3 trials of x.yaml by min val/loss") and str(best) in printed
    assert load_config(best).optimizer.args["lr"] == 0.3  # type: ignore[union-attr]
    assert load_config(best).tune is None and load_config(best).trainer.threads is None
    for name in ("trial_000", "trial_001"):
        events = next((folder / name / "events").glob("events*")).read_bytes()
        assert b"hparams" in events and f"{folder.name}/{name}".encode() in events
    assert load_config(folder / "trial_000/config.yaml").trainer.threads == 1


def test_a_trial_is_the_run_that_its_config_makes_alone_bit_for_bit(small: tuple[Path, Path, str]) -> None:
    config, folder, printed = small
    words = [*typed(printed, "train.py -c"), "name=alone"]
    assert str(folder / "trial_000/config.yaml") in words
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}  # the config says how many threads it computed with
    subprocess.run(words, check=True, capture_output=True, timeout=120, env=environment)
    assert_same_run(folder / "trial_000", next((config.parent / "alone").iterdir()))


@pytest.mark.full
def test_a_sweep_with_another_config_is_not_gone_on_with(small: tuple[Path, Path, str]) -> None:
    config, folder, _ = small
    done = subprocess.run(
        command(config, "--resume", str(folder), "trainer.epochs=4"), capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "trainer.epochs: 3 -> 4" in done.stderr, done.stderr


def test_an_address_at_which_no_cluster_answers_is_told_and_nothing_is_begun(tmp_path: Path) -> None:
    config = write_config(tmp_path, {"space": {"seed": {"grid": [0, 1]}}})
    words = ["--address", "127.0.0.1:1", f"trainer.save_dir={tmp_path}/saved"]
    done = subprocess.run(command(config, *words), capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "--address 127.0.0.1:1: no Ray cluster answers" in done.stderr, done.stderr
    assert list(tmp_path.iterdir()) == [config]


@pytest.mark.full
def test_nobody_is_asked_where_nothing_is_left_to_make(small: tuple[Path, Path, str]) -> None:
    config, folder, _ = small
    words = ["--address", "127.0.0.1:1", "--resume", str(folder), "tune.samples=1"]
    done = subprocess.run(command(config, *words), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.full
def test_the_commands_that_are_told_last_work_as_they_stand(small: tuple[Path, Path, str]) -> None:
    _, _, printed = small
    done = subprocess.run(typed(printed, "test.py"), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# What follows takes its time.


@pytest.fixture
def slow_config(tmp_path: Path) -> Path:
    """Four trials of some seconds each."""
    tune = {"space": {"optimizer.args.lr": {"grid": [0.3, 0.2]}, "seed": {"grid": [0, 1]}}, "max_concurrent": 2}
    trainer = {"epochs": 400, "save_dir": str(tmp_path), "save_every_epochs": 7}
    return write_config(tmp_path, tune, trainer=trainer)


def wait_for(condition: Any, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def saved(config: Path, count: int) -> bool:
    found = newest_sweep(config.parent / "x")
    return found is not None and len({path.parent for path in found.glob("trial_*/checkpoints/step-*.json")}) >= count


def processes_of(folder: Path) -> Iterator[int]:
    """Yield the processes that make the trials of a sweep: those that hold a lock in its folder."""
    for path in folder.glob("trial_*/run.lock"):
        text = path.read_text().strip()
        if text and is_alive(int(text)):
            yield int(text)


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not fetched by its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def descendants(pid: int) -> list[int]:
    found = [pid]
    for each in found:
        for task in Path(f"/proc/{each}/task").glob("*/children"):
            found += [int(word) for word in task.read_text().split()]
    return found


def test_a_sweep_whose_driver_is_killed_is_gone_on_with(tmp_path: Path) -> None:
    tune = {"space": {"optimizer.args.lr": {"grid": [0.3, 0.2]}}, "max_concurrent": 2}
    trainer = {"epochs": 100, "save_dir": str(tmp_path), "save_every_epochs": 7}
    config = write_config(tmp_path, tune, trainer=trainer)
    driver = subprocess.Popen(command(config), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: saved(config, 1))
    at_work = [*processes_of(the_sweep(config))]
    driver.kill()
    driver.wait()
    assert "" in outcomes(the_sweep(config))
    folder, printed = sweep(config, "--resume")
    assert outcomes(folder) == ["finished"] * 2, printed
    assert not any(map(is_alive, at_work))
    assert any("going on after" in path.read_text() for path in folder.glob("trial_*/log.txt"))
    for path in folder.glob("trial_*/metrics.csv"):
        assert pd.read_csv(path)["epoch"].dropna().to_list() == list(range(1, 101)), "every epoch once"


@pytest.mark.full
def test_a_sweep_whose_driver_is_killed_goes_on_and_ends_with_the_same_bits(slow_config: Path) -> None:
    driver = subprocess.Popen(command(slow_config), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: saved(slow_config, 2))
    others = [pid for pid in descendants(driver.pid) if pid != driver.pid]
    driver.kill()
    driver.wait()
    folder = the_sweep(slow_config)
    assert "" in outcomes(folder)
    _, printed = sweep(slow_config, "--resume")
    assert the_sweep(slow_config) == folder and outcomes(folder) == ["finished"] * 4, printed
    wait_for(lambda: not any(map(is_alive, others)))  # nothing of the first start is left, Ray's own a minute later
    gone_on = [path for path in folder.glob("trial_*/log.txt") if "going on after" in path.read_text()]
    assert gone_on, "the trials that ran went on from their checkpoints"
    (slow_config.parent / "again").mkdir()
    other = slow_config.parent / "again" / "x.yaml"
    other.write_text(slow_config.read_text().replace(f"save_dir: {slow_config.parent}", f"save_dir: {other.parent}"))
    undisturbed, _ = sweep(other)
    for index in range(4):
        assert_same_run(folder / f"trial_{index:03d}", undisturbed / f"trial_{index:03d}")
    before = {path: path.stat().st_mtime_ns for path in folder.glob("trial_*/metrics.csv")}
    sweep(slow_config, "--resume", "tune.max_concurrent=1")
    assert before == {path: path.stat().st_mtime_ns for path in before}, "what is finished is kept"


@pytest.mark.full
def test_a_trial_or_a_worker_that_is_killed_goes_on_and_ctrl_c_saves_all(slow_config: Path) -> None:
    driver = subprocess.Popen(command(slow_config), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for(lambda: saved(slow_config, 2))
    folder = the_sweep(slow_config)
    listening = {address for pid in descendants(driver.pid) for address in listens(pid)}
    assert listening and all(address in ("127.0.0.1", "::1") for address in listening), listening
    victim, *_ = processes_of(folder)
    os.kill(victim, signal.SIGKILL)
    wait_for(lambda: outcomes(folder).count("finished") >= 1)
    wait_for(lambda: list(processes_of(folder)))
    os.kill(parent(next(processes_of(folder))), signal.SIGKILL)  # Ray starts another worker
    wait_for(lambda: outcomes(folder).count("finished") >= 2)
    assert "crashed" not in outcomes(folder)
    driver.send_signal(signal.SIGINT)
    printed, _ = driver.communicate(timeout=60)
    assert driver.returncode == 130, printed
    assert not list(processes_of(folder))
    done = subprocess.run(typed(printed, "tune.py"), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert outcomes(folder) == ["finished"] * 4
    assert len({(folder / f"trial_{index:03d}" / "metrics.csv").read_bytes() for index in range(4)}) == 4


def listens(pid: int) -> Iterator[str]:
    """Yield the addresses on which a process waits for connections."""
    try:
        sockets = {str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir()}
        lines = [
            line.split()
            for name in ("tcp", "tcp6")
            for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]
        ]
    except OSError:
        return
    loopback = ("0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000")
    for words in lines:
        if words[3] == "0A" and f"socket:[{words[9]}]" in sockets:
            address = words[1].split(":")[0]
            yield "127.0.0.1" if address in loopback else address


@pytest.mark.full
def test_optuna_learns_from_the_trials_before_also_after_a_resume(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    space = {"optimizer.args.lr": {"loguniform": [1e-6, 1]}, "loader.batch_size": {"choice": [8, 16]}}
    tune = {"space": space, "samples": 2, "search": "optuna", "max_concurrent": 1}
    config = write_config(tmp_path, tune)
    folder, _ = sweep(config)
    assert outcomes(folder) == ["finished"] * 2
    sweep(config, "--resume", "tune.samples=4")
    assert outcomes(folder) == ["finished"] * 4
    drawn = pd.read_csv(folder / "trials.csv")["optimizer.args.lr"]
    assert drawn.nunique() == 4 and drawn.between(1e-6, 1).all()


@pytest.mark.full
def test_every_command_of_the_page_does_what_it_says(copy_project: Callable[[], Path]) -> None:
    copy, output = copy_project(), ""
    for block in blocks("docs/tuning.md"):
        if block.language == "bash":
            output = ""
            for line in commands(block):
                done = run(line, copy)
                output += done.stdout + done.stderr
                assert done.returncode == 0, f"docs/tuning.md:{block.line}: {line}\n{output}"
        elif block.info == "output":
            check_output(block.text, output, f"docs/tuning.md:{block.line}")
        elif block.language == "yaml":
            shipped = yaml.safe_load((copy / "configs/tune_digits.yaml").read_text(encoding="utf-8"))
            assert yaml.safe_load(block.text) == shipped


@pytest.mark.full
def test_the_commands_for_a_cluster_join_two_machines_and_the_sweep_runs_there(tmp_path: Path) -> None:
    (block,) = [each for each in blocks("docs/tuning.md") if "ray start --head" in each.text]
    head, other, _ = (line.partition("#")[0].split() for line in block.text.splitlines())
    assert other == ["ray", "start", "--address=HOST:6379"]
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    place, token = f"127.0.0.1:{port}", {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
    environment = {**os.environ, **token, "RAY_USAGE_STATS_ENABLED": "0", "HOME": str(tmp_path)}
    own = ["--node-ip-address=127.0.0.1", "--num-cpus=1", "--block"]  # `ray stop` would stop those of others, too
    first = [*head, f"--port={port}", f"--temp-dir={tempfile.mkdtemp()}", "--include-dashboard=false", *own]
    config = write_config(tmp_path, {"space": {"seed": {"grid": [0, 1, 2]}}})
    nodes = []
    try:
        for words in (first, [*other[:2], f"--address={place}", *own]):
            program = str(Path(sys.executable).with_name(words[0]))
            nodes.append(subprocess.Popen([program, *words[1:]], env=environment, stdout=subprocess.DEVNULL))
            wait_for(lambda: is_open(port))
        done = subprocess.run(
            command(config, "--address", place),
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert outcomes(the_sweep(config)) == ["finished"] * 3
    finally:
        for node in reversed(nodes):
            node.terminate()
            node.wait(60)


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
