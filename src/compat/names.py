"""Their config against the code it names, before any of it is built: all mistakes in one report."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn, optim
from torch.optim import lr_scheduler

from src.compat.command_line import Request
from src.compat.dialect import VALID_LOADERS
from src.compat.project import Project, find_project, open_project
from src.config.mistakes import KeyPath, Mistakes
from src.config.settings import Component
from src.config.signatures import check_names
from src.utils.errors import ConfigError

POSITIONAL = {"optimizer": 1, "lr_scheduler": 1, "loss": 2, "metrics": 2}
"""Sections whose class or function is given so many arguments by the run; of loss and metrics that is a function."""


def open_checked(request: Request) -> tuple[Path, Project]:
    """Return the folder and the modules of the project that a command line means.

    Raises:
        ConfigError: There is none, or the config is wrong: all that is, one a line, each with its place.
    """
    folder, mistakes = find_project(request.project, request.config_path), request.mistakes
    try:
        project = open_project(folder)
    except ConfigError as error:
        raise ConfigError("\n".join([*mistakes.lines, str(error)])) from error
    note_names(request.config, project, mistakes)
    mistakes.stop_if_any()
    return folder, project


def note_names(config: Mapping[str, Any], project: Project, mistakes: Mistakes) -> None:
    """Note names that the code does not have, and arguments that do not fit their signatures."""
    homes: dict[str, Sequence[Any]] = {
        "data_loader": [project.data],
        VALID_LOADERS[0]: [project.data],
        "arch": [project.model],
        "loss": [project.loss, nn],
        "optimizer": [optim],
        "lr_scheduler": [lr_scheduler],
    }
    for section, modules in homes.items():
        if config.get(section):
            _note((section,), config[section], project, modules, mistakes)
    metrics = config.get("metrics") or []
    if not isinstance(metrics, list):
        mistakes.add(("metrics",), "a list of functions of model/metric.py is needed")
        return
    for index, metric in enumerate(metrics):
        _note(("metrics", index), metric, project, [project.metric], mistakes)


def _note(path: KeyPath, written: Any, project: Project, modules: Sequence[Any], mistakes: Mistakes) -> None:
    """Note what is wrong with one component; what is no component at all is noted where its section is read."""
    section = str(path[0])
    name, args = (written.get("type"), written.get("args") or {}) if isinstance(written, Mapping) else (written, {})
    if not isinstance(name, str) or not isinstance(args, Mapping):
        if not mistakes.touch(section):
            mistakes.add(path, f'a name, or {{"type": NAME, "args": {{...}}}}, is needed, found {written!r}')
        return
    try:
        target = project.find(section, name, modules)
    except ConfigError as error:
        place = mistakes.place((*path, "type") if isinstance(written, Mapping) else path)
        mistakes.add_at(f"{place} {section}", str(error).removeprefix(f"{section}: "))
        return
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):
        return
    count = 0 if section in ("loss", "metrics") and isinstance(target, type) else POSITIONAL.get(section, 0)
    check_names(target, Component(name, args), list(parameters)[:count], ("config",), path, mistakes)
