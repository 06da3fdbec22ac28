"""What docs/distributed.md shows works: its commands train, its config is one, its batch script is one."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from src.config.load import config_from_dict, load_config
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "distributed.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return [text.replace("\\\n", " ") for text in re.findall(rf"```{language}\n(.*?)```", PAGE, re.S)]


@pytest.mark.full
@pytest.mark.parametrize("text", blocks("sh"))
def test_every_command_trains(text: str, tmp_path: Path) -> None:
    for line in text.strip().splitlines():
        words = shlex.split(line)
        python = [sys.executable, *(["-m", "torch.distributed.run"] if words[0] == "torchrun" else [])]
        command = [*python, *words[1:], f"trainer.save_dir={tmp_path}"]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=150)
        assert ended.returncode == 0, ended.stdout + ended.stderr
    if "--check" not in text:
        (run,) = (tmp_path / "digits").iterdir()
        assert (run / "checkpoints" / "last.pt").exists()


def test_the_configs_are_such() -> None:
    base = load_config(ROOT / "configs" / "digits.yaml").as_dict()
    sharded, settings = (config_from_dict({**base, **yaml.safe_load(text)}).trainer for text in blocks("yaml"))
    assert sharded.parallel_settings.shard == ("blocks.*",)
    assert settings.parallel_settings.max_restarts == 3


def test_the_settings_for_a_model_that_does_not_fit_train_one(tmp_path: Path) -> None:
    model = {"type": "mlp.MLP", "args": {"in_features": 64, "hidden": [16], "out_features": 10}}
    settings = yaml.safe_load(blocks("yaml")[0].replace("blocks.*", "layers.*"))
    settings["trainer"] |= {"epochs": 1, "device": "cpu,cpu", "save_dir": str(tmp_path)}
    config = {"base": str(ROOT / "configs" / "digits.yaml"), "model": model, "lr_scheduler": None, **settings}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "train.py", "-c", str(tmp_path / "x.yaml")]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=150)
    assert ended.returncode == 0 and "epoch 1/1" in ended.stdout, ended.stdout + ended.stderr


def test_the_batch_script_is_one_and_its_command_is_understood() -> None:
    (text,) = re.findall(r"```slurm\n(.*?)```", PAGE, re.S)
    assert subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True).stderr == ""
    assert "--requeue" in text and "-r auto" in text and "--max-restarts" in text


FAKES = {
    "scontrol": '#!/bin/sh\nif [ "$1" = show ]; then echo localhost; else echo "$@" >> "$FAKE/requeued"; fi\n',
    "srun": '#!/bin/sh\necho $$ > "$FAKE/step"\nexec "$@"\n',
    "scancel": '#!/bin/sh\n[ "$1" = --signal=TERM ] && kill -TERM "$(cat "$FAKE/step")"\n',
    "torchrun": f'#!/bin/sh\nexec "{sys.executable}" -m torch.distributed.run "$@"\n',
}
"""What SLURM has, as far as the script asks for it."""


@pytest.mark.full
def test_the_batch_script_saves_when_slurm_warns_and_goes_on_when_it_is_requeued(tmp_path: Path) -> None:
    (text,) = re.findall(r"```slurm\n(.*?)```", PAGE, re.S)
    for name, program in FAKES.items():
        (tmp_path / name).write_text(program)
        (tmp_path / name).chmod(0o755)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    text = text.replace("=4 --max", "=2 --max").replace("29500", port)  # two ranks of one machine
    slurm = {"SLURM_JOB_NODELIST": "localhost", "SLURM_NNODES": "1", "SLURM_JOB_ID": "7"}
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, **slurm, "FAKE": str(tmp_path), "OMP_NUM_THREADS": "1", "PATH": path}

    def submit(num_epochs: int) -> subprocess.Popen[str]:
        words = f"-r auto -d cpu trainer.epochs={num_epochs} trainer.save_dir={tmp_path} lr_scheduler=null"
        script = ["bash", "-c", text.replace("-r auto", words)]
        return subprocess.Popen(
            script, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    job = submit(1000)
    assert job.stdout is not None
    while "epoch" not in (line := job.stdout.readline()):
        assert line, "ended too early"
    job.send_signal(signal.SIGTERM)
    told = job.communicate(timeout=100)[0]
    (run,) = (tmp_path / "digits").iterdir()
    stopped = json.loads((run / "status.json").read_text())
    assert (stopped["state"], stopped["code"], stopped["resumable"]) == ("stopped", 143, True), told
    assert (tmp_path / "requeued").read_text() == "requeue 7\n"
    num_epochs = 1 + torch.load(run / "checkpoints" / "last.pt", weights_only=True)["progress"]["epoch"]

    told = submit(num_epochs).communicate(timeout=150)[0]
    assert "going on after step" in told and [*(tmp_path / "digits").iterdir()] == [run], told
    assert json.loads((run / "status.json").read_text())["state"] == "done"
