"""Checked components -> objects."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from src.config.checks import tokenizer_of
from src.config.kinds import USED_AS_IS, is_module
from src.config.references import with_values
from src.config.registry import find
from src.config.settings import Component, Config
from src.config.signatures import hints_of
from src.data.parts.part import Part
from src.data.parts.split import fit_parts, make_parts
from src.utils.errors import ConfigError, DataError, KeelError
from src.utils.own_line import own_line
from src.utils.secrets import is_hidden

log = logging.getLogger(__name__)


def build(
    kind: str, component: Component, *args: Any, available: Mapping[str, object] | None = None, **provided: Any
) -> Any:
    """Calls what a component names.

    A plain function of a kind that is itself a function (loss, metrics, transforms, ...) is not called but returned
    with its arguments bound.

    Args:
        kind: A key of `registry.HOMES`.
        component: Its `args` win over `provided`.
        *args: Leading positional arguments, e.g. the parameters for an optimizer.
        available: What references such as `${data.num_classes}` find: built objects by the name of their section.
        **provided: What the run knows; passed on as far as the signature has it.

    Raises:
        ConfigError: The name is unknown, or the constructor raises. A `KeelError` of the constructor stays what it is.
            Either says where the component was written, or the key of the argument that its message begins with.
    """
    target = find(kind, component.type)
    given = with_values(component.args, available or {})  # a fresh copy: a constructor must not change the config
    for key, value in given.items():
        if is_hidden(value):
            raise ConfigError(
                f"{kind} {component.type}: `{key}` holds a secret, which runs do not keep; give it again, best as "
                f"${{env:NAME}}{_written_at(component)}"
            )
    if kind in ("model", "module"):
        given = {name: _with_modules(value) for name, value in given.items()}
    given = _with_tensors(target, {**_wanted(target, provided, given), **given})
    if log.isEnabledFor(logging.DEBUG):
        log.debug(
            "%-6s %s(%s)", kind, component.type, ", ".join(f"{key}={_short(each)}" for key, each in given.items())
        )
    if kind in USED_AS_IS and not isinstance(target, type) and not inspect.ismethod(target):
        return functools.partial(target, *args, **given) if args or given else target
    try:
        return target(*args, **given)
    except MemoryError:
        raise
    except KeelError as error:
        raise type(error)(_with_key(str(error), component)) from error
    except Exception as error:
        text = next(iter(str(error).splitlines()), "").removesuffix(", but expected one of:")  # torch lists overloads
        is_told = isinstance(error, ValueError) and text
        message = text if is_told else f"{type(error).__name__}: {text}{own_line(error, ('src/config/build.py',))}"
        chosen = DataError if kind == "data" and isinstance(error, OSError) else ConfigError
        raise chosen(f"{kind} {component.type}(...): {message}{_written_at(component)}") from error


def _with_modules(value: Any) -> Any:
    """Returns an argument of a model with every part that is described in it built."""
    if is_module(value):
        return build("module", Component(value["type"], value.get("args") or {}))
    if isinstance(value, Mapping):
        return {key: _with_modules(child) for key, child in value.items()}
    return [_with_modules(child) for child in value] if isinstance(value, list) else value


def _short(value: Any) -> str:
    """Returns an argument in so few words that a line holds several."""
    if isinstance(value, Tensor):
        return f"tensor{list(value.shape)}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _with_key(text: str, component: Component) -> str:
    """Returns a message with the place of the component; with the whole key if it begins with an argument of it."""
    name, key = text.partition(":")[0], component.place.rpartition(" ")[2]
    return f"{key}.args.{text}" if key and name in component.args else f"{text}{_written_at(component)}"


def _written_at(component: Component) -> str:
    return f" ({component.place})" if component.place else ""


def defaults(kind: str, name: str) -> dict[str, Any]:
    """Returns the arguments of a component that need not be given, with their values."""
    try:
        parameters = inspect.signature(find(kind, name)).parameters
    except (TypeError, ValueError):
        return {}
    return {key: each.default for key, each in parameters.items() if each.default is not each.empty}


def build_parts(config: Config, data_state: Mapping[str, Any] | None = None) -> dict[str, Part]:
    """Builds datasets and transforms, and divides them into the parts of the run.

    Args:
        config: Checked.
        data_state: What the data learned from the training rows in an earlier run; `None` learns it anew.

    Raises:
        DataError: Of all datasets that cannot be read, one a line.
    """
    data = config.data
    named = {} if data.source is None else {"train": data.source}
    named |= {name: part.type for name, part in data.parts.items() if part.type is not None}
    datasets = _build_datasets(named)
    own = {
        name: [build("transforms", each) for each in part.transforms]
        for name, part in data.parts.items()
        if part.transforms is not None
    }
    common = [build("transforms", each) for each in data.transforms]
    parts = make_parts(datasets, data.split, common, own, config.seed)
    fit_parts(parts, data_state)
    return parts


def _build_datasets(named: Mapping[str, Component]) -> dict[str, Any]:
    datasets: dict[str, Any] = {}
    wrong: list[str] = []
    for name, component in named.items():
        try:
            datasets[name] = build_dataset(component)
        except DataError as error:
            wrong.append(str(error))
    if wrong:
        raise DataError("\n".join(wrong))
    return datasets


def build_dataset(dataset: Component) -> Any:
    """Builds a dataset, the tokenizer among its arguments first."""
    tokenizer = tokenizer_of(dataset)
    if tokenizer is not None:
        dataset = replace(dataset, args={**dataset.args, "tokenizer": build("tokenizer", tokenizer)})
    return build("data", dataset)


def _with_tensors(target: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Returns arguments with lists and arrays of numbers as float tensors where the signature asks for a tensor."""
    if not any(isinstance(value, list | np.ndarray) for value in given.values()):
        return given
    hints = hints_of(target)
    return {
        name: torch.tensor(value, dtype=torch.get_default_dtype())
        if isinstance(value, list | np.ndarray) and Tensor in (hints.get(name), *get_args(hints.get(name)))
        else value
        for name, value in given.items()
    }


def _wanted(target: Any, provided: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what of `provided` the signature asks for and the config does not settle."""
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):
        return {}
    if "epochs" in given or "steps_per_epoch" in given:  # the other way to tell OneCycleLR its length
        provided = {name: value for name, value in provided.items() if name != "total_steps"}
    return {name: value for name, value in provided.items() if name in parameters and name not in given}
