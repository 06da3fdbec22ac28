"""Steps and epochs: the same model, data and arithmetic, in our trainer and in a loop written by hand."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.timing import Row, Work, interleave, measured
from src.data.loading.loader import Loader
from src.data.parts.part import Part
from src.data.settings import LoaderSettings
from src.logger.console import LOG, log_to_file, setup_console
from src.logger.logger import Logger, standard_sinks
from src.logger.settings import LoggerSettings
from src.model.lenet import LeNet
from src.model.metric import MetricSet
from src.model.mlp import MLP
from src.trainer.evaluate import evaluate
from src.trainer.meters import Meters
from src.trainer.optimizers import known_way
from src.trainer.settings import TrainerSettings
from src.trainer.task import Task
from src.trainer.trainer import Trainer
from src.trainer.views import standard_hooks

Batches = Callable[[int], Iterable[Any]]
"""The batches of an epoch, given its number."""
Recipe = tuple[Callable[..., Optimizer], Mapping[str, Any]]
SGD: Recipe = (torch.optim.SGD, {"lr": 0.01})
ADAMW: Recipe = (torch.optim.AdamW, {})


class Case:
    """A model, a loss, an optimizer, and where their batches come from.

    Args:
        make_model: Builds the model.
        criterion: The loss.
        optimizer: Its class and arguments; ours is built as that of a config is.
        part: Data of the trainer.
        batch_size: Rows.
        batches: Batches of the loop written by hand; None takes those of our loader.
        epochs: Passes in a round.
        settings: Of the trainer.
    """

    def __init__(
        self,
        make_model: Callable[[], nn.Module],
        criterion: nn.Module,
        optimizer: Recipe,
        part: Part,
        batch_size: int,
        batches: Batches | None = None,
        epochs: int = 1,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.settings = TrainerSettings(epochs=epochs, **(settings or {}))
        self.make_model, self.criterion, self.optimizer = make_model, criterion, optimizer
        self.loader = Loader(part, LoaderSettings(batch_size=batch_size), shuffle=True, seed=0)
        self.batches = batches or self.loader.batches
        self.epochs = epochs

    def by_hand(self) -> float:
        """Train with a loop written by hand: in each epoch training mode, a new order, and in the end its mean loss."""
        model, optimizer = self.prepare()
        criterion, losses = self.criterion, []
        with measured() as watch:
            for epoch in range(self.epochs):
                model.train()
                total, num_rows = 0.0, 0
                for inputs, targets in self.batches(epoch):
                    optimizer.zero_grad()
                    loss = criterion(model(inputs), targets)
                    loss.backward()
                    optimizer.step()
                    total += loss.item() * len(inputs)
                    num_rows += len(inputs)
                losses.append(total / num_rows)
        assert min(losses) > 0
        return watch.cpu_s

    def ours(self) -> float:
        """Train with the trainer, logging off."""
        return self._train(Logger(), [])

    def ours_with_lines(self) -> float:
        """Train with all defaults, and print a line for every epoch above the bar, and into `log.txt`."""
        with tempfile.TemporaryDirectory() as folder, printing(Path(folder)):
            return self.ours_with_defaults()

    def ours_with_defaults(self) -> float:
        """Train with the trainer as the default config has it: TensorBoard, CSV, a bar on a terminal."""
        with tempfile.TemporaryDirectory() as folder, terminal():
            logger = Logger(standard_sinks(LoggerSettings(), Path(folder)))
            try:
                return self._train(logger, standard_hooks(LoggerSettings()))
            finally:
                logger.close()

    def prepare(self, is_ours: bool = False) -> tuple[nn.Module, Optimizer]:
        """Return a new model and its optimizer, the same at each call."""
        torch.manual_seed(0)
        model, (kind, args) = self.make_model(), self.optimizer
        way = known_way(kind, model.parameters()) if is_ours else {}
        return model, kind(model.parameters(), **args, **way)

    def _train(self, logger: Logger, hooks: list[Any]) -> float:
        model, optimizer = self.prepare(is_ours=True)
        task, optimizers = Task(self.criterion), {"optimizer": optimizer}
        with measured() as watch:
            Trainer(task, model, self.loader, optimizers, self.settings, logger=logger, hooks=hooks).fit()
        return watch.cpu_s

    def row(self, work: str, hand: str, goal: float, rounds: int, train: Work | None = None) -> Row:
        """Measure `train`, by default with logging off."""
        ours, by_hand = interleave(train or self.ours, self.by_hand, rounds)
        return Row(work, hand, goal, ours, by_hand, self.epochs * len(self.loader), "step")


class CompiledCase(Case):
    """The same where the step is compiled; that was done before it is measured."""

    def ours(self) -> float:
        """Train with the trainer, logging off."""
        model, optimizer = self.prepare(is_ours=True)
        trainer = Trainer(Task(self.criterion), model, self.loader, {"optimizer": optimizer}, self.settings)
        trainer.step.make([next(iter(self.loader.batches()))])
        with measured() as watch:
            trainer.fit()
        return watch.cpu_s


@contextmanager
def terminal() -> Iterator[None]:
    """Make standard error a terminal nobody looks at, so that the bar is drawn."""
    shown = sys.stderr
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        nowhere.isatty = lambda: True  # type: ignore[method-assign]
        sys.stderr = nowhere
        try:
            yield
        finally:
            sys.stderr = shown


@contextmanager
def printing(folder: Path) -> Iterator[None]:
    """Send the log to standard output, at which nobody looks, and to a file, as `train.py` does."""
    root, shown = logging.getLogger(), sys.stdout
    handlers = root.handlers[:]
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        sys.stdout = nowhere
        setup_console()
        log_to_file(folder / "log.txt")
        try:
            yield
        finally:
            log_to_file(None)
            root.handlers[:], sys.stdout = handlers, shown
            LOG.setLevel(logging.NOTSET)
            logging.captureWarnings(False)


def shuffled(inputs: Tensor, targets: Tensor, batch_size: int) -> Batches:
    """Return a good loader written by hand: whole batches picked from tensors by a permutation."""

    def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(inputs))
        for first in range(0, len(inputs), batch_size):
            rows = order[first : first + batch_size]
            yield inputs[rows], targets[rows]

    return batches


def tiny_rows(rounds: int) -> Iterator[Row]:
    """Linear regression with 8 features in batches of 32, 3000 or 1 an epoch: nearly nothing but overhead."""
    torch.manual_seed(0)
    hand = "loop by hand, whole batches"
    for num_rows, epochs, work, goals in (
        (96_000, 1, "tiny regression step", (1.03, 1.08)),
        (32, 300, "one-step epochs", (1.3, 1.3)),
    ):
        inputs, targets = torch.randn(num_rows, 8), torch.randn(num_rows, 1)
        part, batches = Part("train", TensorDataset(inputs, targets)), shuffled(inputs, targets, 32)
        case = Case(lambda: nn.Linear(8, 1), nn.MSELoss(), SGD, part, 32, batches, epochs)
        yield case.row(f"{work}, logging off", hand, goals[0], rounds)
        yield case.row(f"{work}, TensorBoard, CSV, bar", hand, goals[1], rounds, case.ours_with_defaults)
        if num_rows == 32:
            yield case.row(f"{work}, those and a printed line for each", hand, goals[1], rounds, case.ours_with_lines)


def tiny_compiled(rounds: int) -> Iterator[Row]:
    """The tiny step compiled, against the same eager loop."""
    torch.manual_seed(0)
    inputs, targets = torch.randn(96_000, 8), torch.randn(96_000, 1)
    part, batches = Part("train", TensorDataset(inputs, targets)), shuffled(inputs, targets, 32)
    case = CompiledCase(lambda: nn.Linear(8, 1), nn.MSELoss(), SGD, part, 32, batches, settings={"compile": True})
    yield case.row("tiny regression step, compiled, logging off", "eager loop by hand, whole batches", 0.6, rounds)


def same_loader_rows(rounds: int) -> Iterator[Row]:
    """Models of usual size, on batches from our loader in both loops."""
    hand = "loop by hand, our loader"
    images = TensorDataset(torch.randn(10_240, 1, 28, 28), torch.randint(10, (10_240,)))
    lenet = Case(LeNet, nn.CrossEntropyLoss(), ADAMW, Part("train", images), 128)
    yield lenet.row("LeNet step, batch 128", hand, 1.02, min(rounds, 5))
    inputs, targets = torch.randn(204_800, 32), torch.randn(204_800, 1)
    table = Part("train", TensorDataset(inputs, targets))
    yield Case(tabular_model, nn.MSELoss(), ADAMW, table, 1024).row("tabular step, batch 1024", hand, 1.02, 3 * rounds)


def tabular_model() -> nn.Module:
    """Return two hidden layers of 64."""
    return MLP(in_features=32, hidden=[64, 64], out_features=1)


def tabular_epoch(rounds: int) -> Iterator[Row]:
    """An epoch over a million rows of 32 numbers."""
    inputs, targets = torch.randn(1_000_000, 32), torch.randn(1_000_000, 1)
    dataset = TensorDataset(inputs, targets)
    by_hand = DataLoader(dataset, batch_size=1024, shuffle=True)
    case = Case(tabular_model, nn.MSELoss(), ADAMW, Part("train", dataset), 1024, lambda epoch: by_hand)
    hand = "loop by hand, DataLoader(TensorDataset)"
    yield case.row("tabular epoch, 1M x 32", hand, 0.43, min(rounds, 3))


def evaluation(rounds: int) -> Iterator[Row]:
    """Evaluation of LeNet."""
    torch.manual_seed(0)
    images = TensorDataset(torch.randn(10_240, 1, 28, 28), torch.randint(10, (10_240,)))
    loader = Loader(Part("val", images), LoaderSettings(batch_size=256), shuffle=False, seed=0)
    model, criterion, task = LeNet(), nn.CrossEntropyLoss(), Task(nn.CrossEntropyLoss())
    meters = Meters(MetricSet({}), torch.device("cpu"))

    def ours() -> float:
        with measured() as watch:
            evaluate(task, model, loader, meters)
        return watch.cpu_s

    def by_hand() -> float:
        total = 0.0
        with measured() as watch:
            model.eval()
            with torch.no_grad():
                for inputs, targets in loader.batches():
                    total += criterion(model(inputs), targets).item() * len(inputs)
            model.train()
        assert total > 0
        return watch.cpu_s

    times = interleave(ours, by_hand, rounds)
    yield Row("evaluation, LeNet, batch 256", "no-grad loop by hand, our loader", 1.02, *times, len(loader), "step")
