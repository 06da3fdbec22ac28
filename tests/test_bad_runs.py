"""Bad input that needs a trained run: damaged, hostile and foreign checkpoints, secrets, odd surroundings."""

from __future__ import annotations

import json
import os
import random
import re
import resource
import shutil
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from src.logger.run_dir import RunDir
from src.trainer.checkpoints.store import FORMAT, CheckpointStore, load_checkpoint
from src.utils.command import run_command
from src.utils.device import find_device
from src.utils.direct_file import file_checksum
from src.utils.errors import ConfigError
from src.utils.torch_version import check_torch
from tests.commands_kit import called
from tests.conftest import ROOT
from tests.test_bad_input import CASES, CATALOGUE, prepare
from tests.test_promises import DEFINED
from train import main

FORMATS = ROOT / "tests" / "formats"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a config with a run of two epochs, a checkpoint after each."""
    folder = tmp_path_factory.mktemp("trained")
    assert run_command(lambda: main([*prepare(folder, {}), "trainer.epochs=2", "-q"])) == 0
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of that run."""
    (found,) = (trained / "runs" / "small").iterdir()
    return Path(shutil.copytree(found, tmp_path / "run", symlinks=True))


Answer = tuple[int, str]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Answer]:
    """Function that runs `train.py` in this process: its exit code, and all it said."""

    def call(*words: object) -> Answer:
        given = [str(word) for word in words]
        monkeypatch.setattr(sys, "argv", ["train.py", *given])
        code = run_command(lambda: main(given))
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        if code:
            assert 1 <= len(said.err.splitlines()) <= 3, said.err
        return code, said.out + said.err

    return call


def test_each_of_the_111_rows_of_bad_input_has_a_case() -> None:
    elsewhere: dict[str, list[str]] = CATALOGUE["elsewhere"]
    covered = {int(found[1]) for name in [*CASES, *elsewhere] if (found := re.match(r"B(\d+)", name))}
    assert sorted(set(range(1, 112)) - covered) == []
    assert [name for names in elsewhere.values() for name in names if name not in DEFINED] == []


# --- damage ------------------------------------------------------------------------------------------------------


def with_zeros(data: bytes) -> bytes:
    return data[:1024] + bytes(4096) + data[5120:]


DAMAGES: dict[str, Callable[[bytes, bytes], bytes]] = {
    "B74 empty": lambda data, older: b"",
    "B75 cut": lambda data, older: data[: len(data) // 2],
    "B76 bit": lambda data, older: data[:700] + bytes([data[700] ^ 4]) + data[701:],
    "B77 zeros": lambda data, older: with_zeros(data),
    "B78 longer": lambda data, older: data + b"x",
    "B80 of another step": lambda data, older: older,
}


@pytest.mark.parametrize("case", DAMAGES)
def test_a_damaged_newest_checkpoint_is_passed_over_and_a_lone_one_refused(
    case: str, run: Path, command: Callable[..., Answer]
) -> None:
    older, newest = sorted(run.glob("checkpoints/step-*.pt"))
    newest.write_bytes(DAMAGES[case](newest.read_bytes(), older.read_bytes()))
    code, said = command("-r", run)
    assert code == 0 and f"skipped a checkpoint: {newest}" in said and "epoch 2/2" in said
    for path in run.glob("checkpoints/step-*.pt"):
        path.write_bytes(DAMAGES[case](path.read_bytes(), b"x" * path.stat().st_size))
    code, said = command("-r", run)
    assert code == 4 and newest.name in said and older.name in said
    assert said.count(newest.name) == 1, "what is told of each file is told once"


@pytest.mark.full
@pytest.mark.parametrize(("kind", "count"), [("cut", 200), ("bit", 1000), ("zeros", 200)])
def test_any_damage_is_noticed_wherever_it_is(kind: str, count: int, run: Path) -> None:
    older, newest = sorted(run.glob("checkpoints/step-*.pt"))
    store, whole, draw = CheckpointStore(newest.parent), newest.read_bytes(), random.Random(0)
    first = load_checkpoint(older)["progress"]["step"]
    for _ in range(count):
        data, place = bytearray(whole), draw.randrange(len(whole))
        if kind == "cut":
            del data[place:]
        elif kind == "bit":
            data[place] ^= 1 << draw.randrange(8)
        else:
            data[place : place + 4096] = bytes(len(data[place : place + 4096]))
        newest.write_bytes(data)
        if data != whole:
            assert store.newest()[1]["progress"]["step"] == first


# --- of another run, another program, or somebody else -------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [["train.py"], ["test.py"], ["predict.py", "--input", "-"], ["export.py", "--weights-only"]],
    ids=lambda each: each[0],
)
def test_all_mistakes_in_what_is_changed_of_a_run_are_told_together(words: list[str], run: Path) -> None:
    changes = ["model.args.hiden=[5]", "traner.epochs=3"]
    answer = called(*words, "-r", run, *changes)
    assert answer.returncode == 2
    assert re.search(r"#1 model.args.hiden: unknown argument; did you mean `hidden`", answer.stderr)
    assert re.search(r"#2 traner: unknown key; did you mean `trainer`", answer.stderr)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["model.args.hidden=[5]"], r"model.args.hidden: .4. -> .5.: the weights are of another model"),
        (["model.args.hidden=[5]", "--allow-change", "model"], r"of another model, 3 differences: layers.1.weight is"),
        (["optimizer=AdamW"], r"optimizer.type: .SGD. -> .AdamW.*rates and moments"),
        (["optimizer=AdamW", "--allow-change", "optimizer"], r"optimizer.* is of SGD there, AdamW here"),
        (["lr_scheduler={type: StepLR, args: {step_size: 1}}"], r"lr_scheduler"),
    ],
)
def test_a_run_goes_on_with_no_other_model_optimizer_or_schedule(
    words: list[str], told: str, run: Path, command: Callable[..., Answer]
) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*.pt")}
    code, said = command("-r", run, "trainer.epochs=3", *words)
    assert code == 4 and re.search(told, said), said
    assert {path: path.read_bytes() for path in run.rglob("*.pt")} == before


@pytest.mark.parametrize("words", [["optimizer=AdamW"], ["lr_scheduler={type: StepLR, args: {step_size: 1}}"]])
def test_no_way_is_shown_that_leads_nowhere(words: list[str], run: Path, command: Callable[..., Answer]) -> None:
    code, said = command("-r", run, "trainer.epochs=3", *words)
    assert code == 4 and "trainer.init_from" in said and "--allow-change" not in said
    assert (
        command("-r", run, "trainer.epochs=3", *words, "--allow-change", "optimizer", "--allow-change", "lr_scheduler")[
            0
        ]
        == 4
    )
    code, said = command("-r", run, "trainer.epochs=3", "optimizer.args.lr=0.01")
    assert code == 4 and "--allow-change optimizer.args.lr" in said
    assert (
        command("-r", run, "trainer.epochs=3", "optimizer.args.lr=0.01", "--allow-change", "optimizer.args.lr")[0] == 0
    )


def packed(path: Path, content: Any) -> None:
    torch.save(content, path.with_suffix(".tmp"))
    with zipfile.ZipFile(path.with_suffix(".tmp")) as whole, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as small:
        for record in whole.infolist():
            small.writestr(record.filename, whole.read(record))


def good_state(**changes: Any) -> dict[str, Any]:
    return {"format": FORMAT, "model": {}, "config": {}, "progress": {"step": 1}, **changes}


STRANGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "B81 text": (lambda path: path.write_text("hello"), "is not a checkpoint"),
    "B81 archive": (lambda path: zipfile.ZipFile(path, "w").close(), "is not a checkpoint"),
    "B85 newer": (lambda path: torch.save(good_state(format=99), path), r"made by a newer version \(format 99"),
    "B88 bomb": (lambda path: packed(path, good_state(model={"w": torch.zeros(10**6)})), "holds packed records"),
    "B89 huge": (
        lambda path: torch.save(good_state(model={"w": torch.zeros(1).expand(10**6, 10**6)}), path),
        "shows 4000000000000 bytes and holds 4",
    ),
    "B90 keys": (
        lambda path: torch.save(good_state(model={f"k{number}": 0 for number in range(100_000)}), path),
        "",
    ),
    "B91 pipe": (lambda path: os.mkfifo(path), "no such run|not a plain file"),
    "B91 folder": (lambda path: path.mkdir(), "holds no checkpoint yet"),
}


@pytest.mark.parametrize("case", STRANGE)
def test_hostile_and_strange_checkpoints_end_with_4(
    case: str, run: Path, tmp_path: Path, command: Callable[..., Answer]
) -> None:
    make, told = STRANGE[case]
    make(tmp_path / "strange.pt")
    if case.startswith("B90"):
        state = load_checkpoint(next(run.glob("checkpoints/step-*.pt")))
        state["model"] = dict.fromkeys((f"key{number}" for number in range(100_000)), torch.zeros(()))
        torch.save(state, tmp_path / "strange.pt")
        told = r"100004 differences: (.*; ){5}"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    code, said = command("-r", tmp_path / "strange.pt", "trainer.epochs=3")
    assert code == 4 and re.search(told, said), said
    assert len(said) < 1500
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 300 * 1024, "KiB"


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        (("model", "layers.3.bias"), "x", "layers.3.bias is no tensor there"),
        (("model",), [], "its model is a list"),
        (("optimizer", "state"), "x", "optimizer does not fit this run"),
        (
            ("optimizer", "state", "param_groups", 0, "weight_decay"),
            [],
            "optimizer does not fit this run: state.param_groups[0].weight_decay is a list, a number is needed",
        ),
        (("progress", "step"), -3, "progress.step is -3, a count is needed"),
        (("progress", "step"), "3", "progress.step is '3', a count is needed"),
        (("lr_scheduler",), torch.zeros(0), "lr_scheduler does not fit this run"),
        (("data",), torch.zeros(2, 3), "its data is a Tensor"),
        (("data",), {"inputs": 1}, "what training learned of the data is damaged in the checkpoint"),
        (("parts",), "../../x", "its parts is a str"),
        (("rng", "python"), torch.tensor(0), "rng does not fit this run"),
        (("config",), None, "its config is a NoneType"),
        (("meters", "scalars"), 1.5, "meters does not fit this run"),
    ],
)
def test_a_checkpoint_with_something_else_in_a_place_is_refused(
    place: tuple[Any, ...],
    value: Any,
    told: str,
    trained: Path,
    run: Path,
    tmp_path: Path,
    command: Callable[..., Answer],
) -> None:
    state = load_checkpoint(run / "checkpoints" / "last.pt")
    inside = state
    for key in place[:-1]:
        inside = inside[key]
    inside[place[-1]] = value
    torch.save(state, tmp_path / "strange.pt")
    words = ["-c", trained / "x.yaml", f"trainer.save_dir={trained / 'runs'}", "trainer.epochs=3"]
    code, said = command(*words, "-r", tmp_path / "strange.pt")
    assert code == 4 and told in said, said


@pytest.mark.parametrize("name", ["log.txt", "metrics.csv", "checkpoints/step-00000099.pt", "config.yaml"])
def test_a_link_in_a_run_that_leads_out_of_it_is_refused(
    name: str, run: Path, tmp_path: Path, command: Callable[..., Answer]
) -> None:
    outside = tmp_path / "outside"
    outside.write_text("mine")
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(outside)
    code, said = command("-r", run, "trainer.epochs=3")
    assert code == 4 and "is a link that leads out of the run" in said
    assert outside.read_text() == "mine"


def test_a_link_within_a_run_and_a_link_to_a_run_are_fine(
    run: Path, tmp_path: Path, command: Callable[..., Answer]
) -> None:
    (run / "newest").symlink_to("checkpoints")
    (tmp_path / "shortcut").symlink_to(run)
    assert command("-r", tmp_path / "shortcut", "trainer.epochs=3")[0] == 0


def test_a_checkpoint_that_others_may_change_is_read_with_a_warning(run: Path, command: Callable[..., Answer]) -> None:
    assert "chmod" not in command("-r", run)[1]
    (run / "checkpoints").chmod(0o777)
    code, said = command("-r", run)
    assert code == 0 and "can be changed by every user of this machine: chmod o-w" in said
    (run / "checkpoints").chmod(0o755)
    newest = max(run.glob("checkpoints/step-*.pt"))
    newest.chmod(0o666)
    assert f"{newest} can be changed by every user" in command("-r", run, "trainer.epochs=3")[1]


def test_a_run_that_is_in_use_is_not_gone_on_with(run: Path, command: Callable[..., Answer]) -> None:
    held = RunDir.open(run)
    try:
        code, said = command("-r", run, "trainer.epochs=3")
    finally:
        held.close()
    assert code == 2 and f"is in use by pid {os.getpid()}" in said


@pytest.mark.parametrize("number", range(1, FORMAT + 1))
def test_a_checkpoint_of_every_format_is_still_read(number: int) -> None:
    state = load_checkpoint(FORMATS / f"format{number}.pt")
    assert state["format"] == number and state["progress"]["step"] == 4
    assert set(state["model"]) == {"layers.1.weight", "layers.1.bias", "layers.3.weight", "layers.3.bias"}


@pytest.mark.parametrize("number", range(1, FORMAT + 1))
def test_a_run_of_every_format_goes_on_as_if_it_had_been_saved_today(
    number: int, trained: Path, tmp_path: Path, command: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is of a run of the config `small`, two epochs, made when the format was new."""
    prepare(tmp_path, {})
    monkeypatch.chdir(tmp_path)  # it says `data.csv`
    folder = tmp_path / "old" / "checkpoints"
    folder.mkdir(parents=True)
    path = Path(shutil.copy(FORMATS / f"format{number}.pt", folder / "step-00000004.pt"))
    manifest = {
        "format": number,
        "step": 4,
        "bytes": path.stat().st_size,
        "crc32": file_checksum(path),
        "is_best": False,
    }
    path.with_suffix(".json").write_text(json.dumps(manifest))
    again = CheckpointStore(tmp_path / "new" / "checkpoints")
    again.folder.mkdir(parents=True)
    again.save(load_checkpoint(next(trained.glob("runs/small/*/checkpoints/last.pt"))), 4, False)
    words = [f"data.args.file={tmp_path / 'data.csv'}", "trainer.epochs=4"]
    ended = {}
    for name in ("old", "new"):
        code, said = command("-r", tmp_path / name, *words)
        assert code == 0 and "going on after step 4" in said and "epoch 4/4" in said
        ended[name] = load_checkpoint(tmp_path / name / "checkpoints" / "last.pt")
    assert ended["old"].keys() == ended["new"].keys() and ended["old"]["progress"] == ended["new"]["progress"]
    assert ended["old"]["monitor"].keys() == ended["new"]["monitor"].keys()
    for name, weight in ended["new"]["model"].items():
        torch.testing.assert_close(ended["old"]["model"][name], weight, atol=1e-4, rtol=0)  # it was another machine


# --- surroundings ------------------------------------------------------------------------------------------------


def test_what_is_odd_and_no_mistake_is_told_and_trained(tmp_path: Path, command: Callable[..., Answer]) -> None:
    rows = "age,size,label\n" + "1,2,0\n1,2,0\n3,4,0\n3,4,0\n" * 2
    code, said = command(*prepare(tmp_path, {"files": {"data.csv": rows}}))
    assert code == 0
    assert "all labels of train are 0" in said, "B62"
    assert "val: 2 of 2 rows have the same inputs as rows of train" in said, "B68"


def test_a_gpu_that_is_not_there_is_refused_with_how_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match=r"trainer.device: cuda:7: found 1 GPU\(s\), numbered from 0"):
        find_device("cuda:7")


def test_logging_to_tensorboard_that_is_not_installed_is_refused_before_the_run(
    tmp_path: Path, command: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("src.logger.tensorboard.find_spec", lambda name: None)
    words = prepare(tmp_path, {})
    code, said = command(*words)
    assert code == 2 and "pip install tensorboard`, or set logger.tensorboard=false" in said
    assert not (tmp_path / "runs").exists()
    assert command(*words, "logger.tensorboard=false")[0] == 0


def test_a_torch_that_is_too_old_is_refused() -> None:
    for version in ("2.9.1", "1.13.0+cu117", "2.9.0a0"):
        with pytest.raises(ConfigError, match=r"2.10 or newer is needed to read checkpoints safely; pip install"):
            check_torch(version)
    for version in ("2.10.0", "2.13.0+cpu", "3.0.0.dev20270101"):
        check_torch(version)


def test_a_bare_environment_and_an_odd_folder_are_no_obstacle(tmp_path: Path) -> None:
    folder = tmp_path / "mit Leerzeichen und ü"
    folder.mkdir()
    words = [str(ROOT / "train.py"), *prepare(folder, {})]
    surroundings = {"PATH": os.environ["PATH"], "LC_ALL": "C", "TZ": "Nowhere/Odd", "HOME": "/proc/none"}
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=surroundings, umask=0o077, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (made,) = (folder / "runs" / "small").iterdir()
    assert (made / "checkpoints" / "last.pt").stat().st_mode & 0o077 == 0


SINK = """
from src.logger.sink import Sink
class Tracker(Sink):
    def __init__(self, api_key="", address="", password="", cls_token="", key=""):
        if api_key == "***":
            raise RuntimeError("started with a masked key")
"""
PLANTED = [f"PLANTED{number}" for number in range(12)]


def secret_words(folder: Path) -> list[str]:
    hidden = PLANTED
    address = f"https://me:{hidden[1]}@host/x?token={hidden[2]}&a=1&api_key={hidden[3]}"
    words = prepare(folder, {"files": {"tracker.py": SINK}})
    sink = f"{{type: tracker.Tracker, args: {{api_key: {hidden[0]}, address: '{address}', cls_token: '[CLS]'}}}}"
    return [*words, f"logger.sinks=[{sink}]", f"logger.sinks.0.args.password={hidden[4]}"]


def planted_in(folder: Path) -> dict[str, list[str]]:
    """Which planted values are in which file; checkpoints store their records as they are."""
    held = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    found = {path.name: [each for each in PLANTED if each.encode() in data] for path, data in held.items()}
    return {name: each for name, each in found.items() if each}


def test_no_secret_is_in_any_file_of_a_run(tmp_path: Path, command: Callable[..., Answer]) -> None:
    code, said = command(*secret_words(tmp_path), "optimizer.args.lr=1e30", "trainer.epochs=3")
    assert code == 6
    (made,) = (tmp_path / "runs" / "small").iterdir()
    assert list(made.glob("failure-*.pt"))
    assert planted_in(made) == {} and not [each for each in PLANTED if each in said]
    sink = yaml.safe_load((made / "config.yaml").read_text())["logger"]["sinks"][0]["args"]
    assert sink["address"] == "https://***@host/x?token=***&a=1&api_key=***"
    assert (sink["api_key"], sink["cls_token"]) == ("***", "[CLS]")


def test_a_run_with_a_secret_goes_on_when_it_is_given_again_or_stands_in_the_environment(
    tmp_path: Path, command: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = secret_words(tmp_path)
    assert command(*words)[0] == 0
    (made,) = (tmp_path / "runs" / "small").iterdir()
    assert list(made.glob("events/*/*")) and planted_in(made) == {}
    trusted = ("--trust", f"{tmp_path}/")
    code, said = command("-r", made, "trainer.epochs=2", *trusted)
    assert code == 2 and "`api_key` holds a secret, which runs do not keep; give it again" in said
    assert command(*words, "-r", made, "trainer.epochs=2")[0] == 0
    monkeypatch.setenv("KEEL_TEST_KEY", PLANTED[5])
    sink = "[{type: tracker.Tracker, args: {api_key: '${env:KEEL_TEST_KEY}'}}]"
    assert command("-r", made, "trainer.epochs=3", f"logger.sinks={sink}", *trusted)[0] == 0
    assert command("-r", made, "trainer.epochs=4", *trusted)[0] == 0
    assert planted_in(made) == {}


def limited(words: list[str], limits: dict[int, int], prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run a command with less of something than it needs."""

    def set_limits() -> None:
        for kind, value in limits.items():
            resource.setrlimit(kind, (value, value))

    return subprocess.run(
        [*prefix, sys.executable, "train.py", *words],
        cwd=ROOT, preexec_fn=set_limits, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


@pytest.mark.full
def test_too_few_open_files_are_told_with_the_remedy(tmp_path: Path) -> None:
    done = limited([*prepare(tmp_path, {}), "loader.num_workers=2"], {resource.RLIMIT_NOFILE: 16})
    assert done.returncode == 5, done.stderr
    assert done.stderr.startswith("error: system: too many open files; raise `ulimit -n`")


@pytest.mark.full
def test_a_port_that_is_in_use_is_told_with_the_remedy(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(server.getsockname()[1])}
        rank = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}
        done = subprocess.run(
            [sys.executable, "train.py", *prepare(tmp_path, {})],
            cwd=ROOT, env={**os.environ, **address, **rank}, capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
    assert done.returncode == 7, done.stderr
    assert re.search(r"127.0.0.1:\d+ is in use; choose another", done.stderr) and "Traceback" not in done.stderr


LARGE = """
import torch
from torch.utils.data import Dataset
class Large(Dataset):
    def __len__(self):
        return 64
    def __getitem__(self, row):
        return torch.zeros(2_000_000)[:2].clone() if row < 0 else torch.zeros(400_000), 1
"""


@pytest.mark.full
def test_shared_memory_that_is_full_is_told_with_the_remedy(tmp_path: Path) -> None:
    mount = "mount -t tmpfs -o size=1m tmpfs /dev/shm"
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-m", "sh", "-c", mount], check=False).returncode:
        pytest.skip("a file system of its own for shared memory is not allowed here")
    words = prepare(tmp_path, {"files": {"large.py": LARGE}})
    words += ["data=large.Large", "data.split=null", "model.args.in_features=400000", "loader.num_workers=1"]
    done = limited(words, {}, ("unshare", "-m", "sh", "-c", f'{mount}; exec "$@"', "sh"))
    assert done.returncode == 7, done.stderr
    assert "shared memory" in done.stderr and "Traceback" not in done.stderr
