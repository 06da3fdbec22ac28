"""Saving shards where they are: every process writes its own, through torch.distributed.checkpoint."""

from __future__ import annotations

import uuid
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor

from src.trainer.checkpoints.host_copy import HostCopy
from src.trainer.checkpoints.shard_files import PLACE, RECORD
from src.utils.direct_file import file_checksum, sync_folder
from src.utils.errors import ResourceError
from src.utils.paths import shown_path
from src.utils.processes.ranks import Ranks

COPY_AHEAD_BYTES = 10_000_000
"""From a GPU, while what came before is written."""


def save_shards(shards: Mapping[str, DTensor], beside: Path, step: int, ranks: Ranks) -> dict[str, Any]:
    """Put shards on the disk; return to rank 0, for it to commit, the record of where they are.

    Until that is committed the folder is litter. All processes must call this.

    Raises:
        ResourceError: A process cannot write, on all of them alike; or rank 0 does not see what another has written.
    """
    folder = beside / str(ranks.broadcast(f"step-{step:08d}-{uuid.uuid4().hex[:8]}.shards"))
    try:
        is_on_host = all(each.device.type == "cpu" for each in shards.values())  # then copying ahead would be in vain
        writer = FileSystemWriter(folder, per_thread_copy_ahead=0 if is_on_host else COPY_AHEAD_BYTES)
        index = save(dict(shards), storage_writer=writer, process_group=ranks.process_group)
    except CheckpointException as error:
        reason = next(iter(error.failures.values()), (error,))[0]
        raise ResourceError(f"{shown_path(folder)}: cannot be saved: {reason}. Older checkpoints are intact") from error
    own = [folder / ".metadata"] if ranks.is_main else []
    own += folder.glob(f"__{ranks.rank}_*.distcp")
    sums = ranks.gather({path.name: [path.stat().st_size, file_checksum(path)] for path in own})
    if not ranks.is_main:
        return {}
    sync_folder(folder)
    sync_folder(beside)
    files = {name: each for found in sums for name, each in found.items()}
    if unseen := [name for name in files if not (folder / name).is_file()]:
        raise ResourceError(
            f"{shown_path(folder / unseen[0])}: rank 0 does not see what another has written; all machines must "
            "share the folder of runs, or leave out trainer.parallel.save_shards"
        )
    return {"folder": folder.name, "files": files, "tensors": _facts(index)}


def copy_shards(
    rest: Mapping[str, Any], shards: Mapping[str, DTensor], copies: HostCopy
) -> tuple[dict[str, Any], dict[str, DTensor]]:
    """Return both as they are now, in memory of the CPU; the copy that `copies` took before is void."""
    taken = copies.take({"rest": rest, "own": {name: each.to_local() for name, each in shards.items()}})
    own = {name: DTensor(taken["own"][name], each._spec, requires_grad=False) for name, each in shards.items()}  # type: ignore[no-untyped-call]
    return taken["rest"], own


def take_apart(state: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, DTensor]]:
    """Return `state` with names in the places of shards, and the shards by name."""
    shards: dict[str, DTensor] = {}
    rest: dict[str, Any] = _without(state, "", shards)
    rest[RECORD] = {"bytes": sum(each.numel() * each.element_size() for each in shards.values())}
    return rest, shards


def _without(value: Any, name: str, shards: dict[str, DTensor]) -> Any:
    if isinstance(value, DTensor):
        shards[name] = value
        return {PLACE: name}
    if type(value) in (dict, OrderedDict):
        made = type(value)()
        for key, part in value.items():
            made[key] = _without(part, f"{name}/{key}" if name else str(key), shards)
        if isinstance(value, OrderedDict):
            made.__dict__.update(value.__dict__)
        return made
    if type(value) in (list, tuple):
        return type(value)(_without(part, f"{name}/{index}", shards) for index, part in enumerate(value))
    return value


def _facts(index: Any) -> dict[str, Any]:
    """Return what torch's index says, as plain data."""
    places = {(at.fqn, tuple(at.offset)): place for at, place in index.storage_data.items()}
    facts: dict[str, Any] = {}
    for name, tensor in index.state_dict_metadata.items():
        chunks = []
        for chunk in tensor.chunks:
            if 0 in chunk.sizes:
                continue
            place = places[name, tuple(chunk.offsets)]
            chunks.append(
                {
                    "offsets": list(chunk.offsets),
                    "sizes": list(chunk.sizes),
                    "file": place.relative_path,
                    "start": place.offset,
                    "length": place.length,
                }
            )
        facts[name] = {"dtype": tensor.properties.dtype, "size": list(tensor.size), "chunks": chunks}
    return facts
