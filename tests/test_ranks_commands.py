"""`train.py` as several processes: one folder, one voice, other numbers of ranks, and what happens when one fails."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from src.config.command_line import parse_training
from src.trainer.checkpoints.store import load_checkpoint
from src.trainer.faults.nonfinite import tensors_in
from src.utils.errors import ConfigError, WorkerError
from src.utils.processes.launch import _exit_code
from src.utils.processes.launched import check_environment
from src.utils.processes.notes import ERROR_FILE, HEARD, note, note_error
from tests.chaos import COMPONENTS, CONFIG, differences
from tests.commands_kit import called
from tests.conftest import ROOT

FAULT = '''
import os, signal, time
from src.trainer.hooks import Hook

class Fault(Hook):
    """Does `what` on `rank` after `step`, once."""

    def __init__(self, what, rank, step, mark):
        self.what, self.place, self.mark = what, (rank, step), mark

    def on_step_end(self, trainer):
        if (trainer.ranks.rank, trainer.progress.step) != self.place or os.path.exists(self.mark):
            return
        open(self.mark, "w").close()
        if self.what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.what == "kill before commit":
            trainer.saver.store.save = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
        elif self.what == "stop":
            os.kill(os.getpid(), signal.SIGTERM)
        elif self.what == "exit":
            os._exit(3)
        elif self.what == "hang":
            time.sleep(1000)
        elif self.what == "full":
            folder = trainer.saver.store.folder
            folder.rename(folder.with_name("away"))
            folder.write_text("no folder any more: nothing can be written there")
        else:
            raise ValueError("only here")
'''
EXACT = {
    "model": {"type": "mlp.MLP", "args": {"in_features": 6, "hidden": [16], "out_features": 3}},
    "loader": {"batch_size": 8},
    "metrics": ["accuracy", "f1", "roc_auc_score"],
}
"""What does not depend on who computes which row: no dropout, no batch norm."""


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """Function that writes a config and returns its path."""

    def write(name: str, **changes: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "noisy.py").write_text(COMPONENTS + FAULT)
        (folder / "run.yaml").write_text(yaml.safe_dump({**CONFIG, "loader": {"batch_size": 4}, **changes}))
        return folder / "run.yaml"

    return write


def train(config: Path, *words: str, launcher: tuple[str, ...] = (), env: Mapping[str, str] | None = None) -> Any:
    command = [sys.executable, *launcher, "train.py", "-c", str(config), f"trainer.save_dir={config.parent}", *words]
    given = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=150, env=given)


def fault(config: Path, what: str, step: int, rank: int = 1) -> str:
    arguments = f"{{what: {what}, rank: {rank}, step: {step}, mark: {config.parent / what}}}"
    return f"hooks=[{{type: noisy.Fault, args: {arguments}}}]"


def only_run(config: Path) -> Path:
    (run,) = (config.parent / "chaos").iterdir()
    return run


def content(run: Path) -> dict[str, Any]:
    return torch.load(run / "checkpoints" / "last.pt", weights_only=True)


def status(run: Path) -> dict[str, Any]:
    return json.loads((run / "status.json").read_text())


def test_a_stopped_run_goes_on_with_another_number_of_ranks(make: Callable[..., Path]) -> None:
    alone, shared = make("alone", **EXACT), make("shared", **EXACT)
    assert train(alone, "-d", "cpu").returncode == 0
    stopped = train(shared, "-d", "cpu,cpu", "--bs", "4", fault(shared, "stop", 20))
    assert stopped.returncode == 143, stopped.stdout + stopped.stderr
    assert stopped.stdout.count("\nrun ") + stopped.stdout.startswith("run ") == 1, "rank 0 speaks for all"
    assert "2 processes, 4 rows each: a global batch of 8 rows" in stopped.stdout
    assert "arning" not in stopped.stdout + stopped.stderr
    run = only_run(shared)
    assert status(run) == {"state": "stopped", "code": 143, "step": 21, "resumable": True}
    assert content(run)["progress"]["batch"] % 24 == 21 * 2 % 24, "all ranks have agreed on a step"

    resumed = train(shared, "-d", "cpu", "-r", str(run), "--bs", "8", "hooks=[]")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert_same_run(only_run(alone), only_run(shared))


def assert_same_run(alone: Path, shared: Path) -> None:
    one, several = content(alone), content(shared)
    assert several["progress"] == one["progress"]
    assert several["model"].keys() == one["model"].keys(), "no wrapper's name reaches a file"
    for part in ("model", "ema"):
        weights = several[part]["model"] if part == "ema" else several[part]
        for name, value in (one[part]["model"] if part == "ema" else one[part]).items():
            assert torch.allclose(weights[name], value, atol=1e-5), f"{part} {name}"
    assert several["monitor"]["best_epoch"] == one["monitor"]["best_epoch"]


@pytest.mark.full
@pytest.mark.parametrize(("first", "second"), [(1, 4), (4, 2), (2, 1)])
def test_every_row_counts_once_when_the_global_batch_changes(
    first: int, second: int, make: Callable[..., Path]
) -> None:
    config = make("ranks", **EXACT)
    words = ["trainer.accumulate_steps=1", "trainer.epochs=2", fault(config, "stop", 5, rank=0)]
    assert train(config, "-d", ",".join(["cpu"] * first), *words).returncode == 143
    run = only_run(config)
    seen = content(run)["progress"]["samples"]
    resumed = train(config, "-d", ",".join(["cpu"] * second), "-r", str(run), *words)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert f"global batch  {8 * first} -> {8 * second}" in resumed.stdout
    assert 0 < seen < 2 * 192 == content(run)["progress"]["samples"]


def test_a_killed_rank_is_started_again_and_nothing_is_lost(make: Callable[..., Path]) -> None:
    calm, killed = make("calm"), make("killed")
    assert train(calm, "-d", "cpu,cpu").returncode == 0
    ended = train(killed, "-d", "cpu,cpu", "trainer.parallel.max_restarts=2", fault(killed, "kill", 14))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "going on after step 12" in ended.stdout
    assert not differences(only_run(calm), only_run(killed))
    assert "Traceback" not in ended.stderr  # of a launcher that is slow, rank 0 has said that it lost another


@pytest.mark.full
@pytest.mark.parametrize(
    ("is_in_background", "kill"), [(False, ("kill", 14)), (True, ("kill", 14)), (True, ("kill before commit", 13, 0))]
)
def test_a_killed_rank_goes_on_from_parts_to_the_same_bits(
    is_in_background: bool, kill: Any, make: Callable[..., Path]
) -> None:
    calm, killed = make("calm"), make("killed")
    sharing = "trainer.parallel={mode: fsdp, save_shards: true, max_restarts: 2}"
    assert train(calm, "-d", "cpu,cpu", sharing).returncode == 0
    words = (sharing, f"trainer.save_in_background={is_in_background}", fault(killed, *kill))
    ended = train(killed, "-d", "cpu,cpu", *words)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    steps = "8|12" if is_in_background and kill[0] == "kill" else "12"  # what is being written may be cut
    assert re.search(rf"going on after step ({steps})\b", ended.stdout)
    one, other = (load_checkpoint(only_run(config) / "checkpoints" / "last.pt") for config in (calm, killed))
    for name in ("model", "optimizer", "ema", "progress", "rng"):
        assert len(tensors_in(one[name])) == len(tensors_in(other[name]))
        pairs = zip(tensors_in(one[name]), tensors_in(other[name]), strict=True)
        assert all(torch.equal(first, second) for first, second in pairs), name
    assert one["progress"] == other["progress"]


@pytest.mark.full
def test_twenty_kills_of_twenty_end_as_if_nothing_had_happened(make: Callable[..., Path]) -> None:
    calm, draw = make("calm"), random.Random(3)
    assert train(calm, "-d", "cpu,cpu").returncode == 0
    torchrun = ("-m", "torch.distributed.run", "--nproc-per-node=2", "--max-restarts=2")
    for number in range(20):
        killed, place = make(f"killed-{number}"), {"step": draw.randint(1, 35), "rank": draw.randint(0, 1)}
        launcher = () if number % 2 else (*torchrun, "--standalone")
        words = ["-d", "cpu,cpu", "trainer.parallel.max_restarts=2"] if number % 2 else ["-d", "cpu"]
        ended = train(killed, *words, fault(killed, "kill", **place), launcher=launcher)
        assert ended.returncode == 0, f"{place}: {ended.stdout + ended.stderr}"
        assert not differences(only_run(calm), only_run(killed)), place


def test_the_rank_that_fails_is_the_one_that_speaks(make: Callable[..., Path]) -> None:
    config = make("fails")
    ended = train(config, "-d", "cpu,cpu", fault(config, "fail", 5))
    assert ended.returncode == 1
    assert ended.stderr.count("Traceback") == 1
    assert ended.stderr.rstrip().endswith("ValueError: only here")
    run = only_run(config)
    assert "ValueError: only here" in (run / "rank1.log").read_text(), "each rank has a log of its errors"
    assert (status(run)["state"], status(run)["code"]) == ("failed", 1), "rank 0 notes the code of rank 1"


NAN_ON_ONE_RANK = """
import torch
from torch import nn

class Fragile(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x):
        hidden = self.body(x)
        if self.training and torch.distributed.get_rank() == 1:
            hidden = torch.log(hidden - 1e6)
        return self.head(hidden)
"""


def test_a_step_that_goes_wrong_on_one_rank_is_told_with_its_layer_and_line(make: Callable[..., Path]) -> None:
    config = make("nan", model={"type": "fragile.Fragile"})
    (config.parent / "fragile.py").write_text(NAN_ON_ONE_RANK)
    ended = train(config, "-d", "cpu,cpu")
    assert ended.returncode == 6, ended.stderr
    assert re.search(r"error: step 1: the loss is nan at lr", ended.stderr), ended.stderr
    assert re.search(r"error: rank 1: first nan: log at \S*fragile.py:13; first gradient: head", ended.stderr)
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("is_in_background", [False, pytest.param(True, marks=pytest.mark.full)])
def test_when_rank_0_can_save_no_more_all_ranks_end_with_its_error_told_once(
    is_in_background: bool, make: Callable[..., Path]
) -> None:
    config = make("full")
    words = [
        f"trainer.save_in_background={is_in_background}",
        "trainer.save_every_steps=3",
        "trainer.parallel.timeout=30",
    ]
    ended = train(config, "-d", "cpu,cpu", *words, fault(config, "full", 5, rank=0))
    assert ended.returncode == 5, ended.stdout + ended.stderr
    (line,) = (line for line in ended.stderr.splitlines() if line.startswith("error: "))
    assert "checkpoints" in line and "Traceback" not in ended.stderr and "lost" not in ended.stderr
    run = only_run(config)
    assert "ResourceError" in (run / "rank1.log").read_text(), "the other rank has not lost anybody"
    assert status(run)["code"] == 5


@pytest.mark.parametrize(
    "program",
    ["test.py", pytest.param("predict.py", marks=pytest.mark.full), pytest.param("export.py", marks=pytest.mark.full)],
)
def test_what_works_in_one_process_is_refused_in_several_once(program: str) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    command = [sys.executable, *launcher, program, "-r", "saved/none"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert ended.returncode != 0
    (line,) = (line for line in ended.stderr.splitlines() if line.startswith("error: "))
    assert line == f"error: {program}: works in one process, found 2; start `python {program} ...`"


@pytest.mark.full
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed_for_good_is_named(rank: int, make: Callable[..., Path]) -> None:
    config = make("killed")
    ended = train(config, "-d", "cpu,cpu", fault(config, "kill", 5, rank=rank))
    assert ended.returncode == 7
    run = only_run(config)
    *_, line = ended.stderr.splitlines()  # of a launcher that is slow, rank 0 has said before that it lost another
    assert line.startswith(f"error: rank {rank} was killed by SIGKILL") and line.endswith(f"Go on with -r {run}")
    assert status(run) == {"state": "failed", "code": 7, "step": 4, "resumable": True}


def test_a_rank_that_ends_without_a_word_is_named_with_its_code_and_log(make: Callable[..., Path]) -> None:
    config = make("exits")
    ended = train(config, "-d", "cpu,cpu", fault(config, "exit", 2, rank=0))
    assert ended.returncode == 7
    run = only_run(config)
    assert ended.stderr == f"error: rank 0 ended with exit code 3 and told no reason; its log is {run / 'log.txt'}\n"
    assert status(run) == {"state": "failed", "code": 7, "step": 0, "resumable": False}, "rank 1 notes it for rank 0"


@pytest.mark.full
def test_a_rank_that_hangs_is_named_with_its_line(make: Callable[..., Path]) -> None:
    config = make("hangs")
    ended = train(config, "-d", "cpu,cpu", "trainer.parallel.timeout=5", fault(config, "hang", 5))
    assert ended.returncode == 7
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: rank 1 hangs in ") and "(on_step_end)" in line and "5 s" in line
    assert status(only_run(config))["code"] == 7


@pytest.mark.full
def test_sigterm_to_the_job_saves_and_leaves_with_its_code(make: Callable[..., Path]) -> None:
    config = make("job")
    command = [sys.executable, "train.py", "-c", str(config), f"trainer.save_dir={config.parent}", "-d", "cpu,cpu"]
    job = subprocess.Popen(
        [*command, "trainer.epochs=10000"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert job.stdout is not None
    while "epoch" not in job.stdout.readline():
        pass
    job.send_signal(signal.SIGTERM)
    rest = job.communicate(timeout=60)[0]
    assert job.returncode == 143, rest
    assert status(only_run(config))["state"] == "stopped"
    assert content(only_run(config))["progress"]["step"] == status(only_run(config))["step"]


@pytest.mark.full
def test_a_mistake_that_all_ranks_were_given_is_told_once(make: Callable[..., Path]) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1")
    ended = train(make("wrong"), "-d", "cpu", "trainer.epoch=3", launcher=launcher)
    assert ended.returncode != 0
    assert ended.stderr.count("error: ") == 1 and "did you mean" in ended.stderr, ended.stderr


@pytest.mark.full
def test_ranks_with_different_configs_are_refused(make: Callable[..., Path]) -> None:
    config = make("differs")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    started = [
        subprocess.Popen(
            [sys.executable, "train.py", "-c", str(config), "-d", "cpu", f"optimizer.args.lr=0.0{rank + 1}"],
            cwd=ROOT, stderr=subprocess.PIPE, text=True,
            env={
                **os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
                "WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank),
            },
        )
        for rank in range(2)
    ]  # fmt: skip
    told = "".join(process.communicate(timeout=100)[1] for process in started)
    assert [process.returncode for process in started] == [2, 2], told
    (line,) = (line for line in told.splitlines() if line.startswith("error: "))  # torch may miss its store, too
    assert line == "error: rank 1's config differs from rank 0's: optimizer.args.lr: 0.01 -> 0.02"
    assert not (config.parent / "chaos").exists()


def test_a_pretended_group_tells_memory_and_traffic_of_each_rank(make: Callable[..., Path]) -> None:
    config = make("pretended", **EXACT)
    ended = called("train.py", "-c", config, "-d", "cpu", "--check", "--world-size", "64")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "ranks      as rank 0 of 64: 8 rows each, a global batch of 512 rows" in ended.stdout
    num_bytes = 4 * (6 * 16 + 16 + 16 * 3 + 3)
    sent = f"{num_bytes / 2**20:,.3g} MiB of gradients a step as 1 message(s); in a ring"
    assert f"traffic    {sent} {2 * 63 / 64 * num_bytes / 2**20:,.3g} MiB out and in for each of 64" in ended.stdout
    assert "on each rank" in ended.stdout


def test_a_pretended_group_divides_what_fsdp_divides(make: Callable[..., Path]) -> None:
    config = make("pretended", **EXACT)
    words = ("--world-size", "4", "trainer.parallel=fsdp", "trainer.accumulate_steps=1")
    ended = called("train.py", "-c", config, "-d", "cpu", "--check", *words)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    first, last = 4 * (6 + 1) * 16, 4 * (16 + 1) * 4  # bytes; the last layer's 3 outputs are filled up to 4
    assert f"memory     weights {(first + last) // 4} B, gradients {(first + last) // 4} B" in ended.stdout
    assert (
        f"of at most {first / 2**20:.3g} MiB, {(first + last) / 2**20:,.3g} MiB of gradients added up" in ended.stdout
    )
    assert "model      MLP, " in ended.stdout and "loss       not told" in ended.stdout
    assert "warning" not in ended.stdout


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--world-size", "64"], "--world-size needs --check"),
        (["--check", "--world-size=0"], "argument --world-size: a number of 1 or more is needed, found '0'"),
        (["--check", "--world-size=-2"], "argument --world-size: a number of 1 or more is needed, found '-2'"),
        (["--check", "--world-size=two"], "argument --world-size: a number of 1 or more is needed, found 'two'"),
    ],
)
def test_a_pretended_group_needs_a_size(options: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        parse_training(["-c", "configs/digits.yaml", *options], None)


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}, "RANK is set and MASTER_ADDR, MASTER_PORT are not"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is set and RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT are not"),
        (
            {"RANK": "x", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"},
            "RANK must be a whole number, found 'x'",
        ),
    ],
)
def test_half_an_environment_is_refused(environment: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        check_environment(environment)


def test_a_rank_that_leaves_the_telling_to_another_is_not_said_to_have_told_no_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = {}
    for rank, (leave, code) in enumerate([(lambda: note(HEARD, "lost"), 7), (lambda: note_error("only here"), 1)]):
        place = tmp_path / "attempt_0" / str(rank) / "error.json"
        place.parent.mkdir(parents=True)
        monkeypatch.setenv(ERROR_FILE, str(place))
        leave()
        failures[rank] = ProcessFailure(local_rank=rank, pid=1, exitcode=code, error_file=str(place))
    failures[1].timestamp += 5  # rank 0 was seen to end first
    assert _exit_code(ChildFailedError("train.py", failures), tmp_path) == 1
    with pytest.raises(WorkerError, match="rank 0 ended with exit code 7 and told no reason"):
        (tmp_path / "attempt_0" / "0" / HEARD).unlink()
        _exit_code(ChildFailedError("train.py", failures), tmp_path)
