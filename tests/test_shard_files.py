"""Checkpoints that several processes write, each its part, are as safe as those of one."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader

from src.run.saved_run import load_model
from src.trainer.checkpoints.prune import delete, spare_files
from src.trainer.checkpoints.store import CheckpointStore, file_checksum, load_checkpoint
from src.trainer.faults.nonfinite import tensors_in
from src.utils.errors import CheckpointError
from tests.conftest import ROOT
from tests.ranks_kit import Result
from tests.shards_kit import outcomes


@pytest.fixture(scope="module")
def made() -> Path:
    """Folder of the same run saved whole by one process, and in parts by two."""
    return outcomes()[0]


@pytest.fixture(scope="module")
def found() -> dict[int, dict[str, Result]]:
    return outcomes()[1]


@pytest.fixture
def saved(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "shards-2", tmp_path / "1121_051302" / "checkpoints"))


def shards(folder: Path) -> list[str]:
    return [path.name.split("-")[1] for path in sorted(folder.glob("*.shards"))]


def newest_shards(folder: Path) -> Path:
    return max(folder.glob("*.shards"))


def test_parts_hold_what_one_process_saves_and_best_keeps_its_own(made: Path, saved: Path) -> None:
    assert shards(saved) == ["00000007", "00000012", "00000014"]
    for name in ("best.pt", "last.pt"):
        one, two = load_checkpoint(made / "half-1" / name), load_checkpoint(saved / name)
        assert one["progress"] == two["progress"] and one.keys() == two.keys()
        for part in ("model", "ema"):
            theirs = two[part].get("model", two[part])
            for key, weight in one[part].get("model", one[part]).items():
                assert torch.allclose(weight, theirs[key], rtol=0, atol=2e-6), key
        assert {each["exp_avg"].shape for each in one["optimizer"]["state"]["state"].values()} == {
            each["exp_avg"].shape for each in two["optimizer"]["state"]["state"].values()
        }


@pytest.mark.parametrize("name", ["__0_0.distcp", "__1_0.distcp", ".metadata"])
@pytest.mark.parametrize("how", ["flip", "cut", "remove"])
def test_damage_to_any_part_is_told_and_an_older_checkpoint_is_used(saved: Path, name: str, how: str) -> None:
    path = newest_shards(saved) / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data if how == "flip" else data[:-1])
    if how == "remove":
        path.unlink()
    with pytest.raises(CheckpointError, match=rf"{name}: (checksum differs|has \d+ bytes|is missing)"):
        load_checkpoint(saved / "last.pt")
    assert CheckpointStore(saved).newest()[0].name == "step-00000012.pt"


def test_a_checkpoint_without_its_parts_says_so(saved: Path, tmp_path: Path) -> None:
    alone = Path(shutil.copy(saved / "best.pt", tmp_path / "best.pt"))
    with pytest.raises(CheckpointError, match=r"step-00000007-\w+.shards: is missing; it holds the weights"):
        load_checkpoint(alone)


def harmful(trace: Path) -> bytes:
    """A pickle that makes a file when it is read."""
    return f"cbuiltins\nopen\n(V{trace}\nVw\ntR.".encode()


def forge(folder: Path, changes: Mapping[str, bytes]) -> None:
    """Overwrite parts of the newest checkpoint, and every sum that would tell."""
    path, parts = folder / "step-00000014.pt", newest_shards(folder)
    state = torch.load(path, weights_only=True)
    for name, data in changes.items():
        (parts / name).write_bytes(data)
        state["shards"]["files"][name] = [len(data), file_checksum(parts / name)]
    path.unlink()
    torch.save(state, path)
    manifest = json.loads(path.with_suffix(".json").read_text())
    manifest |= {"bytes": path.stat().st_size, "crc32": file_checksum(path)}
    path.with_suffix(".json").write_text(json.dumps(manifest))


def test_code_in_the_index_or_a_part_is_never_run(saved: Path, tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    index = newest_shards(saved) / ".metadata"
    index.write_bytes(harmful(trace))
    with pytest.raises(CheckpointError, match=r"\.metadata: has \d+ bytes"):
        load_checkpoint(saved / "step-00000014.pt")
    forge(saved, {".metadata": harmful(trace)})
    load_checkpoint(saved / "step-00000014.pt")  # all sums fit, and still nobody reads it
    part = newest_shards(saved) / "__0_0.distcp"
    size = part.stat().st_size
    forge(saved, {part.name: harmful(trace) + bytes(size)})
    with pytest.raises(CheckpointError, match="is damaged"):
        load_checkpoint(saved / "step-00000014.pt")
    assert not trace.exists()
    FileSystemReader(newest_shards(saved)).read_metadata()
    assert trace.exists()  # torch's own reader does run it


@pytest.mark.parametrize("change", ["file", "sizes", "size", "offsets", "missing"])
def test_a_record_that_lies_is_refused(saved: Path, tmp_path: Path, change: str) -> None:
    path = saved / "step-00000014.pt"
    state = torch.load(path, weights_only=True)
    tensor = state["shards"]["tensors"]["model/first.weight"]
    chunk = tensor["chunks"][0]
    if change == "file":
        chunk["file"] = "../step-00000012.pt"
    elif change == "size":
        tensor["size"] = [1 << 40, 1 << 20]
    elif change == "missing":
        del tensor["chunks"][0]
    else:
        chunk[change] = [1000, 1000]
    other = tmp_path / "copy.pt"
    torch.save(state, other)
    shutil.copytree(newest_shards(saved), tmp_path / newest_shards(saved).name)
    with pytest.raises(CheckpointError):
        load_checkpoint(other)


def test_parts_that_were_never_committed_are_litter(saved: Path) -> None:
    shutil.copytree(newest_shards(saved), saved / "step-00000015-abc.shards")
    assert CheckpointStore(saved).newest()[0].name == "step-00000014.pt"
    CheckpointStore(saved).recover()
    assert shards(saved) == ["00000007", "00000012", "00000014"]


def test_a_damaged_manifest_costs_nobody_their_parts(saved: Path) -> None:
    (saved / "step-00000012.json").write_text("{")
    CheckpointStore(saved).drop_shards()
    assert shards(saved) == ["00000007", "00000012", "00000014"]


def test_pruning_deletes_the_parts_of_what_it_deletes(saved: Path) -> None:
    delete(saved.parent, spare_files(saved.parent))
    assert shards(saved) == ["00000007", "00000014"]
    load_checkpoint(saved / "best.pt"), load_checkpoint(saved / "last.pt")


def test_parts_written_in_the_background_hold_what_is_saved_at_once(made: Path) -> None:
    own, other = made / "background-2", made / "shards-2"
    assert sorted(path.name for path in own.glob("*.json")) == sorted(path.name for path in other.glob("*.json"))
    for path in other.glob("*.pt"):
        saved, expected = load_checkpoint(own / path.name), load_checkpoint(path)
        assert saved.keys() == expected.keys() and saved["progress"] == expected["progress"]
        for one, two in zip(tensors_in(saved), tensors_in(expected), strict=True):
            assert torch.equal(one, two), path
    assert shards(own) == shards(other)
    for one, two in zip(sorted(own.glob("*.shards")), sorted(other.glob("*.shards")), strict=True):
        for path in one.glob("*.distcp"):
            assert path.read_bytes() == (two / path.name).read_bytes()


@pytest.mark.parametrize(("scenario", "name"), [("full_in_background", "full-2"), ("full_at_once", "full-at-once-2")])
def test_what_fails_on_one_rank_is_told_on_all_and_forgiven_as_often_as_the_settings_say(
    scenario: str, name: str, made: Path, found: dict[int, dict[str, Result]]
) -> None:
    told = found[2][scenario]["told"]
    assert len(told) == 2
    for each in told:
        assert re.search(r"step-00000007-\w+\.shards: cannot be saved: .*No space left on device", each)
    path, state = CheckpointStore(made / name).newest()
    assert path.name == "step-00000003.pt" and state["progress"]["step"] == 3
    assert shards(path.parent) == ["00000003"], "and nothing is left of what failed"


@pytest.mark.full
def test_a_run_in_parts_is_tested_and_exported_and_goes_on_in_one_process(tmp_path: Path) -> None:
    own = [f"trainer.save_dir={tmp_path}", "trainer.parallel={mode: fsdp, save_shards: true}"]
    run_command("train.py", "-c", "configs/digits.yaml", "-d", "cpu,cpu", "trainer.epochs=1", *own)
    (run,) = (tmp_path / "digits").iterdir()
    assert shards(run / "checkpoints")
    run_command("test.py", "-r", str(run))
    run_command("export.py", "-r", str(run), "--weights-only", "--out", str(tmp_path / "out"))
    load_model(run)
    run_command("train.py", "-r", str(run), "-d", "cpu", "trainer.epochs=2")
    assert load_checkpoint(run / "checkpoints" / "last.pt")["progress"]["epoch"] == 2


def run_command(*words: str) -> None:
    ended = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=150)
    assert ended.returncode == 0, ended.stdout + ended.stderr
