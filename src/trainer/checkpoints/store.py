"""Checkpoints on disk: written so that a kill at any moment leaves a good one, read so that damage is noticed.

A save writes `step-00000050.pt` and then `step-00000050.json`, its manifest: size, CRC-32, step. The manifest is the
commit mark; a data file without one is litter. `last.pt` and `best.pt` are hard links to the data file (copies where
the file system has no links), so they cost nothing. Where several processes save their shards, the data file names the
folder beside it that holds them; the same mark commits both.

CRC-32 is chosen because it is the cheapest sum that notices every accident (36 ms per 100 MB, against 160 and more
for BLAKE2b); it is no defence against an attacker. Nothing here can run code: files are read with `weights_only=True`.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import zipfile
from collections.abc import Container, Mapping
from pathlib import Path
from threading import Event
from typing import Any

import torch
from torch.utils.serialization import config

from src.trainer.checkpoints.plain import check_plain, check_unpacked, why_unreadable
from src.trainer.checkpoints.shard_files import RECORD, put_together
from src.utils.direct_file import CHUNK_BYTES, DirectFile, file_checksum, sync_folder
from src.utils.errors import CheckpointError, ResourceError
from src.utils.paths import shown_path
from src.utils.torch_version import check_torch
from src.utils.zip_sums import SummedZip

FORMAT = 1
MAX_MANIFEST_BYTES = 1 << 16
log = logging.getLogger(__name__)


class CheckpointStore:
    """The folder `checkpoints/` of one run.

    Args:
        folder: Must exist.
        keep: How many of the newest checkpoints stay, besides the best.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder = folder
        self.keep = keep
        self.give_up = Event()
        """Set from another thread, it ends a save that is being written; older checkpoints are intact."""

    def recover(self) -> None:
        """Tidy up after a save that was killed. Only the process that writes here may call this, not a reader."""
        self.give_up.clear()
        for litter in self.folder.glob(".tmp-*"):
            litter.unlink()
        self.drop_shards()
        for path in self.folder.glob("step-*.pt"):
            if not path.with_suffix(".json").exists():
                path.unlink()  # never committed
            else:
                self._end_swap(path)
        manifests = sorted(self.folder.glob("step-*.json"), reverse=True)
        for newest in (path.with_suffix(".pt") for path in manifests[:1]):
            last = self.folder / "last.pt"
            if not (last.exists() and last.samefile(newest)) and is_whole(newest):
                self._link(newest, "last.pt")
        best = read_manifest(self.folder / "best.json")
        for manifest_path in manifests:
            manifest = read_manifest(manifest_path)
            if manifest and manifest.get("is_best"):
                path = manifest_path.with_suffix(".pt")
                if manifest != best and is_whole(path):  # killed between the commit and the link
                    self._make_best(path, manifest)
                return

    def save(self, state: Mapping[str, Any], step: int, is_best: bool) -> Path:
        """Write `state` so that it is on disk, whole, when this returns.

        Raises:
            ResourceError: The disk is full or not writable. Older checkpoints are intact.
            CheckpointError: `state` holds something that is not a tensor or plain data; its key path is named.
        """
        check_plain(state)
        path = self.folder / f"step-{step:08d}.pt"
        try:
            temporary, num_bytes, checksum = self._write(path, state)
            manifest = {"format": FORMAT, "step": step, "bytes": num_bytes, "crc32": checksum, "is_best": is_best}
            manifest |= {RECORD: state[RECORD]["folder"]} if RECORD in state else {}
            if before := read_manifest(path.with_suffix(".json")):  # this step again: till the swap is done, fit both
                self._write_manifest(path.with_suffix(".json"), {**manifest, "before": before})
            temporary.replace(path)
            self._write_manifest(path.with_suffix(".json"), manifest)
            self._link(path, "last.pt")
            if is_best:
                self._make_best(path, manifest)
            sync_folder(self.folder)
        except BaseException as error:
            for litter in self.folder.glob(".tmp-*"):
                litter.unlink(missing_ok=True)
            self.drop_shards()
            if not isinstance(error, OSError):
                raise
            free_mib = shutil.disk_usage(self.folder).free / 2**20 if self.folder.exists() else 0
            raise ResourceError(
                f"{shown_path(path)}: cannot be saved: {error.strerror or error}; {free_mib:.0f} MiB are free there. "
                "Older checkpoints are intact"
            ) from error
        self._retire(path)
        return path

    def newest(self) -> tuple[Path, dict[str, Any]]:
        """Return path and content of the newest checkpoint that is whole; each damaged one is reported and passed over.

        Raises:
            CheckpointError: There is none.
        """
        while True:
            reasons, found = [], sorted(self.folder.glob("step-*.json"), reverse=True)
            for manifest_path in found:
                path = manifest_path.with_suffix(".pt")
                try:
                    content = load_checkpoint(path)
                except CheckpointError as error:
                    if manifest_path.exists():  # else a run that goes on has newer ones
                        reasons.append(str(error))
                else:
                    for reason in reasons:
                        log.warning("skipped a checkpoint: %s", reason)
                    return path, content
            if all(manifest_path.exists() for manifest_path in found):
                raise CheckpointError("\n".join(reasons) or f"{shown_path(self.folder)}: holds no checkpoint yet")

    def _write(self, path: Path, state: Mapping[str, Any]) -> tuple[Path, int, int]:
        """Put `state` on the disk; return where, its size and its checksum."""
        temporary = self.folder / f".tmp-{os.getpid()}-{path.name}"
        with SummedZip(temporary, self.give_up) as file:
            try:
                # Torch takes longer than we do to sum its records.
                with config.patch("save.compute_crc32", False):  # type: ignore[attr-defined]
                    torch.save(dict(state), file)  # type: ignore[arg-type]
            except RuntimeError as error:
                raise file.error or error from error  # torch hides a full disk behind a message about positions
        return temporary, file.num_bytes, file.checksum

    def _end_swap(self, path: Path) -> None:
        """Settle which of the two files that a manifest fits is there, if a kill left it so."""
        manifest = read_manifest(path.with_suffix(".json")) or {}
        if before := manifest.pop("before", None):
            is_new = (path.stat().st_size, file_checksum(path)) == (manifest["bytes"], manifest["crc32"])
            self._write_manifest(path.with_suffix(".json"), manifest if is_new else before)

    def _write_manifest(self, path: Path, manifest: Mapping[str, Any]) -> None:
        sync_folder(self.folder)
        temporary = self.folder / f".tmp-{os.getpid()}-{path.name}"
        with temporary.open("x", encoding="utf-8") as file:
            json.dump(manifest, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)

    def _link(self, path: Path, name: str) -> None:
        temporary = self.folder / f".tmp-{os.getpid()}-{name}"
        try:
            os.link(path, temporary)
        except OSError:  # no hard links on this file system
            with path.open("rb") as source, DirectFile(temporary, self.give_up) as file:
                shutil.copyfileobj(source, file, CHUNK_BYTES)
        temporary.replace(self.folder / name)
        temporary.unlink(missing_ok=True)  # two links to one file: POSIX rename does nothing and leaves both

    def _make_best(self, path: Path, manifest: Mapping[str, Any]) -> None:
        self._link(path, "best.pt")
        self._write_manifest(self.folder / "best.json", manifest)

    def _retire(self, newest: Path) -> None:
        """Delete what is older than the `keep` newest; the manifest first, for it makes a file a checkpoint.

        What is of a later step is deleted too: a run that went back to an older checkpoint has left that future.
        """
        manifests = sorted(self.folder.glob("step-*.json"))
        end = manifests.index(newest.with_suffix(".json")) + 1
        for manifest_path in [*manifests[: max(0, end - self.keep)], *manifests[end:]]:
            manifest_path.unlink(missing_ok=True)
            manifest_path.with_suffix(".pt").unlink(missing_ok=True)
        self.drop_shards()

    def drop_shards(self) -> None:
        """Delete the shards that no checkpoint names."""
        for shards in loose_shards(self.folder):
            shutil.rmtree(shards, ignore_errors=True)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint file, on the CPU, after checking that it is whole.

    A file without a manifest beside it (one that was copied elsewhere) is read without that check.

    Raises:
        CheckpointError: Missing, damaged, not a checkpoint, or made by a newer version.
    """
    check_torch(torch.__version__)
    where = shown_path(path)
    if not path.is_file():
        raise CheckpointError(f"{where}: {'not a plain file' if path.exists() else 'no such file'}")
    try:
        _check_whole(path)
        with zipfile.ZipFile(path) as archive:
            if not archive.infolist():
                raise zipfile.BadZipFile("holds nothing")
            check_unpacked(archive, where)
            if sum(record.file_size for record in archive.infolist()) > path.stat().st_size:
                raise CheckpointError(f"{where}: claims to hold more bytes than it has")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # a damaged or hostile file may fail in any way
        reason = why_unreadable(error)
        if type(error).__name__ == "UnpicklingError":
            raise CheckpointError(f"{where}: refused, it holds more than tensors and plain data ({reason})") from error
        raise CheckpointError(f"{where}: is not a checkpoint or is damaged ({reason})") from error
    if not isinstance(state, dict) or not isinstance(state.get("format"), int) or "model" not in state:
        raise CheckpointError(f"{where}: is not a checkpoint of this program")
    if state["format"] > FORMAT:
        raise CheckpointError(f"{where}: made by a newer version (format {state['format']}, this reads <= {FORMAT})")
    try:
        check_plain(state)
    except CheckpointError as error:
        raise CheckpointError(f"{where}: refused, {error}") from error
    return put_together(state, path.parent) if RECORD in state else state


def _check_whole(path: Path) -> None:
    """Compare the file with the manifests beside it; `last.pt` and `best.pt` match that of the file they link to."""
    manifests = [path.with_suffix(".json")]
    if path.name in ("last.pt", "best.pt"):
        manifests += sorted(path.parent.glob("step-*.json"), reverse=True)
    elif path.name.startswith("step-") and not manifests[0].exists():
        raise CheckpointError(f"{shown_path(path)}: its manifest {manifests[0].name} is missing, the save never ended")
    known = [found for found in map(read_manifest, manifests) if found]
    known += [manifest["before"] for manifest in known if "before" in manifest]
    if not known:
        if any(manifest.exists() for manifest in manifests):
            raise CheckpointError(f"{shown_path(path)}: its manifest is damaged")
        return
    num_bytes = path.stat().st_size
    if num_bytes not in {manifest["bytes"] for manifest in known}:
        raise CheckpointError(f"{shown_path(path)}: has {num_bytes} bytes, {known[0]['bytes']} were saved")
    if (num_bytes, file_checksum(path)) not in {(manifest["bytes"], manifest["crc32"]) for manifest in known}:
        raise CheckpointError(f"{shown_path(path)}: checksum differs, the file was damaged after it was saved")


def is_whole(path: Path) -> bool:
    """Return whether a checkpoint file is there and as it was saved."""
    try:
        _check_whole(path)
    except (OSError, CheckpointError):
        return False
    return True


def read_manifest(path: Path) -> dict[str, Any] | None:
    """Return a manifest, or None when it is missing or damaged."""
    try:
        if not path.is_file() or path.stat().st_size > MAX_MANIFEST_BYTES:
            return None
        manifest = json.loads(path.read_bytes())
        known = [manifest, manifest.get("before", manifest)]
        return manifest if all(type(each[key]) is int for each in known for key in ("bytes", "crc32")) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def newest_step(folder: Path) -> int:
    """Return the step of the newest checkpoint that was committed to `folder`; -1 where none was."""
    return max((int(path.stem.removeprefix("step-")) for path in folder.glob("step-*.json")), default=-1)


def loose_shards(folder: Path, besides: Container[Path] = ()) -> list[Path]:
    """Return the shards that no checkpoint names; none where a manifest is damaged, for it may have named some.

    Args:
        folder: Of checkpoints.
        besides: Manifests that do not count.
    """
    paths = [path for path in (*folder.glob("step-*.json"), folder / "best.json") if path.exists()]
    manifests = [read_manifest(path) for path in paths if path not in besides]
    named: set[Any] = set()
    for manifest in manifests:
        if manifest is None:
            return []
        named |= {manifest.get(RECORD), manifest.get("before", {}).get(RECORD)}
    return sorted(path for path in folder.glob("*.shards") if path.name not in named)
