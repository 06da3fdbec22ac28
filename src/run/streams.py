"""Finding components that draw from a random stream nobody owns: such a run cannot be repeated, nor resumed exactly.

For `--check`: a short run, and one that is built anew and goes on from its middle, are compared bit for bit.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from src.config.settings import Config
from src.data.parts.part import Part
from src.logger.logger import Logger
from src.run.experiment import build_experiment, build_trainer
from src.trainer.faults.before_step import BeforeStep, same_bits
from src.trainer.faults.nonfinite import tensors_in
from src.trainer.task import Task
from src.trainer.trainer import Trainer
from src.utils.device import to_device
from src.utils.nested import parts_of
from src.utils.seed import forked_rng, seed_everything, seed_host

NUM_STEPS = 4
"""Of the short run, if an epoch has as many."""
ADVICE = "draw from the global streams of torch, numpy or random, which are seeded and saved"
COMPARED = ("model", "criterion", "ema", "optimizer", "task")


def unowned_streams(config: Config, device: torch.device, folder: Path) -> list[str]:
    """Return a warning for what the same seed does not make the same, and names the component as well as can be.

    Nothing is found on a GPU without `trainer.deterministic`: there two equal runs differ anyway.

    Args:
        config: Checked.
        device: Of the run.
        folder: Where nothing is written.
    """
    if device.type != "cpu" and not config.trainer.deterministic:
        return []
    alone = replace(config.loader, num_workers=0, prefetch_factor=None, persistent_workers=None)
    others = {name: replace(each, num_workers=0, prefetch_factor=None) for name, each in config.part_loaders.items()}
    config = replace(config, loader=alone, part_loaders=others)
    first = _begin(config, device, folder)
    start = copy.deepcopy(first.model.state_dict())
    first_batches = list(islice(first.train_loader.batches(), NUM_STEPS * first.settings.accumulate_steps))
    size = first.settings.accumulate_steps
    middle = len(first_batches) // size // 2 * size
    _train(first, first_batches[:middle])
    state = copy.deepcopy(first.state_dict())
    _train(first, first_batches[middle:])

    second = _begin(config, device, folder)
    differing = [name for name, value in second.model.state_dict().items() if not same_bits(value, start[name])]
    if differing:
        return [f"model: the initial {differing[0]} is another each time it is made with the same seed; {ADVICE}"]
    second.load_state_dict(state)
    second_batches = list(islice(second.train_loader.batches(0, middle), len(first_batches) - middle))
    if not _equal(first_batches[middle:], second_batches):
        return [f"{_guilty_of_data(second)} in the same epoch for the same row; {ADVICE}"]
    _train(second, second_batches)
    ends = [{k: v for k, v in each.state_dict().items() if k.split(".")[0] in COMPARED} for each in (first, second)]
    if _equal(*ends):
        return []
    return [f"{_guilty_of_a_step(second, second_batches)}; {ADVICE}"]


def _begin(config: Config, device: torch.device, folder: Path) -> Trainer:
    seed_everything(config.seed)
    experiment = build_experiment(config, device)
    return build_trainer(config, experiment, device, Logger([]), folder)


def _train(trainer: Trainer, batches: list[Any]) -> None:
    trainer.freezing.begin(0)
    if trainer.progress.batch == 0:
        trainer.task.begin("train", 0)
    trainer.model.train()
    rest = iter(batches)
    while group := tuple(islice(rest, trainer.settings.accumulate_steps)):
        trainer.step.make(group)
        trainer.advance(len(group))


def _equal(one: Any, two: Any) -> bool:
    left, right = tensors_in(one), tensors_in(two)
    pairs = zip(left, right, strict=False)
    return len(left) == len(right) and all(a.shape == b.shape and same_bits(a, b) for a, b in pairs)


def _guilty_of_data(trainer: Trainer) -> str:
    """Return what of the training data is another when it is read again."""
    loader, part = trainer.train_loader, trainer.train_loader.part
    if part.is_iterable:
        return f"data: dataset {part.dataset_name} gives other samples"
    if loader.rows(0, 0, 4) != loader.rows(0, 0, 4):
        return "loader: its sampler gives another order"
    for row in part.row_ids()[:8].tolist():
        for name, values in _two_readings(part, row):
            if not _equal(*values):
                return f"data: {name} gives other values"
    return "loader: its collate_fn, or what the dataset does with whole batches, gives other values"


def _two_readings(part: Part, row: int) -> Iterator[tuple[str, list[Any]]]:
    """Yield the two results of each stage of reading a row, both from the same seed."""
    stages: list[tuple[str, Callable[[Any], Any]]] = [(f"dataset {part.dataset_name}", lambda _: part.dataset[row])]
    for transform in part.transforms:
        name = f"transform {getattr(transform, '__name__', type(transform).__name__)}"
        stages.append((name, partial(_on_inputs, transform)))
    sample: Any = None
    for name, stage in stages:
        values = []
        for _ in range(2):
            with forked_rng():
                seed_host(0)
                values.append([torch.as_tensor(each) for each in _leaves(stage(copy.deepcopy(sample)))])
        with forked_rng():
            seed_host(0)
            sample = stage(sample)
        yield name, values


def _on_inputs(transform: Any, sample: Any) -> Any:
    return (transform(sample[0]), *sample[1:]) if isinstance(sample, (tuple, list)) else transform(sample)


def _leaves(value: Any) -> list[Any]:
    """Return what of a sample can be compared."""
    if isinstance(value, (Tensor, int, float)) or hasattr(value, "__array__"):
        return [value]
    return [leaf for part in parts_of(value) for leaf in _leaves(part)]


def _guilty_of_a_step(trainer: Trainer, batches: list[Any]) -> str:
    """Return what of a step is another when it is done again from the same weights and streams."""
    if not hasattr(trainer.task, "update"):
        criterion = trainer.task.criterion
        before = BeforeStep([trainer.model, *([criterion] if isinstance(criterion, nn.Module) else [])], trainer.task)
        before.keep()
        runs = [_observed(trainer, batches[0], before.again()) for _ in range(2)]
        for (name, one), (_, two) in zip(*runs, strict=False):
            if not _equal(one, two):
                return f"{name} gives other values for the same inputs, weights and random streams"
    own = "its update" if hasattr(trainer.task, "update") else "its parts"
    who = f"task {type(trainer.task).__name__}" if type(trainer.task) is not Task else "the run"
    return f"{who}: one that was stopped and resumed ends with other weights, {own} remember what is in no checkpoint"


def _observed(trainer: Trainer, batch: Any, again: AbstractContextManager[None]) -> list[tuple[str, Any]]:
    """Return what each layer gave in one step, in order, then the outputs and the loss."""
    seen: list[tuple[str, Any]] = []

    def note(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        seen.append((name, [tensor.detach().clone() for tensor in tensors_in(output)]))

    hooks = [
        module.register_forward_hook(partial(note, f"model: {name or 'itself'} ({type(module).__name__})"))
        for name, module in trainer.model.named_modules()
    ]
    try:
        with again, torch.no_grad(), trainer.step.amp():
            output = trainer.task.step(trainer.model, to_device(batch, trainer.device))
    finally:
        for hook in hooks:
            hook.remove()
    task = type(trainer.task).__name__
    return [*seen, (f"task {task}, the outputs", output.outputs), (f"loss, or task {task},", output.loss)]
