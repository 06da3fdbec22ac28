"""Arguments in the config against the signatures they are for, before anything is built."""

from __future__ import annotations

import collections.abc
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, get_type_hints

from src.config.checks import components, named
from src.config.kinds import PROVIDED, USED_AS_IS, is_module
from src.config.mistakes import KeyPath, Mistakes, did_you_mean, found, listed, nearest
from src.config.references import Reference
from src.config.registry import HOMES, NoFolderError, find
from src.config.schema import could_be, describe, meant_instead
from src.config.settings import UNNAMED, Component, Config
from src.utils.errors import ConfigError

_WORDS = {("LBFGS", "line_search_fn"): ("strong_wolfe",)}
"""Arguments whose words torch checks in the first step, not before."""

_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def check_components(config: Config) -> None:
    """Checks that every name exists and takes the arguments it is given. Imports the named modules.

    Raises:
        ConfigError: With all mistakes, one a line.
    """
    mistakes = Mistakes(config.places)
    note_components(config, mistakes)
    mistakes.stop_if_any()


def note_components(config: Config, mistakes: Mistakes) -> None:
    """Notes what `check_components` raises, next to what is wrong besides."""
    is_elsewhere = False
    inner = [each for path, model in named(config.model, "model") for each in modules(model.args, (*path, "args"))]
    for path, component in [*components(config), *inner]:
        if component is UNNAMED:  # stands for what is missing, which is noted already
            continue
        kind = kind_at(path)
        try:
            target = find(kind, component.type)
        except ConfigError as error:
            mistakes.add((*path, "type"), str(error))
            is_elsewhere |= isinstance(error, NoFolderError)
        else:
            check_arguments(kind, target, component, path, mistakes)
    if is_elsewhere:
        mistakes.add_at("for classes beside a config outside the project", "name its folder, `--trust FOLDER/`")


def kind_at(path: KeyPath) -> str:
    """Returns which kind of component stands at a key path: `("data", "val", "transforms", 0)` -> `transforms`."""
    if "args" in path:
        return "tokenizer" if path[-1] == "tokenizer" and path[0] == "data" else "module"
    return next(str(key) for key in reversed(path) if key in HOMES)


def modules(value: Any, path: KeyPath) -> Iterator[tuple[KeyPath, Component]]:
    """Yields the parts that the arguments of a model describe, and where they are written."""
    if is_module(value):
        yield path, Component(value["type"], value.get("args") or {})
    children = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from modules(child, (*path, key))


def check_arguments(
    kind: str, target: Callable[..., Any], component: Component, path: KeyPath, mistakes: Mistakes
) -> None:
    """Notes unknown, missing and doubly given arguments, and values that the annotations rule out."""
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):  # some functions written in C tell no signature
        return
    filled = filled_by_position(kind, target, parameters)
    provided = PROVIDED.get(kind, (0, frozenset[str]()))[1]
    check_names(target, component, filled, provided, path, mistakes)
    hints = hints_of(target)
    for name, value in component.args.items():
        where = (*path, "args", name)
        if isinstance(value, Reference) or mistakes.knows(where) or name not in hints:
            continue
        words = _WORDS.get((getattr(target, "__name__", ""), name))
        if words and isinstance(value, str) and value not in words:
            mistakes.add(where, f"unknown word {found(value)}{did_you_mean(value, words)}")
        if not could_be(hints[name], value) and not _is_default(parameters.get(name), value):
            meant = meant_instead(hints[name], value)
            mistakes.add(where, f"{describe(hints[name])} is needed, found {found(value)}{meant}")


def check_names(
    target: Callable[..., Any],
    component: Component,
    filled: Collection[str],
    provided: Collection[str],
    path: KeyPath,
    mistakes: Mistakes,
) -> None:
    """Notes unknown, missing and doubly given arguments.

    Args:
        target: What will be called; it tells its signature.
        component: With the arguments of the config.
        filled: Parameters that the run fills in by position.
        provided: Parameters that it fills in by name where the config does not.
        path: Of the component.
        mistakes: Receives what is wrong.
    """
    parameters = inspect.signature(target).parameters
    names = [name for name, parameter in parameters.items() if parameter.kind in _BY_NAME and name not in filled]
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    called = getattr(target, "__name__", component.type)
    for name in component.args:
        where = (*path, "args", name)
        if name in filled:
            mistakes.add(where, f"given twice: the run itself gives {called} its `{name}`; leave it out")
        elif name not in names and not takes_any:
            close = nearest(str(name), names)
            hint = f"did you mean `{close}`?" if close else f"{called} takes {listed(names) or 'no arguments'}"
            mistakes.add(where, f"unknown argument; {hint}")
    for name in names:
        if parameters[name].default is inspect.Parameter.empty and name not in {*component.args, *provided}:
            mistakes.add((*path, "args", name), f"missing; {called} needs it")


def filled_by_position(kind: str, target: Any, parameters: Mapping[str, inspect.Parameter]) -> list[str]:
    """Returns the leading parameters that the run fills in when it calls `target`."""
    count = PROVIDED.get(kind, (0, None))[0]
    if not isinstance(target, type):
        count = USED_AS_IS.get(kind, count)
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [name for name, parameter in parameters.items() if parameter.kind in kinds][:count]


def _is_default(parameter: inspect.Parameter | None, value: Any) -> bool:
    return parameter is not None and value is None and parameter.default is None


def hints_of(target: Any) -> dict[str, Any]:
    """Returns the evaluated annotations of a signature; none where they cannot be evaluated."""
    function = getattr(target, "__init__", None) if isinstance(target, type) else target
    for names in (None, _ABSTRACT):  # the usual names under TYPE_CHECKING
        try:
            return get_type_hints(function, localns=names)
        except Exception:  # annotations are code of others: further such names, odd metaclasses  # nosec B112
            continue
    return {}


_ABSTRACT = {name: getattr(collections.abc, name) for name in collections.abc.__all__}
