"""Checked components -> objects."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

from src.config.kinds import USED_AS_IS
from src.config.references import with_values
from src.config.registry import find
from src.config.settings import Component, Config
from src.data.part import Part
from src.data.split import fit_parts, make_parts
from src.utils.errors import ConfigError, DataError, KeelError


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
        ConfigError: The name is unknown, or the constructor raises. A `KeelError` of the constructor passes unchanged.
    """
    target = find(kind, component.type)
    given = with_values(component.args, available or {})  # a fresh copy: a constructor must not change the config
    given = {**_wanted(target, provided, given), **given}
    if kind in USED_AS_IS and not isinstance(target, type):
        return functools.partial(target, *args, **given) if args or given else target
    try:
        return target(*args, **given)
    except (KeelError, MemoryError):
        raise
    except Exception as error:
        message = str(error) if isinstance(error, ValueError) and str(error) else f"{type(error).__name__}: {error}"
        chosen = DataError if kind == "data" and isinstance(error, OSError) else ConfigError
        raise chosen(f"{kind} {component.type}(...): {message}") from error


def build_parts(config: Config, data_state: Mapping[str, Any] | None = None) -> dict[str, Part]:
    """Builds datasets and transforms, and divides them into the parts of the run.

    Args:
        config: Checked.
        data_state: What the data learned from the training rows in an earlier run; `None` learns it anew.
    """
    data = config.data
    datasets = {} if data.source is None else {"train": build("data", data.source)}
    for name, part in data.parts.items():
        if part.type is not None:
            datasets[name] = build("data", part.type)
    own = {
        name: [build("transforms", each) for each in part.transforms]
        for name, part in data.parts.items()
        if part.transforms is not None
    }
    common = [build("transforms", each) for each in data.transforms]
    parts = make_parts(datasets, data.split, common, own, config.seed)
    fit_parts(parts, data_state)
    return parts


def _wanted(target: Any, provided: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what of `provided` the signature asks for and the config does not settle."""
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):
        return {}
    if "epochs" in given or "steps_per_epoch" in given:  # the other way to tell OneCycleLR its length
        provided = {name: value for name, value in provided.items() if name != "total_steps"}
    return {name: value for name, value in provided.items() if name in parameters and name not in given}
