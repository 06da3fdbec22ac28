"""What somebody else's file may not do: run code, leave the run's folder, choose classes, or exhaust the machine."""

from __future__ import annotations

import ast
import builtins
import os
import re
import socket
import stat
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from src.trainer.checkpoints.resume import load_weights, open_checkpoint
from src.trainer.checkpoints.store import CheckpointStore, load_checkpoint
from src.utils.command import run_command
from src.utils.errors import CheckpointError
from src.utils.paths import PROJECT_ROOT
from tests.conftest import product_files
from tests.trainer_kit import make_trainer
from train import main


class Payload:
    """Makes a marker file when it is unpickled by a careless loader."""

    def __init__(self, marker: Path, call: Any = builtins.open) -> None:
        self.marker, self.call = marker, call

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call, (str(self.marker), "w") if self.call is builtins.open else (f"touch {self.marker}",)


PLACES = {
    "as the whole": lambda evil: evil,
    "as the weights": lambda evil: {"format": 1, "model": evil},
    "as one weight": lambda evil: {"format": 1, "model": {"weight": evil}},
    "as a key": lambda evil: {"format": 1, "model": {}, "hook": [({"deep": (evil,)},)]},
    "beside the weights": lambda evil: {"format": 1, "model": {"weight": torch.zeros(1)}, "config": {"a": evil}},
    "as the random state": lambda evil: {"format": 1, "model": {}, "rng": {"numpy": evil}},
}


@pytest.mark.parametrize("is_legacy", [False, True])
@pytest.mark.parametrize("place", PLACES)
def test_twelve_checkpoints_with_code_in_them_are_refused_and_the_code_does_not_run(
    place: str, is_legacy: bool, tmp_path: Path
) -> None:
    marker, path = tmp_path / "marker", tmp_path / "evil.pt"
    evil = Payload(marker, os.system if is_legacy else builtins.open)
    torch.save(PLACES[place](evil), path, _use_new_zipfile_serialization=not is_legacy)
    with pytest.raises(CheckpointError):
        open_checkpoint(path)
    assert run_command(lambda: main(["-r", str(path)])) == 4
    assert not marker.exists()


def test_objects_of_numpy_and_torchscript_are_refused(tmp_path: Path) -> None:
    torch.save({"format": 1, "model": {"a": np.array([object()])}}, tmp_path / "numpy.pt")
    with zipped(tmp_path / "script.pt") as archive:
        archive.writestr("script/code/__torch__.py", "import os")
        archive.writestr("script/data.pkl", b"cos\nsystem\n(S'touch marker'\ntR.")
    for path in tmp_path.glob("*.pt"):
        with pytest.raises(CheckpointError):
            load_checkpoint(path)


def zipped(path: Path) -> Any:
    import zipfile

    return zipfile.ZipFile(path, "w", zipfile.ZIP_STORED)


def test_a_tensor_that_claims_to_be_huge_is_refused_and_nothing_is_allocated(tmp_path: Path) -> None:
    huge = torch.as_strided(torch.zeros(1), (10**6, 10**6), (0, 0))
    torch.save({"format": 1, "model": {"weight": huge, "bias": torch.zeros(2)}}, tmp_path / "huge.pt")
    with pytest.raises(
        CheckpointError, match=r"huge.pt: refused, model.weight: .* shows 4000000000000 bytes and holds 4"
    ):
        load_checkpoint(tmp_path / "huge.pt")


def test_a_million_keys_are_refused_with_five_of_them_shown() -> None:
    weights = {f"key{number}": torch.zeros(()) for number in range(100_000)}
    with pytest.raises(CheckpointError, match="differences") as caught:
        load_weights(nn.Linear(3, 2), weights, "here")
    assert len(str(caught.value)) < 1000


def test_text_in_a_checkpoint_chooses_no_class(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, epochs=1)
    trainer.fit()
    state = open_checkpoint(tmp_path)[1]
    for key in ("_target_", "_instantiator", "type", "class_path"):
        state[key] = "os.system"
        state["progress"] = {**state["progress"], "step": 7}
    other = make_trainer(epochs=1)
    other.load_state_dict(state)
    assert type(other.model) is type(trainer.model)


def test_a_config_inside_a_checkpoint_names_classes_under_the_same_rules(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {"name": "x", "data": {"type": "digits.Digits"}, "model": {"type": "os.system", "args": {}}}
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    CheckpointStore(folder).save({"format": 1, "model": {}, "config": config, "config_folder": "/"}, 1, is_best=False)
    assert run_command(lambda: main(["-r", str(tmp_path / "run")])) == 2
    assert "os.system" in capsys.readouterr().err


def test_every_file_of_a_run_keeps_to_the_umask_and_is_never_writable_by_all(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        trainer = make_trainer(tmp_path / "run", epochs=1)
        trainer.fit()
        trainer.logger.close()
    finally:
        os.umask(before)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "run").rglob("*")}
    assert modes and not [path for path, mode in modes.items() if mode & 0o077]


def small_words(folder: Path) -> list[str]:
    return ["-c", "configs/line.yaml", f"trainer.save_dir={folder / 'runs'}", "trainer.epochs=2", "-q"]


def test_nothing_that_a_command_makes_can_be_changed_by_all_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        assert run_command(lambda: main(small_words(tmp_path))) == 0
    finally:
        os.umask(before)
    made = list((tmp_path / "runs").rglob("*"))
    assert len(made) > 5 and not [path for path in made if path.stat().st_mode & stat.S_IWOTH]


def test_training_connects_to_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: socket.socket, address: object) -> None:
        raise AssertionError(f"connects to {address}")

    def refuse_name(*words: object, **named: object) -> None:
        raise AssertionError(f"looks up {words}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse_name)
    assert run_command(lambda: main(small_words(tmp_path))) == 0


@pytest.mark.full
def test_training_needs_no_network_at_all(tmp_path: Path) -> None:
    if subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False).returncode:
        pytest.skip("a network of its own is not allowed here")
    command = ["unshare", "-n", sys.executable, "train.py", *small_words(tmp_path), "loader.num_workers=1"]
    done = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_core_needs_few_packages_and_each_is_pinned() -> None:
    project = tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text())["project"]
    names = [re.split(r"[<>=\[ ]", line)[0] for line in project["dependencies"]]
    assert len(names) <= 8, "the six of the users, numpy, one more"
    extras = [line for lines in project["optional-dependencies"].values() for line in lines if "keel[" not in line]
    pinned = {line.partition("==")[0].lower() for line in (PROJECT_ROOT / "constraints.txt").read_text().splitlines()}
    assert [name for name in names if name.lower() not in pinned] == []
    assert all(re.search(r">=\d", line) for line in [*project["dependencies"], *extras])


def test_sharded_checkpoints_are_not_read_by_what_unpickles_their_index() -> None:
    """torch.distributed.checkpoint unpickles a file `.metadata` when it loads; it may write, and gather states."""
    readers = re.compile(r"state_dict_loader|FileSystemReader|load_state_dict_from_keys|_load_state_dict|dcp\.load\b")
    found = [
        f"{path.name}:{number} {line.strip()}"
        for path in product_files()
        if path.suffix == ".py" and "tests" not in path.parts
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if ("import" in line and "torch.distributed.checkpoint" in line and readers.search(line))
        or re.search(r"\bdcp\.load\(|FileSystemReader\(", line)
    ]
    assert found == []


@pytest.mark.full
def test_bandit_finds_nothing() -> None:
    pytest.importorskip("bandit")
    command = [sys.executable, "-m", "bandit", "-q", "-r", ".", "-c", "pyproject.toml"]
    done = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_a_checkpoint_behind_a_pipe_or_a_folder_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pt")
    (tmp_path / "folder.pt").mkdir()
    for name in ("pipe.pt", "folder.pt"):
        with pytest.raises(CheckpointError):
            open_checkpoint(tmp_path / name)


def test_nothing_opens_a_server() -> None:
    servers = {"listen", "create_server", "start_server", "HTTPServer", "TCPServer", "serve_forever"}
    found = [
        f"{path.name}:{node.lineno} {node.func.attr}"
        for path in product_files()
        if path.suffix == ".py" and "tests" not in path.parts
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in servers
    ]
    assert found == []


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="reads the sockets from /proc")
def test_no_socket_listens_while_training_with_workers(tmp_path: Path) -> None:
    command = [sys.executable, "train.py", "-c", "configs/line.yaml", f"trainer.save_dir={tmp_path}"]
    options = ["loader.num_workers=1", "trainer.epochs=100000"]
    with subprocess.Popen([*command, *options], cwd=PROJECT_ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while "epoch" not in process.stdout.readline() and process.poll() is None:
            time.sleep(0.01)
        open_files = {str(fd.readlink()) for fd in Path(f"/proc/{process.pid}/fd").iterdir() if fd.is_symlink()}
        listening = [
            line.split()[9]
            for table in ("tcp", "tcp6")
            for line in Path("/proc/net", table).read_text().splitlines()[1:]
            if line.split()[3] == "0A"
        ]
        process.kill()
    assert any(name.startswith("/") for name in open_files)
    assert not [inode for inode in listening if f"socket:[{inode}]" in open_files]
