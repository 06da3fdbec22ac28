"""Words become objects: what a config names, built in its fixed order and put together, for all entry scripts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from src.config.build import build, build_parts, defaults
from src.config.loaders import training_loader
from src.config.registry import find, folder_to_record
from src.config.settings import Component, Config, LossTerm, ScheduleSettings
from src.data.loading.loader import Loader
from src.data.loading.share import Share
from src.data.parts.content import fingerprint
from src.data.parts.facts import TrainingData
from src.data.parts.part import Part
from src.data.parts.split import DataMemory
from src.logger.logger import Logger, standard_sinks
from src.model.metric import MetricSet
from src.trainer.checkpoints.memory import TaskMemory
from src.trainer.criterion import Criteria, Criterion
from src.trainer.freezing import Freezing
from src.trainer.groups import check_groups, parameter_groups, scale_rates
from src.trainer.hooks import Hook
from src.trainer.optimizers import check_fused, known_way
from src.trainer.parallel.hollow import place_once
from src.trainer.profile import standard_traces
from src.trainer.rehearsal.rehearse import size_lazy_layers
from src.trainer.results.predictions import Meaning
from src.trainer.schedule import MADE_FOR_A_LENGTH, Schedule, check_ratios, count_steps, run_length
from src.trainer.step import needs_closure
from src.trainer.task import Task
from src.trainer.trainer import Trainer
from src.trainer.views import standard_hooks
from src.utils.errors import ConfigError
from src.utils.processes.ranks import ALONE, Ranks
from src.utils.secrets import masked


@dataclass
class Experiment:
    """What training and testing have in common."""

    parts: dict[str, Part]
    loaders: dict[str, Loader]
    model: nn.Module
    task: Task
    metrics: MetricSet
    freezing: Freezing
    available: Mapping[str, object]
    """What references such as `${data.num_classes}` find, by section."""

    made_with: Mapping[str, Any]
    """Arguments of the model, defaults included, by the key that changes them: `model.args.in_features`."""

    @property
    def val_loaders(self) -> dict[str, Loader]:
        """The parts to evaluate while training."""
        return {name: loader for name, loader in self.loaders.items() if name.split("_")[0] == "val"}


def build_experiment(
    config: Config, device: torch.device, data_state: Mapping[str, Any] | None = None, ranks: Ranks = ALONE
) -> Experiment:
    """Build data, model, task and metrics.

    Args:
        config: Checked by `check_components`.
        device: Where loss and model go.
        data_state: What the data learned from the training rows in an earlier run; None learns it anew.
        ranks: Of the run; each reads its share of every batch.
    """
    parts = build_parts(config, data_state)
    share = Share(ranks.rank, ranks.world_size)
    loaders = {name: training_loader(config, part, device, share) for name, part in parts.items()}
    steps_per_epoch, total_steps = count_steps(loaders["train"], config.trainer)
    length = {"steps_per_epoch": steps_per_epoch, "total_steps": total_steps}
    available: dict[str, object] = {"data": TrainingData(parts["train"]), "loader": length}
    build_own = partial(build_model, config.model, available)
    model = available["model"] = place_once(build_own, device, config.trainer, ranks)
    criterion = available["loss"] = build_criterion(config.loss, device, available)
    measures = {name: build("metrics", part, available=available) for name, part in config.metrics.items()}
    metrics = MetricSet(measures, getattr(parts["train"].dataset, "class_names", None))
    task = build("task", config.task, available=available, criterion=criterion)
    size_lazy_layers(task, model, loaders["train"], device)
    freezing = Freezing(model, config.parameters.freeze)
    return Experiment(parts, loaders, model, task, metrics, freezing, available, made_with(config.model))


def build_optimizers(config: Config, experiment: Experiment) -> tuple[dict[str, Optimizer], dict[str, Schedule]]:
    """Build optimizers and their schedules, under the names by which they are saved."""
    if config.optimizer is None:
        return {}, {}
    named = {"": config.optimizer} if isinstance(config.optimizer, Component) else config.optimizer
    schedules = config.lr_scheduler if isinstance(config.lr_scheduler, Mapping) else {"": config.lr_scheduler}
    optimizers, timed = {}, {}
    chosen = {name: parameter_groups(_parameters(experiment, name), config.parameters) for name in named}
    check_groups(experiment.model, config.parameters)
    for name, component in named.items():
        suffix = f".{name}" if name else ""
        available = experiment.available
        kind, parameters = find("optimizer", component.type), _parameters(experiment, name)
        way = known_way(kind, parameters.values(), component.args)
        optimizer: Optimizer = build("optimizer", component, chosen[name], available=available, **way)
        check_fused(optimizer, parameters)
        scale_rates(optimizer)
        if experiment.freezing.has_phases and needs_closure(optimizer):
            raise ConfigError(
                f"parameters.freeze: {component.type} goes on in directions of earlier steps, so what rests in some "
                "epochs would move; freeze it for the whole run"
            )
        optimizers[f"optimizer{suffix}"] = optimizer
        settings = schedules.get(name)
        timed[f"lr_scheduler{suffix}"] = _build_schedule(settings, optimizer, config, available)
    return optimizers, timed


def build_model(model: Component | Mapping[str, Component], available: Mapping[str, object]) -> nn.Module:
    """Build the model, or several by name; `available` is what references find."""
    if isinstance(model, Component):
        built: nn.Module = build("model", model, available=available)
        return built
    return nn.ModuleDict({name: build("model", part, available=available) for name, part in model.items()})


def made_with(model: Component | Mapping[str, Component]) -> dict[str, Any]:
    """Return what the models are made with, defaults included, by the key that changes it: `model.args.in_features`."""
    named = (
        {"model": model} if isinstance(model, Component) else {f"model.{name}": each for name, each in model.items()}
    )
    arguments: dict[str, Any] = {}
    for key, component in named.items():
        given = {**defaults("model", component.type), **component.args}
        arguments |= {f"{key}.args.{name}": value for name, value in given.items()}
    return arguments


def build_criterion(
    loss: Component | Mapping[str, LossTerm] | None, device: torch.device, available: Mapping[str, object]
) -> Criteria:
    """Build the loss, or several weighted terms by name; `available` is what references find.

    Raises:
        ConfigError: One of several terms has weights to train, which nothing would train or save.
    """
    if loss is None:
        return None
    if isinstance(loss, Component):
        return _on(build("loss", loss, available=available), device)
    terms = {name: (_on(build("loss", term, available=available), device), term.weight) for name, term in loss.items()}
    for name, (term, _) in terms.items():
        if isinstance(term, nn.Module) and any(each.requires_grad for each in term.parameters()):
            raise ConfigError(
                f"loss.{name}: {type(term).__name__} has weights of its own, which are trained only where it is the "
                "one loss; make it that, or keep the weights in the model"
            )
    return terms


def _on(criterion: Any, device: torch.device) -> Criterion:
    """Class weights and other buffers of a loss live where the model does."""
    if isinstance(criterion, partial):
        moved = {key: each.to(device) if isinstance(each, Tensor) else each for key, each in criterion.keywords.items()}
        return partial(criterion.func, *criterion.args, **moved)
    return criterion.to(device) if isinstance(criterion, nn.Module) else criterion


def _parameters(experiment: Experiment, name: str) -> dict[str, nn.Parameter]:
    """Return what an optimizer trains: the model of its name, or everything, the loss's own parameters included."""
    every = dict(experiment.model.named_parameters())
    if name:
        experiment.model.get_submodule(name)
        return {key: value for key, value in every.items() if key.startswith(f"{name}.")}
    criterion = experiment.task.criterion
    own = dict(criterion.named_parameters(prefix="loss")) if isinstance(criterion, nn.Module) else {}
    return {**every, **own}


def _build_schedule(
    settings: ScheduleSettings | None, optimizer: Optimizer, config: Config, available: Mapping[str, Any]
) -> Schedule:
    if settings is None:
        return Schedule(optimizer)
    steps_per_epoch, total_steps = available["loader"].values()
    length = run_length(settings.type, settings.args, settings.every, steps_per_epoch, total_steps)
    rates = [group["lr"] for group in optimizer.param_groups]
    try:
        scheduler = build("lr_scheduler", settings, optimizer, available=available, **length)
    except ConfigError as error:
        if "T_max" in length or settings.type not in MADE_FOR_A_LENGTH:
            raise
        raise ConfigError(
            f"{error}; the data have no length that would tell it: give trainer.max_steps with lr_scheduler.every=step"
        ) from error
    if not any(isinstance(value, list) for value in settings.args.values()):
        check_ratios(optimizer, rates, settings.type)
    monitor = (settings.monitor or config.trainer.monitor or "min val/loss").split()[-1]
    return Schedule(optimizer, scheduler, settings.every, settings.warmup_steps, monitor)


def build_trainer(
    config: Config,
    experiment: Experiment,
    device: torch.device,
    logger: Logger,
    checkpoints: Path,
    ranks: Ranks = ALONE,
) -> Trainer:
    """Build optimizers, schedules and hooks, and introduce everyone to the trainer; hooks may refuse."""
    optimizers, schedules = build_optimizers(config, experiment)
    meaning = Meaning.of(experiment.task.criterion, experiment.parts["train"].dataset)
    trainer = Trainer(
        experiment.task,
        experiment.model,
        experiment.loaders["train"],
        optimizers,
        config.trainer,
        schedules=schedules,
        val_loaders=experiment.val_loaders,
        metrics=experiment.metrics,
        logger=logger,
        checkpoints=checkpoints,
        hooks=[*build_hooks(config), *standard_traces(config.trainer.profile, checkpoints.parent)],
        device=device,
        memory={"data": DataMemory(experiment.parts), **task_memory(experiment.task, device, ranks)},
        record={
            "config": masked(config.as_dict()),
            "config_folder": folder_to_record(),
            "parts": fingerprint(experiment.parts),
            "num_classes": meaning.num_classes,
            "class_names": None if meaning.class_names is None else list(map(str, meaning.class_names)),
        },
        freezing=experiment.freezing,
        ranks=ranks,
    )
    for hook in trainer.hooks:
        hook.check(trainer)
    return trainer


def task_memory(task: Any, device: torch.device, ranks: Ranks) -> dict[str, Any]:
    """Return the task as part of a checkpoint, if it carries something from batch to batch."""
    return {"task": TaskMemory(task, device, ranks)} if hasattr(task, "state_dict") else {}


def build_sinks(config: Config, run_path: Path) -> list[Any]:
    """Build the places where numbers go: ours as the section `logger` asks for, then the user's."""
    own = [build("sinks", sink, run_path=run_path) for sink in config.logger.sinks]
    return [*standard_sinks(config.logger, run_path), *own]


def build_hooks(config: Config) -> list[Hook]:
    """Build the watchers: ours as the section `logger` asks for, then the user's."""
    return [*standard_hooks(config.logger), *(build("hooks", hook) for hook in config.hooks)]
