"""Law of memory: data in memory are there once, however many workers read them, and however many there are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

READ = """
import os, sys, threading
from pathlib import Path
import numpy as np
import torch
torch.set_num_threads(1)
from torch.utils.data import TensorDataset
from sklearn import preprocessing
from src.data.tables import column_cache
from src.data import frame
from src.data.arrays import Arrays
from src.data.loading.loader import Loader
from src.data.parts.part import Part
from src.data.settings import LoaderSettings
from src.data.table import Table

peak, done = 0, threading.Event()
def own_bytes(pid):  # but for pages of files, which go when memory is short
    with open(f"/proc/{pid}/smaps_rollup") as file:
        counts = dict(line.split(":") for line in file.readlines()[1:])
    return sum(int(counts[kind].split()[0]) for kind in ("Pss_Anon", "Pss_Shmem")) * 1024
def all_bytes():
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return sum(own_bytes(pid) for pid in [os.getpid(), *map(int, file.read().split())])
def watch():  # what is there three times in a row: while a worker starts, its parent's pages are seen in both
    global peak
    seen = [0, 0, 0]
    while not done.wait(0.02):
        try:
            seen = [*seen[1:], all_bytes()]
        except (OSError, KeyError, IndexError):
            continue  # a worker has just ended
        peak = max(peak, min(seen))

kind, workers, num_rows, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
column_cache.CACHE_FOLDER, frame.KEPT_BYTES = str(folder / "cache"), 1 << 40
if kind == "table":
    lines = ["".join(f"{(row * column) % 9}," for column in range(64)) + str(row % 7) for row in range(1000)]
    with open(folder / "t.csv", "w") as file:
        file.write("".join(f"c{column}," for column in range(64)) + "y\\n")
        for _ in range(num_rows // 1000):
            file.write("\\n".join(lines) + "\\n")
before = all_bytes()
threading.Thread(target=watch, daemon=True).start()
if kind == "table":
    dataset = Table(str(folder / "t.csv"), target="y", scale_inputs="StandardScaler")
    dataset.fit(torch.arange(num_rows))
    size = dataset.features.nbytes + dataset.targets.nbytes
else:
    inputs, targets = torch.ones(num_rows, 64), torch.ones(num_rows, 1)
    dataset = (TensorDataset if kind == "tensors" else Arrays)(inputs, targets)
    size = inputs.nbytes + targets.nbytes
loader = Loader(Part("train", dataset), LoaderSettings(batch_size=8192, num_workers=workers), shuffle=True, seed=0)
for epoch in range(2):
    for batch in loader.batches(epoch):
        pass
done.set()
print(size, peak - before)
"""
SPARE, OWN = 300 * 2**20, 150 * 2**20
"""What a process takes besides the data; what of it a worker takes of its own with time, of pages that it writes on."""
NUM_ROWS = {"tensors": (500_000, 2_000_000), "arrays": (500_000, 2_000_000), "table": (200_000, 1_000_000)}


@pytest.mark.full
@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize("kind", NUM_ROWS)
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux")
def test_data_are_in_memory_once_and_not_again_in_each_worker(kind: str, workers: int, tmp_path: Path) -> None:
    found: list[tuple[int, int]] = []
    for num_rows in NUM_ROWS[kind]:
        command = [sys.executable, "-c", READ, kind, str(workers), str(num_rows), str(tmp_path)]
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        size, peak = map(int, run.stdout.split())
        assert peak < 1.1 * size + SPARE * (1 + workers)
        found.append((size, peak))
    (small, low), (large, high) = found
    assert high - low < 1.1 * (large - small) + OWN * (1 + workers), "what workers take depends on the size of the data"
