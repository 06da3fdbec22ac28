"""Laws of the run folder: nobody shares one, nothing leaves it, nothing secret is in it."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from src.logger.run_dir import RunDir
from src.utils.errors import ConfigError
from src.utils.whole_file import write_file
from tests.conftest import ROOT

HOLD = """
import sys, time
from pathlib import Path
from typing import Any
from src.logger.run_dir import RunDir
run = RunDir.open(Path(sys.argv[1]))
print("locked", flush=True)
time.sleep(60)
"""
MAKE_25 = """
import sys
from pathlib import Path
from src.logger.run_dir import RunDir
for _ in range(25):
    print(RunDir.create(Path(sys.argv[1]), "x").path)
"""
HOLD_WITH_WORKER = """
import os, sys, time
from pathlib import Path
from typing import Any
from src.logger.run_dir import RunDir
run = RunDir.open(Path(sys.argv[1]))
if os.fork():
    time.sleep(60)
print("locked", flush=True)
time.sleep(3)
"""


def test_100_starts_in_the_same_seconds_get_100_folders(tmp_path: Path) -> None:
    command = [sys.executable, "-c", MAKE_25, str(tmp_path)]
    several = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    paths = [path for each in several for path in each.communicate()[0].splitlines()]
    assert len(set(paths)) == 100 == len(list((tmp_path / "x").iterdir()))
    assert all(re.fullmatch(r"\d{4}_\d{6}(-\d+)?", Path(path).name) for path in paths)


def hold(path: Path, program: str = HOLD) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", program, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    return process


def test_a_second_process_is_told_the_pid_of_the_first_and_a_dead_ones_lock_is_taken_over(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path, "x")
    run.close()
    other = hold(run.path)
    try:
        with pytest.raises(ConfigError, match=rf"is in use by pid {other.pid}"):
            RunDir.open(run.path)
    finally:
        other.kill()
        other.wait()
    RunDir.open(run.path).close()


def test_a_worker_that_outlives_a_killed_run_does_not_hold_its_lock(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path, "x")
    run.close()
    # The forked child says "locked" and lives on for three seconds after the parent is killed.
    other = hold(run.path, HOLD_WITH_WORKER)
    other.kill()
    other.wait()
    RunDir.open(run.path).close()


@pytest.mark.parametrize(
    "name",
    ["../../x", "/etc/x", "a\0b", "x" * 65, "CON", "con.txt", "lpt1", "", "-rf", ".hidden", "a b", "a\nb", "ü", "x.",
     "..", ".", "a/b", "a\\b", "~", "$HOME", "a;b", "*", "a\x1b[2J", "..\\..\\x",
     "a:b", "x/..", "%2e%2e", "\u202ex", "aux.tar.gz", " x", "a\tb", "x\u2044y", "~root"],
)  # fmt: skip
def test_no_name_leads_out_of_save_dir(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="1 to 64 letters"):
        RunDir.create(tmp_path / "runs", name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["digits", "a", "_x", "lenet-5_v1.2", "0", "x" * 64, "console"])
def test_ordinary_names_are_taken(name: str, tmp_path: Path) -> None:
    run = RunDir.create(tmp_path, name)
    run.close()
    assert run.path.parent == tmp_path / name and run.path.is_dir()


def test_a_link_out_of_save_dir_is_refused(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "runs" / "x").symlink_to(tmp_path / "outside")
    with pytest.raises(ConfigError, match="is a link that leads out"):
        RunDir.create(tmp_path / "runs", "x")
    assert not list((tmp_path / "outside").iterdir())


def test_a_save_dir_that_is_a_file_or_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="/file is a file"):
        RunDir.create(tmp_path / "file", "x")
    with pytest.raises(ConfigError, match=r"/proc/runs can't be written"):
        RunDir.create(Path("/proc/runs"), "x")


@pytest.mark.parametrize(("umask", "mode"), [(0o077, 0o600), (0o022, 0o644), (0o000, 0o666)])
def test_files_keep_to_the_umask(umask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        run = RunDir.create(tmp_path, "x")
        run.write_config({"a": 1})
        run.write_environment(["train.py"], seed=0)
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in run.path.iterdir() if path.is_file()} == {mode}


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_file(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_file(path, "new\ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


SECRETS = {
    "api_key": "S1",
    "password": "S2",
    "db": {"passwd": "S3", "secret": ["S4"]},
    "hf_token": "S5",
    "apikey": "S6",
}
INNOCENT = {"cls_token": "I1", "num_tokens": 5, "tokens": "I2", "key": "I3", "keyboard": "I4", "use_token": True}


def test_secrets_are_in_no_file_and_innocent_keys_are_untouched(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path, "x")
    config = {**SECRETS, **INNOCENT, "url": "https://me:S7@host/x?a=1", "plain_url": "https://host:80/x@y"}
    run.write_config(config)
    run.write_environment(["train.py", "-c", "x.yaml", "a.api_key=S8", "--token", "S9", "u=http://me:S10@h"], seed=0)
    written = "".join(path.read_text() for path in run.path.rglob("*") if path.is_file())
    assert not re.findall(r"\bS\d+\b", written)
    loaded = yaml.safe_load((run.path / "config.yaml").read_text())
    assert {key: loaded[key] for key in INNOCENT} == INNOCENT
    assert loaded["plain_url"] == config["plain_url"]
    assert loaded["url"] == "https://***@host/x?a=1"


def test_the_environment_says_what_the_run_ran_on_and_keeps_each_start(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path, "x")
    run.write_environment(["train.py", "-c", "x.yaml"], seed=3, threads=2)
    run.write_environment(["train.py", "-r", "x"], seed=3, threads=1)
    found = json.loads((run.path / "environment.json").read_text())
    assert found["command"] == ["train.py", "-c", "x.yaml"]
    assert (found["seed"], found["threads"]) == (3, 2)
    assert found["versions"]["torch"].startswith("2.")
    assert found["git"] is None or set(found["git"]) == {"commit", "dirty"}
    assert [start["command"][1] for start in found["resumed"]] == ["-r"]


def test_a_new_run_looks_at_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that it starts as fast beside 10,000 runs as beside one."""
    RunDir.create(tmp_path, "x").close()
    looked_at: list[Path] = []

    def watched(look: Any) -> Any:
        def look_at(folder: Any = ".") -> Any:
            looked_at.append(Path(folder))
            return look(folder)

        return look_at

    monkeypatch.setattr(os, "scandir", watched(os.scandir))
    monkeypatch.setattr(os, "listdir", watched(os.listdir))
    run = RunDir.create(tmp_path, "x")
    run.close()
    assert set(looked_at) <= {run.path}
    os.scandir(tmp_path).close()
    assert looked_at[-1] == tmp_path  # that would have been seen
