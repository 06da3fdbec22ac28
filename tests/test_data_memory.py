"""Law of memory: data in memory are there once, however many workers read them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

READ = """
import os, sys, threading
import torch
torch.set_num_threads(1)
from torch.utils.data import TensorDataset
from src.data.arrays import Arrays
from src.data.loader import Loader
from src.data.part import Part
from src.data.settings import LoaderSettings

peak, done = 0, threading.Event()
def own_bytes(pid):
    with open(f"/proc/{pid}/smaps_rollup") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Pss:")) * 1024
def all_bytes():
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return sum(own_bytes(pid) for pid in [os.getpid(), *map(int, file.read().split())])
def watch():
    global peak
    while not done.wait(0.05):
        try:
            peak = max(peak, all_bytes())
        except (OSError, StopIteration):
            pass  # a worker has just ended

kind, workers = sys.argv[1], int(sys.argv[2])
before = all_bytes()
threading.Thread(target=watch, daemon=True).start()
inputs, targets = torch.ones(3_000_000, 64), torch.ones(3_000_000, 1)
dataset = (TensorDataset if kind == "tensors" else Arrays)(inputs, targets)
loader = Loader(Part("train", dataset), LoaderSettings(batch_size=8192, num_workers=workers), shuffle=True, seed=0)
for epoch in range(2):
    for batch in loader.batches(epoch):
        pass
done.set()
print(inputs.nbytes + targets.nbytes, peak - before)
"""


@pytest.mark.full
@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize("kind", ["tensors", "arrays"])
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux")
def test_data_are_in_memory_once_and_not_again_in_each_worker(kind: str, workers: int) -> None:
    command = [sys.executable, "-c", READ, kind, str(workers)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    size, peak = map(int, run.stdout.split())
    assert size < peak < 1.1 * size + 300 * 2**20 * (1 + workers)
