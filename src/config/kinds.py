"""What the kinds of components are: which objects are of a kind, and how one is made of a class or function."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any

from src.config.catalogue import Definition

WORDS = {"data": "dataset", "transforms": "transform", "metrics": "metric", "hooks": "hook", "sinks": "sink"}
WORDS |= {"module": "part of a model"}
"""What one component of a kind is called where that is not the name of its section."""

USED_AS_IS = {"transforms": 1, "tokenizer": 1, "loss": 2, "metrics": 2, "collate_fn": 1, "worker_init_fn": 1}
"""Kinds of which a plain function is the component itself, and with how many positional arguments it is called."""

PROVIDED: dict[str, tuple[int, frozenset[str]]] = {
    "optimizer": (1, frozenset({"params"})),
    "lr_scheduler": (1, frozenset({"optimizer", "total_steps", "T_max"})),
    "task": (0, frozenset({"criterion"})),
    "sinks": (0, frozenset({"run_path"})),
    "sampler": (0, frozenset({"part", "generator", "data_source", "num_samples"})),
    "batch_sampler": (0, frozenset({"part", "generator", "data_source", "num_samples", "sampler"})),
}
"""What the run fills in: how many leading positional arguments, and which arguments by name."""


_METHODS: dict[str, tuple[str, ...]] = {
    "data": ("__getitem__", "__getitems__", "__iter__"),
    "transforms": ("__call__", "forward"),
    "tokenizer": ("encode", "__call__"),
    "collate_fn": ("__call__",),
    "worker_init_fn": ("__call__",),
    "sampler": ("__iter__",),
    "batch_sampler": ("__iter__",),
    "model": ("forward",),
    "module": ("forward",),
    "loss": ("forward",),
    "metrics": ("update", "__call__"),
    "optimizer": ("step",),
    "lr_scheduler": ("get_lr", "step"),
    "task": ("step", "update"),
    "hooks": ("on_fit_start", "on_step_end", "on_evaluation_end", "on_epoch_end", "on_fit_end"),
    "sinks": ("scalars",),
}
"""A class of a kind has at least one of these."""

_BASES: dict[str, str] = {"data": "Dataset", "model": "Module", "loss": "Module", "optimizer": "Optimizer"}
_BASES |= {"module": "Module"}
_BASES |= {"lr_scheduler": "LRScheduler", "task": "Task", "hooks": "Hook", "metrics": "Metric", "sinks": "Sink"}


_NAMES = {"loss": r"\w*(Loss|_loss|entropy|kl_div)\w*", "model": r"(?!\w*Loss|\w*Buffer|\w*Parameter)\w+"}
_NAMES |= {"sampler": r"(?!Batch)\w*Sampler", "batch_sampler": r"Batch\w*Sampler", "collate_fn": r"\w*collate\w*"}
_NAMES |= {"tokenizer": r"words|characters|\w*[Tt]okenizer\w*"}
_NAMES |= {"module": _NAMES["model"]}


def is_module(value: Any) -> bool:
    """Says whether an argument is itself to be built: a mapping of `type`, alone or with `args`."""
    return isinstance(value, Mapping) and isinstance(value.get("type"), str) and set(value) <= {"type", "args"}


def looks_like(kind: str, name: str, definition: Definition) -> bool:
    """Guesses from the source text whether something is of a kind: the list of known names shows these."""
    if not re.fullmatch(_NAMES.get(kind, r"\w+"), name):
        return False
    if definition.how != "class":
        return definition.how != "def" or kind in ("loss", "collate_fn")
    if kind in _BASES and any(base.endswith(_BASES[kind]) for base in definition.bases):
        return True
    return kind not in ("optimizer", "lr_scheduler", "task") and not set(_METHODS[kind]).isdisjoint(definition.methods)


def looks_own(kind: str, definition: Definition) -> bool:
    """Guesses whether a file that is itself a home defines something for configs, and not for its own use."""
    if definition.how == "class":
        return bool(definition.bases) or not set(_METHODS[kind]).isdisjoint(definition.methods)
    return definition.how == "def" and kind in USED_AS_IS


def is_right_kind(kind: str, part: Any) -> bool:
    """Says whether an object can be a component of a kind: a class of it, or a function that makes or is one."""
    if not isinstance(part, type):
        is_function = inspect.isroutine(part) or isinstance(part, functools.partial)
        return is_function and kind not in ("hooks", "task", "sinks")
    if kind in ("model", "module", "loss"):
        from torch import nn

        is_settings = kind == "module" and is_dataclass(part)  # what a library's function takes besides a model
        return (
            issubclass(part, nn.Module) or is_settings or (kind == "loss" and callable(getattr(part, "forward", None)))
        )
    if kind == "optimizer":
        from torch.optim import Optimizer

        return issubclass(part, Optimizer)
    if kind == "lr_scheduler":
        from torch.optim.lr_scheduler import LRScheduler

        return issubclass(part, LRScheduler) or hasattr(part, "step")
    return any(callable(_own_attribute(part, name)) for name in _METHODS[kind])


def _own_attribute(part: type, name: str) -> Any:
    """Looks a method up in the class itself: `type` has a `__call__` of its own."""
    return next((vars(base)[name] for base in part.__mro__ if name in vars(base)), None)


def described(part: Any) -> str:
    """What an imported thing is, for a message."""
    if isinstance(part, type):
        return f"class {part.__module__}.{part.__qualname__}"
    if callable(part):
        return f"function {getattr(part, '__module__', '?')}.{getattr(part, '__qualname__', '?')}"
    return f"a {type(part).__name__}"
