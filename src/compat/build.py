"""Their words become objects, by their rules and in their order: data, model, loss, metrics, optimizer, schedule."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial, update_wrapper
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer, lr_scheduler

from src.compat.dialect import VALID_LOADERS
from src.compat.loader import TheirLoader
from src.compat.project import Project
from src.compat.their_config import ConfigParser, merged_arguments
from src.model.metric import MetricSet
from src.trainer.task import Task
from src.utils.errors import ConfigError
from src.utils.seed import seed_everything

SEED = 123
"""The seed that their `train.py` fixes."""
log = logging.getLogger(__name__)


@dataclass
class Parts:
    """What a run of theirs is made of."""

    loaders: dict[str, TheirLoader]
    model: nn.Module
    task: Task
    metrics: MetricSet
    optimizer: Optimizer
    scheduler: lr_scheduler.LRScheduler | None


def build_parts(config: ConfigParser, project: Project) -> Parts:
    """Build everything a training needs, from the seed that their `train.py` fixes."""
    seed_everything(SEED)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    loaders = build_loaders(config, project)
    model = build_model(config, project)
    task = Task(build_loss(config, project))
    metrics = build_metrics(config, project)
    trainable = (parameter for parameter in model.parameters() if parameter.requires_grad)
    optimizer = make(
        config, "optimizer", project.find("optimizer", config["optimizer"]["type"], [torch.optim]), trainable
    )
    scheduler = None
    if config.get("lr_scheduler"):
        kind = config["lr_scheduler"]["type"]
        scheduler = make(config, "lr_scheduler", getattr_or_refuse("lr_scheduler", lr_scheduler, kind), optimizer)
    return Parts(loaders, model, task, metrics, optimizer, scheduler)


def build_loaders(config: ConfigParser, project: Project) -> dict[str, TheirLoader]:
    """Build the loader that trains, and the one that validates if there is one."""
    train = make(config, "data_loader", project.find("data_loader", config["data_loader"]["type"], [project.data]))
    split = getattr(train, "split_validation", None)
    valid = split() if split is not None else None
    if config.get(VALID_LOADERS[0]):
        if valid is not None:
            raise ConfigError(f"{VALID_LOADERS[0]} and data_loader.args.validation_split exclude each other; keep one")
        kind = config[VALID_LOADERS[0]]["type"]
        valid = make(config, VALID_LOADERS[0], project.find(VALID_LOADERS[0], kind, [project.data]))
    loaders = {"train": TheirLoader("train", train)}
    return loaders if valid is None else {**loaders, "val": TheirLoader("val", valid)}


def build_model(config: ConfigParser, project: Project) -> nn.Module:
    """Build the model of section `arch`."""
    model = make(config, "arch", project.find("arch", config["arch"]["type"], [project.model]))
    if not isinstance(model, nn.Module):
        raise ConfigError(f"arch: {config['arch']['type']} gives a {type(model).__name__}, a torch.nn.Module is needed")
    return model


def build_loss(config: ConfigParser, project: Project) -> Callable[..., Any]:
    """Return their function, or with `type` and `args` what these make."""
    return _function("loss", config["loss"], project, [project.loss, nn])


def build_metrics(config: ConfigParser, project: Project) -> MetricSet:
    """Return their functions, logged under their own names."""
    found = [_function("metrics", each, project, [project.metric]) for each in config.get("metrics") or []]
    return MetricSet({metric.__name__: metric for metric in found})


def _function(section: str, written: Any, project: Project, modules: list[Any]) -> Callable[..., Any]:
    name, args = (written["type"], written.get("args") or {}) if isinstance(written, Mapping) else (written, {})
    found = project.find(section, name, modules)
    if isinstance(found, type):
        return found(**args)  # type: ignore[no-any-return]
    return update_wrapper(partial(found, **args), found) if args else found


def getattr_or_refuse(section: str, module: Any, name: str) -> Callable[..., Any]:
    """Return a class of a torch module."""
    found = getattr(module, name, None)
    if not isinstance(found, type):
        raise ConfigError(f"{section}: no `{name}` in {module.__name__}")
    return found


def make(config: ConfigParser, section: str, kind: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a class or function with the `args` of its section as keywords, and with `config` if it asks for it.

    Raises:
        ConfigError: The arguments do not fit.
    """
    arguments = merged_arguments(section, config[section].get("args") or {}, kwargs)
    try:
        signature = inspect.signature(kind)
    except (TypeError, ValueError):
        return kind(*args, **arguments)
    wanted = signature.parameters.get("config")
    if wanted is not None and wanted.default is inspect.Parameter.empty and "config" not in arguments:
        arguments["config"] = config
    try:
        signature.bind(*args, **arguments)
    except TypeError as error:
        raise ConfigError(f"{section}.args: {kind.__name__}: {error}; it takes {signature}") from error
    return kind(*args, **arguments)
