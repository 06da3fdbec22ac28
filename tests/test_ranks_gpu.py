"""Several processes on GPUs, through NCCL: as many as this machine has, one too."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from tests.chaos import COMPONENTS, CONFIG
from tests.conftest import ROOT
from tests.test_ranks_commands import EXACT, content, only_run

NUM_GPUS = torch.cuda.device_count() if torch.cuda.is_available() else 0


@pytest.mark.gpu
@pytest.mark.skipif(not NUM_GPUS, reason="needs a GPU")
@pytest.mark.parametrize("setting", ["", "trainer.amp_dtype=fp16", "trainer.accumulate_steps=3"])
def test_nccl_ranks_train_what_one_gpu_trains(setting: str, tmp_path: Path) -> None:
    num_ranks = 2 if NUM_GPUS > 1 else 1
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_ranks}"]
    for name, launcher, device, rows in (("one", [], "cuda:0", 8), ("several", torchrun, "cuda", 8 // num_ranks)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "noisy.py").write_text(COMPONENTS)
        (folder / "run.yaml").write_text(yaml.safe_dump({**CONFIG, **EXACT, "loader": {"batch_size": rows}}))
        words = ["-c", str(folder / "run.yaml"), f"trainer.save_dir={folder}", "-d", device, *filter(None, [setting])]
        command = [sys.executable, *launcher, "train.py", *words]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert ended.returncode == 0, ended.stdout + ended.stderr
    one, several = (content(only_run(tmp_path / name / "run.yaml")) for name in ("one", "several"))
    assert several["progress"] == one["progress"]
    for name, value in one["model"].items():
        assert torch.allclose(several["model"][name], value, atol=1e-2 if setting.endswith("fp16") else 1e-5), name
