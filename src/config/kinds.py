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

_NEEDED = {
    "data": "a class with __len__ and __getitem__, or with __iter__",
    "metrics": "a function of (outputs, targets), or a class with update, compute and reset",
    "model": "a class derived from torch.nn.Module",
    "loss": "a function of (outputs, targets), or a class derived from torch.nn.Module",
    "optimizer": "a class derived from torch.optim.Optimizer",
    "lr_scheduler": "a class derived from LRScheduler of torch.optim.lr_scheduler",
    "task": "a class derived from Task of src.trainer.task",
    "sampler": "a class with __iter__ that yields row numbers",
    "batch_sampler": "a class with __iter__ that yields lists of row numbers",
}
"""What a kind asks for, in words."""

_BASES = {"data": "Dataset", "sampler": "Sampler", "batch_sampler": "Sampler", "model": "Module", "module": "Module"}
_BASES |= {"loss": "Module", "metrics": "Metric", "optimizer": "Optimizer", "lr_scheduler": "LRScheduler"}
_BASES |= {"task": "Task", "hooks": "Hook", "sinks": "Sink"}
"""How the name of a base class of a kind ends."""

_NAMES = {"sampler": r"(?!Batch)\w*Sampler", "batch_sampler": r"\w*BatchSampler", "collate_fn": r"\w*collate\w*|pad"}
_NAMES |= {"tokenizer": r"words|characters|\w*[Tt]okenize\w*", "worker_init_fn": r"\w*init\w*"}
_CLASS_NAMES = {"loss": r"\w*Loss", "model": r"(?!\w*Loss)\w+", "module": r"(?!\w*Loss)\w+"}
"""How components of a kind are called, where what they are made of would fit another kind, too."""

_LIBRARY_NAMES = {
    "model": r"(?!\w*(Loss|Buffer|Parameter|Parallel|Base|Options|Container)|Module)\w+",
    "loss": r"\w*(Loss|_loss|entropy|kl_div)\w*",
    "metrics": r"[A-Z]\w*|\w+_(score|loss|error|coef|deviance|measure)",
    "optimizer": r"(?!Optimizer)\w+",
    "lr_scheduler": r"(?!LRScheduler|Lambda|Multiplicative|Sequential|Chained)\w+",
    "sampler": r"(?!Batch|Distributed)\w+Sampler",
}
_LIBRARY_NAMES |= {"module": _LIBRARY_NAMES["model"], "batch_sampler": "BatchSampler", "collate_fn": r"\w+_collate"}
"""What of a library a config has a use for: no bases of others, and nothing that takes functions or objects."""

_WRITABLE = {
    "Any",
    "Literal",
    "Sequence",
    "Mapping",
    "Iterable",
    "Tensor",
    "Union",
    "Optional",
    "List",
    "Dict",
    "Tuple",
}


def is_module(value: Any) -> bool:
    """Says whether an argument is itself to be built: a mapping of `type`, alone or with `args`."""
    return isinstance(value, Mapping) and isinstance(value.get("type"), str) and set(value) <= {"type", "args"}


def looks_like(kind: str, name: str, definition: Definition) -> bool:
    """Guesses from the source text whether something is of a kind: the list of known names shows these."""
    base = _BASES.get(kind, "")
    if not re.fullmatch(_NAMES.get(kind, r"\w+"), name):
        return False
    if definition.how == "def" and not definition.returns.endswith(tuple(_BASES.values())):
        return len(definition.needs) == USED_AS_IS.get(kind)
    if definition.how not in ("class", "def"):
        return definition.how == "passed on"
    if not re.fullmatch(_CLASS_NAMES.get(kind, r"\w+"), name):
        return False
    if name == base:
        return kind == "task"  # the one base that is of use by itself
    if _is_made_as(definition, base):
        return True
    is_of_others = any(_is_made_as(definition, other) for other in _BASES.values())
    is_known_by_methods = kind not in ("optimizer", "lr_scheduler", "task") and not is_of_others
    return is_known_by_methods and not set(_METHODS[kind]).isdisjoint(definition.methods)


def is_for_configs(kind: str, definition: Definition) -> bool:
    """Guesses whether one of our own rooms has something for configs: of the kind's base, and made of plain values."""
    base = _BASES.get(kind, "")
    if not _is_made_as(definition, base):
        return False
    provided = PROVIDED.get(kind, (0, frozenset[str]()))[1]
    return all(_WRITABLE.issuperset(needs) for name, needs in definition.needs.items() if name not in provided)


def is_in_library(kind: str, name: str) -> bool:
    """Says whether a library's name is shown for a kind."""
    return re.fullmatch(_LIBRARY_NAMES[kind], name) is not None


def _is_made_as(definition: Definition, base: str) -> bool:
    """Says whether a class derives from a base, or a function says that it returns one."""
    return base != "" and any(each.endswith(base) for each in (*definition.bases, definition.returns))


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
    if kind == "task" and "Task" not in (base.__name__ for base in part.__mro__):
        return False
    if kind == "metrics" and not callable(_own_attribute(part, "__call__")):
        return all(callable(_own_attribute(part, name)) for name in ("update", "compute", "reset"))
    return any(callable(_own_attribute(part, name)) for name in _METHODS[kind])


def _own_attribute(part: type, name: str) -> Any:
    """Looks a method up in the class itself: `type` has a `__call__` of its own."""
    return next((vars(base)[name] for base in part.__mro__ if name in vars(base)), None)


def described(kind: str, part: Any) -> str:
    """Says in a message what an imported thing is, and what a kind asks for instead."""
    needed = f"; {_NEEDED[kind]} is needed" if kind in _NEEDED else ""
    where = f"{getattr(part, '__module__', '?')}.{getattr(part, '__qualname__', '?')}"
    if isinstance(part, type):
        return f"class {where}{needed}"
    return (f"function {where}" if callable(part) else f"a {type(part).__name__}") + needed
