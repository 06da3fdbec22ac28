"""Plain values -> dataclasses, by their annotations. Every mistake is collected; reading goes on after it."""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from src.config.mistakes import KeyPath, Mistakes, found, nearest, unquoted
from src.config.references import Reference

INVALID: Any = type("Invalid", (), {"__repr__": lambda self: "INVALID"})()
"""Stands for a value whose mistake is already noted."""

Hint = Callable[[str, KeyPath, set[str]], str]

_SCALARS: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def read(annotation: Any, value: Any, path: KeyPath, mistakes: Mistakes, hint: Hint) -> Any:
    """Returns `value` as what `annotation` says, or `INVALID` after noting the mistake.

    Args:
        annotation: A scalar type, `Annotated` with bounds, `Literal`, union, `tuple[X, ...]`, mapping or dataclass.
        value: Plain values as they come from YAML.
        path: Where the value is, for messages.
        mistakes: Receives what is wrong.
        hint: `hint(key, path, known)` says what an unknown key may have been meant to be.
    """
    if annotation is Any:
        return value
    if isinstance(value, Reference):  # not below `args`, which is noted already
        return INVALID
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _read_bounded(arguments, value, path, mistakes, hint)
    if origin in (Union, types.UnionType):
        chosen = choose_arm(arguments, value)
        if chosen is None:
            mistakes.add(
                path, f"{describe(annotation)} is needed, found {found(value)}{meant_instead(annotation, value)}"
            )
            return INVALID
        return read(chosen, value, path, mistakes, hint)
    if not fits(annotation, value):
        mistakes.add(path, f"{describe(annotation)} is needed, found {found(value)}{meant_instead(annotation, value)}")
        return INVALID
    if annotation is float and not math.isfinite(value):
        mistakes.add(path, f"must be finite, found {value}")
        return INVALID
    if _is_settings(annotation):
        return read_fields(annotation, {"type": value} if isinstance(value, str) else value, path, mistakes, hint)
    if origin is tuple:
        items = [read(arguments[0], item, (*path, index), mistakes, hint) for index, item in enumerate(value)]
        return INVALID if INVALID in items else tuple(items)
    if origin in (dict, Mapping):
        entries = {key: read(arguments[1], item, (*path, key), mistakes, hint) for key, item in value.items()}
        return INVALID if INVALID in entries.values() else entries
    return value


def read_fields(cls: Any, value: Mapping[Any, Any], path: KeyPath, mistakes: Mistakes, hint: Hint) -> Any:
    """Returns an instance of the dataclass `cls`; a field with a mistake falls back on its default, if it has one."""
    annotations = annotations_of(cls)
    known = {each.name for each in fields(cls)} - {"places", "place"}
    factories = {each.name for each in fields(cls) if each.default_factory is not MISSING}
    ready: dict[str, Any] = {"place": mistakes.at(path)} if "place" in annotations else {}
    for key, item in value.items():
        if item is None and key in factories:
            continue  # `args:` with nothing below it
        if key in known:
            result = read(annotations[key], item, (*path, key), mistakes, hint)
            if result is not INVALID:
                ready[key] = result
        else:
            mistakes.add((*path, key), f"unknown key{hint(str(key), path, known)}")
    required = [each.name for each in fields(cls) if each.default is MISSING and each.default_factory is MISSING]
    for name in required:
        if name not in value:
            mistakes.add((*path, name), f"missing; {describe(annotations[name])} is needed")
    return cls(**ready) if all(name in ready for name in required) else INVALID


def _read_bounded(arguments: tuple[Any, ...], value: Any, path: KeyPath, mistakes: Mistakes, hint: Hint) -> Any:
    result = read(arguments[0], value, path, mistakes, hint)
    for bound in arguments[1:]:
        if result is not INVALID and not bound.holds(result):
            mistakes.add(path, f"must be {bound}, found {found(value)}")
            return INVALID
    return result


def fits(annotation: Any, value: Any) -> bool:
    """Says whether a plain value has the outer shape of an annotation: `true` is no number, and 3.0 no whole one."""
    if annotation is Any:
        return True
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return fits(arguments[0], value)
    if origin in (Union, types.UnionType):
        return any(fits(arm, value) for arm in arguments)
    if origin is Literal:
        return any(value == each and type(value) is type(each) for each in arguments)
    if annotation is None or annotation is types.NoneType:
        return value is None
    if annotation is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if annotation in (str, bool):
        return isinstance(value, annotation)
    if origin is tuple:
        return isinstance(value, list | tuple)
    if _is_settings(annotation):
        return isinstance(value, Mapping) or (isinstance(value, str) and "type" in annotations_of(annotation))
    return isinstance(value, Mapping)


def meant_instead(annotation: Any, value: Any) -> str:
    """Says what a value of the wrong type may have been meant to be: a near word, a number in quotes, text without."""
    if isinstance(value, int | float) and fits(annotation, str(value)):
        return "; quote it"
    if isinstance(value, str) and any(could_be(annotation, number) for number in (1, 1.5)):
        return unquoted(value)
    arms = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    words = [str(word) for arm in arms if get_origin(arm) is Literal for word in get_args(arm)]
    close = nearest(value, words) if isinstance(value, str) else None
    return f"; did you mean `{close}`?" if close else ""


def could_be(annotation: Any, value: Any) -> bool:
    """Says whether an argument may be what a signature asks for: only plain annotations are held against it."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return any(could_be(arm, value) for arm in arguments)
    if annotation in _SCALARS or origin is Literal or annotation is types.NoneType:
        return fits(annotation, value)
    if origin in (list, Sequence) and isinstance(value, list) and arguments:
        return all(could_be(arguments[0], item) for item in value)
    if (origin or annotation) in (list, tuple, Sequence):
        return isinstance(value, list | tuple)
    if (origin or annotation) is Callable:
        return False  # YAML has no functions
    return isinstance(value, Mapping) if (origin or annotation) in (dict, Mapping) else True


def choose_arm(arms: tuple[Any, ...], value: Any) -> Any:
    """Returns the member of a union that a value is meant to be, or `None`."""
    fitting = [arm for arm in arms if fits(arm, value)]
    # A number that misses a bound should be told so, not that it is no mapping: scalars win by type alone.
    if len(fitting) > 1 and isinstance(value, Mapping):
        settings = next((arm for arm in fitting if _is_settings(arm)), None)
        if settings is not None:
            by_name = [arm for arm in fitting if arm is not settings]
            return settings if _looks_like(settings, value) else by_name[0]
    return fitting[0] if fitting else None


def _looks_like(cls: Any, value: Mapping[Any, Any]) -> bool:
    """Says whether a mapping is meant as the dataclass itself, or as several of them by name."""
    names = annotations_of(cls)
    if any(key in names for key in value) or not value:
        return True
    items = [item for item in value.values() if item is not None]  # one of several may be missing
    if not items or any(not isinstance(item, Mapping | str) for item in items):
        return True
    if all(isinstance(item, Mapping) and "type" in item for item in items):
        return False
    return any(nearest(str(key), names) for key in value)


def describe(annotation: Any) -> str:
    """Says in words what an annotation asks for."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return " ".join([describe(arguments[0]), *map(str, arguments[1:])])
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(describe(arm) for arm in arguments if arm is not types.NoneType))
    if origin is Literal:
        return " or ".join(str(each) for each in arguments)
    if _is_settings(annotation):
        return "a name or a mapping with `type`" if "type" in annotations_of(annotation) else "a mapping"
    if (origin or annotation) in (tuple, list, Sequence):
        return "a list"
    if (origin or annotation) in (dict, Mapping):
        return "a mapping"
    if (origin or annotation) is Callable:
        return "a function (which a config cannot write: make a component of your own that has it)"
    return _SCALARS.get(annotation) or str(getattr(annotation, "__name__", annotation))


def _is_settings(annotation: Any) -> bool:
    return is_dataclass(annotation)


@cache
def annotations_of(cls: Hashable) -> dict[str, Any]:
    """Returns the annotations of a dataclass, evaluated."""
    return get_type_hints(cls, include_extras=True)
