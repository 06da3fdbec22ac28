"""Runs whose model is sharded, made by several processes: `python -m tests.shards_kit FOLDER SCENARIO ...` is one rank.

In one process the same scenarios train a whole model.
"""

from __future__ import annotations

import copy
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from src.model.metric import accuracy, f1
from src.trainer.faults.nonfinite import tensors_in
from src.trainer.groups import parameter_groups
from src.trainer.parallel.hollow import is_hollow, place_once
from src.trainer.parallel.settings import ParallelSettings
from src.trainer.settings import FreezeSettings, GroupSettings, ParameterSettings, TrainerSettings
from src.trainer.task import StepOutput, Task
from src.trainer.trainer import Trainer
from src.utils.errors import ConfigError, ResourceError
from src.utils.processes.ranks import Ranks
from tests.ranks_kit import Parts, Result, by_one, by_ranks, loader_of, main, train
from tests.trainer_kit import NoisyRows

CPU = torch.device("cpu")
FSDP = ParallelSettings("fsdp")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(7, 11), nn.Linear(11, 7)
        self.norm = nn.LayerNorm(7)

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + self.down(torch.tanh(self.up(self.norm(inputs))))


class Deep(nn.Module):
    """Sizes that no number of ranks divides."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.last = nn.Linear(6, 7), nn.Linear(7, 3)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.scale = nn.Parameter(torch.ones(1))
        self.register_buffer("shift", torch.zeros(3))

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.first(inputs)
        for block in self.blocks:
            hidden = block(hidden)
        shifted: Tensor = self.last(hidden) * self.scale + self.shift
        return shifted


def trained(ranks: Ranks, **settings: Any) -> Result:
    return train(ranks, **{"model": Deep(), "parallel": FSDP, **settings})


def plain(ranks: Ranks, folder: Path) -> Result:
    return trained(ranks, metrics={"accuracy": accuracy, "f1": f1}, val=NoisyRows(21))


def clipped(ranks: Ranks, folder: Path) -> Result:
    model = Deep()
    adagrad = torch.optim.Adagrad(model.parameters(), lr=0.1, initial_accumulator_value=0.1)
    return trained(
        ranks, model=model, optimizers={"optimizer": adagrad}, val=NoisyRows(21), max_grad_norm=0.1, accumulate_steps=3,
        ema_decay=0.9,
    )  # fmt: skip


def grouped(ranks: Ranks, folder: Path) -> Result:
    """Rates by pattern, part of the model frozen, blocks recomputed, whatever is sharded kept on the host."""
    model = Deep()
    for parameter in model.first.parameters():
        parameter.requires_grad_(False)
    groups = ParameterSettings(groups=(GroupSettings("last.*", lr=0.02),), no_decay_on_norms_and_biases=True)
    adam = torch.optim.AdamW(parameter_groups(dict(model.named_parameters()), groups), lr=0.01, weight_decay=0.1)
    parallel = ParallelSettings("fsdp", shard=("blocks.*", "last"), cpu_offload=True)
    return trained(
        ranks, model=model, optimizers={"optimizer": adam}, parallel=parallel, freeze=[FreezeSettings("first.*")],
        recompute=("blocks.*",),
    )  # fmt: skip


def mixed(ranks: Ranks, folder: Path) -> Result:
    return trained(ranks, amp_dtype="bf16", parallel=ParallelSettings("fsdp", compress="bf16"))


class Spoilt(NoisyRows):
    """One row of the second batch is no number."""

    def __init__(self, num_rows: int) -> None:
        super().__init__(num_rows)
        self.inputs[12] = torch.nan


def skipped(ranks: Ranks, folder: Path) -> Result:
    return trained(ranks, dataset=Spoilt(50), loader={"shuffle": False}, nonfinite="skip")


def parts(ranks: Ranks, folder: Path) -> Result:
    """A task that calls parts of a model without a forward of its own."""
    torch.manual_seed(3)
    model = nn.ModuleDict({"body": nn.Linear(6, 8), "head": nn.Linear(8, 3)})
    return trained(ranks, task=Parts(), model=model)


class Layered(nn.Module):
    """Sixteen blocks, and what else a model may hold; its values come from the stream, as those of most models do."""

    def __init__(self, quirk: str = "") -> None:
        super().__init__()
        self.embedding, self.memory = nn.Linear(6, 9), nn.LSTM(9, 9, batch_first=True)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(9, 64), nn.Tanh(), nn.Linear(64, 9)) for _ in range(16)])
        self.norm, self.head, self.again = nn.LayerNorm(9), nn.Linear(9, 3), nn.Linear(9, 3)
        self.again.weight = self.head.weight
        self.register_buffer("noise", torch.randn(9), persistent=False)
        self.register_buffer("count", torch.tensor(7))
        if quirk:
            self.table = torch.ones(3) if quirk == "loose" else torch.ones(3).tolist()  # Transformers patches linspace

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.memory(self.embedding(inputs)[:, None])[0][:, 0] + self.noise
        for block in self.blocks:
            hidden = hidden + block(hidden)
        hidden = self.norm(hidden)
        both: Tensor = self.head(hidden) + self.again(hidden)
        return both


class Held(TorchDispatchMode):
    """A context: the most bytes of tensors made in it that were held at a time."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most, self._storages = 0, {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in tensors_in(result):
            if not each.is_meta and not isinstance(each, DTensor):
                self._storages[StorageWeakRef(each.untyped_storage())] = each.untyped_storage().nbytes()
        self._storages = {reference: size for reference, size in self._storages.items() if not reference.expired()}
        self.most = max(self.most, sum(self._storages.values()))
        return result


def built_once(ranks: Ranks, folder: Path) -> Result:
    """A model that only rank 0 builds with values: how it begins, what building and dividing it held, how it trains."""
    torch.manual_seed(11)
    settings = TrainerSettings(epochs=2, parallel=FSDP, ema_decay=0.9)
    with Held() as held:
        model = place_once(Layered, CPU, settings, ranks)
        is_empty = is_hollow(model)
        streams = ranks.gather(torch.rand(3))
        adagrad = torch.optim.Adagrad(model.parameters(), lr=0.1, initial_accumulator_value=0.1)
        before = weakref.ref(next(model.parameters()))
        trainer = Trainer(
            Task(nn.CrossEntropyLoss()), model, loader_of(NoisyRows(50), ranks, 8), {"optimizer": adagrad}, settings,
            ranks=ranks,
        )  # fmt: skip
        is_let_go = before() is None
    first = copy.deepcopy({name: trainer.stateful[name].state_dict() for name in ("model", "ema", "optimizer")})
    noise = ranks.gather(model.noise)
    trainer.fit()
    return {
        "first": first, "streams": streams, "noise": noise, "weights": trainer.stateful["model"].state_dict(),
        "empty": ranks.gather(is_empty), "let_go": ranks.gather(is_let_go), "held": ranks.gather(held.most),
    }  # fmt: skip


def built_by_all(ranks: Ranks, folder: Path) -> Result:
    """Models that cannot be built without values."""
    found = {}
    for quirk in ("loose", "value"):
        torch.manual_seed(11)
        model = place_once(partial(Layered, quirk), CPU, TrainerSettings(parallel=FSDP), ranks)
        found[quirk] = ranks.gather(dict(model.named_parameters()))
    return found


class Answer:
    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


class Hiding(nn.Module):
    """Returns an object that torch does not look into."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> Answer:
        return Answer(self.inner(inputs))


class Opening(Task):
    def step(self, model: Any, batch: Any) -> StepOutput:
        return super().step(lambda inputs: model(inputs).logits, batch)


def hidden(ranks: Ranks, folder: Path) -> Result:
    try:
        trained(ranks, task=Opening(nn.CrossEntropyLoss()), model=Hiding())
    except ConfigError as error:
        return {"refused": str(error)}
    return {"refused": ""}


def halfway(ranks: Ranks, folder: Path, parallel: ParallelSettings = FSDP) -> Result:
    own = folder / f"half-{ranks.world_size}"
    own.mkdir(exist_ok=True)
    return going_on(ranks, parallel, epochs=2, checkpoints=own)


def halfway_in_shards(ranks: Ranks, folder: Path) -> Result:
    """Best after the first epoch, in step 7; keeps that and the two newest, of steps 12 and 14."""
    own = folder / f"shards-{ranks.world_size}"
    own.mkdir(exist_ok=True)
    parallel = ParallelSettings("fsdp", save_shards=True)
    return going_on(ranks, parallel, epochs=2, checkpoints=own, save_every_steps=3)


def in_background(ranks: Ranks, folder: Path) -> Result:
    """The run of `halfway_in_shards`, written by threads that begin when training has gone on."""
    own = folder / f"background-{ranks.world_size}"
    own.mkdir(exist_ok=True)
    parallel = ParallelSettings("fsdp", save_shards=True)
    make_folder = Path.mkdir

    def make_late(path: Path, *args: Any, **options: Any) -> None:
        if threading.current_thread().name.startswith("save"):
            time.sleep(0.1)
        make_folder(path, *args, **options)

    Path.mkdir = make_late  # type: ignore[method-assign]
    try:
        return going_on(ranks, parallel, epochs=2, checkpoints=own, save_every_steps=3, save_in_background=True)
    finally:
        Path.mkdir = make_folder  # type: ignore[method-assign]


def full_in_background(ranks: Ranks, folder: Path) -> Result:
    """What each rank is told, where the threads of rank 1 find the disk full; the second failure ends the run."""
    return told_when_full(ranks, folder / f"full-{ranks.world_size}", is_in_background=True)


def full_at_once(ranks: Ranks, folder: Path) -> Result:
    """The same, where rank 1 finds the disk full after its first save."""
    return told_when_full(ranks, folder / f"full-at-once-{ranks.world_size}", is_in_background=False)


def told_when_full(ranks: Ranks, own: Path, is_in_background: bool) -> Result:
    own.mkdir(exist_ok=True)
    parallel = ParallelSettings("fsdp", save_shards=True)
    settings = {"save_every_steps": 3, "save_in_background": is_in_background, "max_failed_saves": 2}
    sync, told, synced = os.fsync, "", list[int]()

    def fail_on_rank_1(descriptor: int) -> None:
        is_writing = threading.current_thread().name.startswith("save") if is_in_background else len(synced) > 0
        if ranks.rank == 1 and is_writing:
            raise OSError(28, "No space left on device")
        synced.append(descriptor)
        sync(descriptor)

    os.fsync = fail_on_rank_1
    try:
        going_on(ranks, parallel, epochs=2, checkpoints=own, **settings)
    except ResourceError as error:
        told = str(error)
    finally:
        os.fsync = sync
    return {"told": ranks.gather(told)}


def resumed_in_shards(ranks: Ranks, folder: Path) -> Result:
    """Goes on from the parts that two processes have saved; whoever does."""
    return going_on(ranks, ParallelSettings("fsdp", save_shards=True), resume=folder / "shards-2")


def whole_way(ranks: Ranks, folder: Path) -> Result:
    return going_on(ranks, FSDP)


def resumed(ranks: Ranks, folder: Path) -> Result:
    """Goes on from the first half that one process has made."""
    return going_on(ranks, FSDP, resume=folder / "half-1")


def resumed_by_ddp(ranks: Ranks, folder: Path) -> Result:
    """Goes on with whole models from the first half that two processes have made; one process does so, too."""
    return going_on(ranks, ParallelSettings("ddp"), resume=folder / "half-2")


def going_on(ranks: Ranks, parallel: ParallelSettings, **changes: Any) -> Result:
    model = Deep()
    adam = torch.optim.AdamW(model.parameters(), lr=0.01)
    settings = {"epochs": 4, "ema_decay": 0.9, "val": NoisyRows(21), **changes}
    return trained(ranks, model=model, optimizers={"optimizer": adam}, parallel=parallel, **settings)


SCENARIOS: Mapping[str, Callable[[Ranks, Path], Result]] = {
    each.__name__: each
    for each in (
        plain,
        clipped,
        grouped,
        mixed,
        skipped,
        parts,
        built_once,
        built_by_all,
        hidden,
        halfway,
        halfway_in_shards,
        in_background,
        full_in_background,
        full_at_once,
        whole_way,
        resumed,
        resumed_in_shards,
        resumed_by_ddp,
    )
}

_kept: list[TemporaryDirectory[str]] = []


@cache
def outcomes() -> tuple[Path, dict[int, dict[str, Result]]]:
    """Return the folder and the results of all scenarios in one process and in two, made once for all tests."""
    _kept.append(TemporaryDirectory())
    folder, later = Path(_kept[0].name), [name for name in SCENARIOS if name.startswith("resumed")]
    one = by_one([name for name in SCENARIOS if name not in later], folder, SCENARIOS)
    two = by_ranks(2, [*SCENARIOS], folder, "shards_kit")
    return folder, {1: one | by_one(later, folder, SCENARIOS), 2: two}


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:], SCENARIOS)
