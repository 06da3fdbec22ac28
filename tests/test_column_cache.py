"""Laws of the cache of large tables: the same batches as from memory; new when the file is; whole or not there."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.data import frame
from src.data.parts.content import row_hashes
from src.data.parts.split import make_parts
from src.data.settings import SplitSettings
from src.data.table import Table
from src.data.tables import column_cache, convert_csv
from src.utils.errors import DataError
from tests.conftest import ROOT

NUMBERS = ["1", "-2", "3.25", "1e3", "0.1", "7"]
CELLS = {
    "number": NUMBERS,
    "whole": ["1", "2", "3", "40"],
    "holed": [*NUMBERS, "", "NA"],
    "text": ["Rome", "Oslo", "a b", "7", "007", "", "true"],
    "boolean": ["True", "False"],
    "late": ["1", "2", "3"],
}


@pytest.fixture(autouse=True)
def small_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that is done piece by piece has several pieces in small files, and caches lie elsewhere."""
    monkeypatch.setattr(column_cache, "CACHE_FOLDER", str(tmp_path / "cache"))
    monkeypatch.setattr(convert_csv, "TRIED_ROWS", 3)
    monkeypatch.setattr(convert_csv, "PIECE_BYTES", 1)
    monkeypatch.setattr(frame, "KEPT_BYTES", 0)


@st.composite
def tables(draw: st.DrawFn) -> str:
    num_rows = draw(st.integers(2, 12))
    columns = {
        name: draw(st.lists(st.sampled_from(c), min_size=num_rows, max_size=num_rows)) for name, c in CELLS.items()
    }
    if draw(st.booleans()):
        columns["late"] = [f"x{cell}" if row >= num_rows // 2 else "" for row, cell in enumerate(columns["late"])]
    return "\n".join([",".join(CELLS), *(",".join(row) for row in zip(*columns.values(), strict=True))]) + "\n"


def outcome(file: Path, cache: bool, args: dict[str, Any]) -> Any:
    """What a table gives, or what is wrong with it."""
    try:
        data = Table(str(file), cache=cache, **args)
        parts = make_parts({"train": data}, SplitSettings(val=0.3)) if len(data) > 6 else {}
        rows = parts["train"].row_ids() if parts else torch.arange(max(1, len(data) - 1))
        data.fit(rows)
        again = Table(str(file), cache=cache, **args)
        again.load_state_dict(data.state_dict())
        batches = [each.read_batch(torch.arange(len(each)).flip(0)) for each in (data, again)]
        values = [value.tolist() for batch in batches for value in (batch if isinstance(batch, tuple) else [batch])]
        columns = [[str(cell) for cell in data.column(name)] for name in CELLS]
        hashes = row_hashes(data, torch.arange(len(data))).tolist()
        rest = [(data.cells(row), data.row_id(row)) for row in range(len(data))]
        return values, data.feature_names, data.class_names, columns, str(rest), hashes, rows.tolist()
    except (DataError, ValueError) as error:
        return type(error), str(error)


@settings(max_examples=50)
@given(
    text=tables(),
    target=st.sampled_from([None, "number", "whole", "text", "boolean", ["number", "whole"]]),
    missing=st.sampled_from(["error", "drop", "fill"]),
    scale=st.sampled_from([None, "StandardScaler", "MinMaxScaler", "QuantileTransformer"]),
    categorical=st.sampled_from([[], ["text"], ["text", "whole", "holed", "boolean"]]),
    classify=st.sampled_from([None, True]),
    ignore=st.sampled_from([[], ["text"], ["holed", "text", "late"]]),
)
def test_a_cached_table_gives_what_the_table_in_memory_gives(
    tmp_path_factory: pytest.TempPathFactory, text: str, target: Any, **args: Any
) -> None:
    file = tmp_path_factory.mktemp("table") / "t.csv"
    file.write_text(text, encoding="utf-8")
    args["scale_inputs"] = args.pop("scale")
    args["target"] = target
    if target in (["number", "whole"], None):
        args["classify"] = None
    assert str(outcome(file, True, args)) == str(outcome(file, False, args))


def caches(tmp_path: Path) -> list[Path]:
    return sorted(each for each in (tmp_path / "cache").iterdir() if each.is_dir())


def test_a_cache_is_built_once_and_anew_when_the_file_or_its_reading_changes(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text("a,b\n1,2\n3,4\n")
    assert Table(str(file), "b", cache=True)[1][0].tolist() == [3]
    (first,) = caches(tmp_path)
    built = (first / "numbers.npy").stat().st_mtime_ns
    assert Table(str(file), "a", cache=True)[1][0].tolist() == [4]
    assert [first] == caches(tmp_path) and (first / "numbers.npy").stat().st_mtime_ns == built
    file.write_text("a,b\n5,2\n7,4\n")
    os.utime(file, ns=(1, 1))
    assert Table(str(file), "b", cache=True)[1][0].tolist() == [7]
    (second,) = caches(tmp_path)
    assert second != first
    file.write_text("a;b\n5;2\n")
    assert Table(str(file), "b", separator=";", cache=True)[0][0].tolist() == [5]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\nabc,4\n", "t.csv row 2 column a: 'abc' is not a number; if it is a category, list"),
        ("a,b\n1,2\n-inf,3\n", "t.csv row 2 column a: -inf is not finite"),
        ("a,b\n1,2\n1,2\n1,2\n,3\n", "t.csv row 4 column a: empty; 1 such rows; missing: drop leaves them out"),
        ("a,b,c\n1,2,3\n1,2,3\n1,2,3\n1,2,3\n4,5\n", r"t.csv row 5 \(line 6\): 2 columns, 3 expected"),
        ("a,b,c\n1,2,3\n1,2,3\n1,2,3\n1,2,3\n4,5,6,7\n", r"t.csv row 5 \(line 6\): 4 columns, 3 expected"),
        ("a,b\n", "t.csv: has a header and no rows"),
        ("a,b\n1,9007199254740993\n2,3\n", "column b has .* too large whole numbers, for the cache; .* cache: false"),
    ],
)
def test_what_is_wrong_with_a_large_table_is_told_by_its_place_and_leaves_nothing_half(
    tmp_path: Path, text: str, message: str
) -> None:
    file = tmp_path / "t.csv"
    file.write_text(text)
    with pytest.raises(DataError, match=message):
        Table(str(file), "b", classify=True if "9007" in text else None, cache=True)
    assert all((each / "columns.json").exists() and "unfinished" not in each.name for each in caches(tmp_path))


def test_a_worker_that_is_not_forked_maps_the_files_instead_of_being_sent_them(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text("a,b,c\n" + "1,2,x\n3,4,y\n" * 5000)
    data = Table(str(file), "b", cache=True)
    data.fit(torch.arange(10))
    data.targets = None
    sent = pickle.dumps(data)
    assert len(sent) < 5000
    assert torch.equal(pickle.loads(sent).read_batch(torch.arange(10)), data.read_batch(torch.arange(10)))


CONVERT = """
import sys
from src.data.tables import column_cache
from src.data.table import Table
column_cache.CACHE_FOLDER = sys.argv[2]
data = Table(sys.argv[1], "b", cache=True)
print(len(data), float(data.targets.sum()))
"""


def converting(file: Path, tmp_path: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CONVERT, str(file), str(tmp_path / "cache")]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_killed_conversion_leaves_nothing_that_is_taken_for_a_cache_and_two_at_once_agree(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    num_rows = 2_000_000
    file.write_text("a,b\n" + "0.12345678901234,2\n" * num_rows)
    process = converting(file, tmp_path)
    while not list((tmp_path / "cache").glob("*-unfinished/numbers.npy")):
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert [each.name.endswith("-unfinished") for each in caches(tmp_path)] == [True]
    both = [converting(file, tmp_path) for _ in range(2)]
    results = [each.communicate() for each in both]
    assert [out.split() for out, _ in results] == [[str(num_rows), str(2.0 * num_rows)]] * 2, results
    (folder,) = caches(tmp_path)
    assert not folder.name.endswith("-unfinished")


TRAIN = """
import os, sys, threading
import torch
torch.set_num_threads(1)
from src.data.tables import column_cache
from src.data import frame
from src.data.loading.loader import Loader
from src.data.settings import LoaderSettings, SplitSettings
from src.data.parts.split import fit_parts, make_parts
from src.data.table import Table

peak, done = 0, threading.Event()
def own_bytes():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon")) * 1024
def watch():
    global peak
    while not done.wait(0.002):
        peak = max(peak, own_bytes())

column_cache.CACHE_FOLDER, frame.KEPT_BYTES = sys.argv[2], 0
small = Table(sys.argv[3], "y", scale_inputs="StandardScaler", scale_target="StandardScaler", cache=True)
small.fit(torch.arange(3))
threading.Thread(target=watch, daemon=True).start()
before = own_bytes()
data = Table(sys.argv[1], "y", scale_inputs="StandardScaler", scale_target="StandardScaler")
parts = make_parts({"train": data}, SplitSettings(val=0.1))
fit_parts(parts)
for name, part in parts.items():
    for inputs, targets in Loader(part, LoaderSettings(batch_size=1024), shuffle=name == "train", seed=0).batches():
        assert inputs.shape[1] == data.num_features
done.set()
print(peak - before, peak)
"""


@pytest.mark.full
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_a_table_many_times_as_large_as_what_is_held_of_it_is_converted_and_read(tmp_path: Path) -> None:
    file, small = tmp_path / "large.csv", tmp_path / "small.csv"
    block = pd.DataFrame(np.random.default_rng(0).standard_normal((20_000, 30)), columns=[f"x{i}" for i in range(30)])
    block["city"] = np.array(["Rome", "Oslo", "Bonn"])[np.arange(len(block)) % 3]
    block["y"] = block["x0"] + 1
    block.head(10).to_csv(small, index=False)
    text = block.to_csv(index=False, header=False)
    with file.open("w") as out:
        out.write(",".join(block.columns) + "\n")
        for _ in range(55):
            out.write(text)
    size = file.stat().st_size
    assert size > 600e6
    command = [sys.executable, "-c", TRAIN, str(file), str(tmp_path / "cache"), str(small)]
    told = [subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout for _ in "ab"]
    peaks = [int(line.split()[0]) for line in told]
    assert max(peaks) < 0.3 * size
