"""Runs that are made alike by one process and by several: `python -m tests.ranks_kit FOLDER SCENARIO ...` is one rank.

Each scenario is a function of (ranks, folder) that returns tensors and numbers. `by_one` calls them in this process;
`by_ranks` starts so many processes, each of which calls them all, and returns what rank 0 found.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from src.data.loading.loader import Loader
from src.data.loading.share import Share
from src.data.parts.part import Part
from src.data.settings import LoaderSettings
from src.model.metric import MetricSet, accuracy, f1, r2
from src.trainer.checkpoints.memory import TaskMemory
from src.trainer.checkpoints.resume import open_together
from src.trainer.checkpoints.saving import Saver
from src.trainer.checkpoints.store import FORMAT, CheckpointStore
from src.trainer.freezing import Freezing
from src.trainer.hooks import Hook
from src.trainer.parallel.settings import ParallelSettings
from src.trainer.settings import FreezeSettings, TrainerSettings
from src.trainer.task import StepOutput, Task
from src.trainer.trainer import Trainer
from src.utils.processes.launched import find_ranks
from src.utils.processes.ranks import ALONE, Ranks
from tests.conftest import ROOT
from tests.trainer_kit import NoisyRows

Result = dict[str, Any]


Scenarios = Mapping[str, Callable[[Ranks, Path], Result]]


def by_one(names: Sequence[str], folder: Path, scenarios: Scenarios | None = None) -> dict[str, Result]:
    return {name: (scenarios or SCENARIOS)[name](ALONE, folder) for name in names}


def by_ranks(num_ranks: int, names: Sequence[str], folder: Path, kit: str = "ranks_kit") -> dict[str, Result]:
    program = (
        "import sys; from src.utils.processes.launch import launch; sys.exit(launch(sys.argv[2:], int(sys.argv[1]), 0))"
    )
    rank = [sys.executable, "-m", f"tests.{kit}", str(folder), *names]
    command = [sys.executable, "-c", program, str(num_ranks), *rank]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return torch.load(folder / f"found-by-{num_ranks}.pt", weights_only=True)


def main(folder: Path, names: Sequence[str], scenarios: Scenarios | None = None) -> None:
    torch.set_num_threads(1)
    ranks = find_ranks()
    ranks.start(torch.device("cpu"), 60.0)
    found = {name: (scenarios or SCENARIOS)[name](ranks, folder) for name in names}
    if ranks.is_main:
        torch.save(found, folder / f"found-by-{ranks.world_size}.pt")
    ranks.leave(0)


class Classified(Dataset[tuple[Tensor, Tensor]]):
    """Rows of three classes; of so many in a row, only the first have one (the others -100)."""

    def __init__(self, num_rows: int, cycle: int, num_classed: int) -> None:
        generator = torch.Generator().manual_seed(7)
        self.inputs = torch.randn(num_rows, 6, generator=generator)
        self.targets = torch.randint(3, (num_rows,), generator=generator)
        self.targets[torch.arange(num_rows) % cycle >= num_classed] = -100

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.inputs[index], self.targets[index]


class Counted(IterableDataset[tuple[Tensor, int]]):
    """The rows of `NoisyRows` without their noise, one after another."""

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        rows = NoisyRows(50)
        yield from ((inputs, int(target)) for inputs, target in zip(rows.inputs, rows.targets, strict=True))


class Spread:
    """A metric that nobody has told how to put shares together."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.seen: list[float] = []

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.seen += outputs.flatten().tolist()

    def compute(self) -> float:
        return max(self.seen) - min(self.seen) + len(self.seen)


class Recording(Hook):
    """Keeps the values of every epoch."""

    def __init__(self) -> None:
        self.values: list[dict[str, float]] = []

    def on_epoch_end(self, trainer: Trainer, values: Mapping[str, float]) -> None:
        self.values.append({key: value for key, value in values.items() if not key.startswith("time/")})


def net() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))


def loader_of(dataset: Any, ranks: Ranks, batch_size: int, name: str = "train", **settings: Any) -> Loader:
    """Return the loader of a rank; `batch_size` is of all ranks together."""
    assert batch_size % ranks.world_size == 0
    own = LoaderSettings(batch_size=batch_size // ranks.world_size, **settings)
    part = Part(name, dataset, seed=5)
    shuffle = own.shuffle is None and name == "train" and not part.is_iterable
    return Loader(part, own, shuffle=shuffle, seed=5, share=Share(ranks.rank, ranks.world_size))


def train(
    ranks: Ranks,
    dataset: Any = None,
    task: Task | None = None,
    *,
    model: nn.Module | None = None,
    optimizers: Mapping[str, torch.optim.Optimizer] | None = None,
    batch_size: int = 8,
    loader: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
    val: Any = None,
    freeze: Sequence[FreezeSettings] = (),
    checkpoints: Path | None = None,
    resume: Path | None = None,
    **settings: Any,
) -> Result:
    """Train, and return the weights, the values of each epoch, and how far it came."""
    model, recording = model or net(), Recording()
    task = task or Task(nn.CrossEntropyLoss())
    parameters = [*model.parameters(), *(task.criterion.parameters() if isinstance(task.criterion, nn.Module) else ())]
    optimizers = optimizers or {"optimizer": torch.optim.SGD(parameters, lr=0.1, momentum=0.9)}
    dataset = dataset or NoisyRows(50)
    trainer = Trainer(
        task,
        model,
        loader_of(dataset, ranks, batch_size, **(loader or {})),
        optimizers,
        TrainerSettings(**{"epochs": 3, **settings}),
        val_loaders={} if val is None else {"val": loader_of(val, ranks, 24, "val")},
        metrics=MetricSet(metrics or {}),
        hooks=[recording],
        ranks=ranks,
        freezing=Freezing(model, freeze),
        checkpoints=checkpoints,
    )
    if resume is not None:
        trainer.load_state_dict(open_together(resume, ranks)[1])
    trainer.fit()
    progress = trainer.progress.state_dict()
    weights = dict(trainer.stateful["model"].state_dict())
    return {"weights": weights, "epochs": recording.values, "progress": progress}


def plain(ranks: Ranks, folder: Path) -> Result:
    return train(ranks, metrics={"accuracy": accuracy, "f1": f1}, val=NoisyRows(21))


def compressed(ranks: Ranks, folder: Path) -> Result:
    return {each: train(ranks, parallel=ParallelSettings(compress=each)) for each in ("bf16", "fp16")}


def workers(ranks: Ranks, folder: Path) -> Result:
    return train(ranks, loader={"num_workers": 2}, epochs=2)


def iterable(ranks: Ranks, folder: Path) -> Result:
    return train(ranks, Counted(), metrics={"accuracy": accuracy})


def clipped(ranks: Ranks, folder: Path) -> Result:
    return train(ranks, max_grad_norm=0.1, accumulate_steps=3, ema_decay=0.9)


def weighted(ranks: Ranks, folder: Path) -> Result:
    criterion = nn.CrossEntropyLoss(weight=torch.tensor([0.2, 1.0, 3.0]), ignore_index=-100)
    return train(ranks, Classified(50, 6, 4), Task(criterion), accumulate_steps=3)


def ignored(ranks: Ranks, folder: Path) -> Result:
    """Only the first share of a batch holds any classes."""
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    return train(ranks, Classified(50, 8, 2), Task(criterion), loader={"shuffle": False})


def summed(ranks: Ranks, folder: Path) -> Result:
    return train(ranks, task=Task(nn.CrossEntropyLoss(reduction="sum")), accumulate_steps=2, max_grad_norm=1.0)


def terms(ranks: Ranks, folder: Path) -> Result:
    """Each term counts in its own way, and some shares of a batch hold no classes."""
    criteria = {
        "classes": (nn.CrossEntropyLoss(weight=torch.tensor([0.2, 1.0, 3.0])), 0.5),
        "size": (lambda outputs: outputs.square().mean(), 0.1),
        "sum": (nn.CrossEntropyLoss(reduction="sum"), 0.01),
    }
    data = Classified(53, 8, 2)
    return train(ranks, data, Task(criteria), accumulate_steps=3, val=data, loader={"shuffle": False})


def one_term(ranks: Ranks, folder: Path) -> Result:
    criterion = nn.CrossEntropyLoss(weight=torch.tensor([0.2, 1.0, 3.0]))
    return train(ranks, Classified(50, 6, 4), Task({"classes": (criterion, 0.5)}), val=Classified(21, 6, 4))


class Scaled(nn.Module):
    """A loss with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs * self.scale, targets) + self.scale.square()


def learned_loss(ranks: Ranks, folder: Path) -> Result:
    criterion = Scaled()
    result = train(ranks, task=Task(criterion))
    return {**result, "scale": criterion.scale.detach()}


class Parts(Task):
    """Calls parts of the model instead of the model."""

    def step(self, model: Any, batch: Any) -> StepOutput:
        outputs = model["head"](torch.tanh(model["body"](batch[0])))
        loss = nn.functional.cross_entropy(outputs, batch[1])
        return StepOutput(loss, outputs, batch[1], float(len(outputs)), {"size": outputs.detach().square().mean()})


def own_step(ranks: Ranks, folder: Path) -> Result:
    torch.manual_seed(3)
    model = nn.ModuleDict({"body": nn.Linear(6, 8), "head": nn.Linear(8, 3)})
    return train(ranks, task=Parts(), model=model)


class TwoPlayers(Task):
    """Makes two updates in turn, as adversarial training does."""

    def update(self, model: Any, batch: Any, optimizers: Mapping[str, torch.optim.Optimizer]) -> StepOutput:
        inputs, targets = batch
        hidden = model["first"](inputs)
        loss = nn.functional.cross_entropy(model["second"](hidden.detach()), targets)
        optimizers["second"].zero_grad()
        loss.backward()
        optimizers["second"].step()
        other = nn.functional.cross_entropy(model["second"](hidden), targets) + hidden.square().mean()
        optimizers["first"].zero_grad()
        other.backward()
        optimizers["first"].step()
        return StepOutput(other.detach(), hidden.detach(), targets, float(len(inputs)), {"second": loss.detach()})


def own_update(ranks: Ranks, folder: Path) -> Result:
    torch.manual_seed(3)
    model = nn.ModuleDict({"first": nn.Linear(6, 8), "second": nn.Linear(8, 3)})
    optimizers = {f"optimizer.{name}": torch.optim.SGD(model[name].parameters(), lr=0.1) for name in model}
    return train(ranks, task=TwoPlayers(), model=model, optimizers=optimizers)


def phases(ranks: Ranks, folder: Path) -> Result:
    first = FreezeSettings("0.*", until_epoch=1, every=2)
    return train(ranks, freeze=[first, FreezeSettings("2.*", from_epoch=1, every=2)], epochs=4)


class Carrying(Task):
    """Subtracts a running mean of its inputs; each process has that of its share."""

    mean = torch.zeros(6)

    def begin(self, part: str, epoch: int) -> None:
        self.mean = torch.zeros(6)

    def step(self, model: Any, batch: Any) -> StepOutput:
        inputs, targets = batch
        self.mean = 0.5 * self.mean + 0.5 * inputs.mean(0)
        return super().step(model, (inputs - self.mean, targets))

    def state_dict(self) -> dict[str, Tensor]:
        return {"mean": self.mean}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.mean = state["mean"]


def carried(ranks: Ranks, folder: Path) -> Result:
    """Weights of a run, and of one that stopped in mid-epoch and went on."""
    found: list[Result] = []
    state: dict[str, Any] = {}
    for num_steps, goes_on in ((10, False), (4, False), (10, True)):
        model, task = net(), Carrying(nn.CrossEntropyLoss())
        trainer = Trainer(
            task, model, loader_of(NoisyRows(50), ranks, 8),
            {"optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}, TrainerSettings(max_steps=num_steps),
            memory={"task": TaskMemory(task, torch.device("cpu"), ranks)}, ranks=ranks,
        )  # fmt: skip
        if goes_on:
            trainer.load_state_dict(state)
        trainer.fit()
        state = ranks.broadcast(trainer.state_dict())
        found.append(dict(model.state_dict()))
    return {"straight": found[0], "stopped": found[1], "resumed": found[2]}


def newest(ranks: Ranks, folder: Path) -> Result:
    """The step that each rank goes back to, where rank 1 sees a newer checkpoint than rank 0 has found."""
    own = folder / f"newest-of-{ranks.world_size}-{ranks.rank}"
    own.mkdir()
    saver = Saver(own, 3, ranks=ranks)
    for step in range(1, 2 + ranks.rank):
        CheckpointStore(own, 3).save({"format": FORMAT, "model": {}, "progress": {"step": step}}, step, is_best=False)
    return {"steps": ranks.gather(saver.newest()["progress"]["step"])}


def evaluated(ranks: Ranks, folder: Path) -> Result:
    """517 rows: 11 times a prime number, so that no batch and no number of ranks divides them."""
    generator = torch.Generator().manual_seed(2)
    inputs, noise = torch.randn(517, 6, generator=generator), torch.randn(517, generator=generator)
    values = inputs[:, :1] + noise[:, None]
    found: Result = {}
    for name, targets, criterion, metrics in (
        ("classes", (values[:, 0] > 0).long(), nn.CrossEntropyLoss(), {"auc": roc_auc_score, "spread": Spread()}),
        ("values", values, nn.MSELoss(), {"r2": r2}),
    ):
        torch.manual_seed(3)
        model = nn.Linear(6, 2 if name == "classes" else 1)
        metrics |= {"accuracy": accuracy, "f1": f1} if name == "classes" else {}
        rows = TensorDataset(inputs, targets)
        few = TensorDataset(inputs[:24], targets[:24])
        still = {"optimizer": torch.optim.SGD(model.parameters(), lr=0.0)}
        found[name] = train(
            ranks,
            few,
            Task(criterion),
            model=model,
            optimizers=still,
            metrics=metrics,
            val=rows,
            batch_size=24,
            epochs=1,
        )["epochs"][0]
    return found


SCENARIOS: dict[str, Callable[[Ranks, Path], Result]] = {
    each.__name__: each
    for each in (
        plain,
        compressed,
        workers,
        iterable,
        clipped,
        weighted,
        ignored,
        summed,
        terms,
        one_term,
        learned_loss,
        own_step,
        own_update,
        phases,
        carried,
        newest,
        evaluated,
    )
}

if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
