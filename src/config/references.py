"""References between sections: `${trainer.epochs}`, `${env:DATA_ROOT}`, `${data.num_classes}`.

What the config itself says is put in when it is loaded. What only a built object knows stays a `Reference` below
`args` until `build` is given the objects that are there by then; the order is data, loader, model, loss, metrics and
task, optimizer, lr_scheduler. Arithmetic is allowed: `${trainer.epochs * loader.steps_per_epoch}`.
"""

from __future__ import annotations

import ast
import operator
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from src.config.mistakes import KeyPath, Mistakes, did_you_mean, dotted, found, listed
from src.config.yaml_file import scalar
from src.data.settings import LoaderSettings
from src.logger.settings import LoggerSettings
from src.trainer.settings import TrainerSettings
from src.utils.errors import ConfigError

_PIECE = re.compile(r"\$\$\{|\$\{([^{}]*)\}|\$\{")
_ENV = re.compile(r"env:([A-Za-z_][A-Za-z0-9_]*)")
_DEFAULTS: dict[str, Any] = {"trainer": TrainerSettings(), "loader": LoaderSettings(), "logger": LoggerSettings()}
_STAGES = {"data": 0, "loader": 1, "model": 2, "loss": 3, "metrics": 4, "task": 4, "optimizer": 5, "lr_scheduler": 6}
_OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {"int": int, "round": round, "min": min, "max": max, "len": len}

Lookup = Callable[[KeyPath], Any]


class _NotYet(Exception):
    """The value is known to a built object only."""


class _Told(Exception):
    """What is wrong with the value is noted already."""


@dataclass(frozen=True)
class Reference:
    """A text with `${...}` whose value is known when objects are built."""

    text: str
    where: str = field(default="", compare=False)
    known: Mapping[KeyPath, Any] = field(default_factory=dict, compare=False, repr=False)
    """What the config itself says about the names in `text`."""

    def value(self, available: Mapping[str, object]) -> Any:
        """Returns the value.

        Args:
            available: Built objects, or mappings, by the first word of the references: `data`, `model`, ...

        Raises:
            ConfigError: An object has no such attribute; says which it has.
        """

        def lookup(path: KeyPath) -> Any:
            if path in self.known:
                return with_values(self.known[path], available)
            return _attribute(available, path)

        try:
            return _text_value(self.text, lookup)
        except ConfigError as error:
            raise ConfigError(f"{self.where}: {error}") from None


class _Broken(Reference):
    """One of which it is noted already what is wrong with it."""


def with_values(value: Any, available: Mapping[str, object]) -> Any:
    """Returns a fresh copy of arguments with every reference replaced by its value."""
    if isinstance(value, Reference):
        return value.value(available)
    if isinstance(value, Mapping):
        return {key: with_values(child, available) for key, child in value.items()}
    return [with_values(child, available) for child in value] if isinstance(value, list) else value


def resolve(values: Any, mistakes: Mistakes) -> Any:
    """Returns the config with its references put in, as far as the config itself knows them."""
    return _Resolver(values, mistakes).resolved(values, ())


def escaped(text: str) -> str:
    """Writes a text so that it is read back as it is: `${` is `$${`."""
    return text.replace("${", "$${")


class _Resolver:
    def __init__(self, values: Any, mistakes: Mistakes) -> None:
        self.values = values
        self.mistakes = mistakes
        self.active: list[KeyPath] = []
        self.broken: set[KeyPath] = set()

    def resolved(self, value: Any, path: KeyPath) -> Any:
        if isinstance(value, Mapping):
            return {key: self.resolved(child, (*path, key)) for key, child in value.items()}
        if isinstance(value, list):
            return [self.resolved(child, (*path, index)) for index, child in enumerate(value)]
        if not isinstance(value, str) or "${" not in value:
            return value
        if path in self.broken:
            return _Broken(value)
        try:
            return self._text(value, path)
        except ConfigError as error:
            self.mistakes.add(path, str(error))
        except _Told:
            pass
        except _NotYet:
            self.mistakes.add(path, f"{value} is known to a built object only; such values can stand below `args`")
        self.broken.add(path)
        return _Broken(value)

    def _text(self, text: str, path: KeyPath) -> Any:
        if path in self.active:
            chain = " -> ".join(map(dotted, [*self.active[self.active.index(path) :], path]))
            raise ConfigError(f"refers to itself: {chain}")
        known: dict[KeyPath, Any] = {}
        late: list[KeyPath] = []
        wrong: list[KeyPath] = []

        def lookup(name: KeyPath) -> Any:
            wrong.append(name)
            try:
                known[name] = self._value_of(name)
            except _NotYet:
                if "args" in path:
                    _check_order(name, path)
                late.append(name)
            wrong.remove(name)
            if name in known and _holds(known[name], _Broken):
                raise _Told
            if name in known and _holds(known[name], Reference):
                late.append(name)
            return 1 if name in late else known[name]  # a number for now, so that the rest can be checked

        self.active.append(path)
        try:
            value = _text_value(text, lookup)
        except ConfigError:
            if wrong or not late:  # else only the stand-in was
                raise
        finally:
            self.active.pop()
        # The environment is another one on another machine, and holds secrets: below `args` it stays a reference.
        if late or ("args" in path and _ENV.search(text)):
            if "args" not in path:
                raise _NotYet
            where = f"{self.mistakes.place(path)} {dotted(path)}".strip()
            return Reference(text, where, {name: each for name, each in known.items() if name[0] != "env"})
        return value

    def _value_of(self, name: KeyPath) -> Any:
        """Returns what the config says at a key path: as written, below `args`, or by default."""
        section: Any = self.values
        path: KeyPath = ()
        for key in name:
            if isinstance(section, Mapping) and key not in section and isinstance(section.get("args"), Mapping):
                section, path = section["args"], (*path, "args")
            is_item = isinstance(section, list) and isinstance(key, int) and key < len(section)
            if is_item or (isinstance(section, Mapping) and key in section):
                section = section[key]
            elif len(name) == 2 and name[1] in vars(_DEFAULTS.get(str(name[0]), SimpleNamespace())):
                return getattr(_DEFAULTS[str(name[0])], str(name[1]))
            elif name[0] in _STAGES:
                raise _NotYet
            else:
                known = [*map(str, section), *[f"env:{key}"] * str(key).isupper()] if type(section) is dict else ()
                raise ConfigError(f"${{{dotted(name)}}}: there is no `{key}`{did_you_mean(str(key), known)}")
            path = (*path, key)
        if any(active[: len(path)] == path and active != path for active in self.active):
            raise ConfigError(f"refers to itself: {dotted(path)} is around it")
        return self.resolved(section, path)


def _holds(value: Any, kind: type[Reference]) -> bool:
    if isinstance(value, Mapping | list):
        return any(_holds(child, kind) for child in (value.values() if isinstance(value, Mapping) else value))
    return isinstance(value, kind)


def _check_order(name: KeyPath, path: KeyPath) -> None:
    stage = _STAGES.get(str(path[0]), len(_STAGES))
    if _STAGES[str(name[0])] >= stage:
        earlier = [each for each, number in _STAGES.items() if number < stage]
        built = f"built by then: {listed(earlier)}" if earlier else "nothing is built before it"
        raise ConfigError(f"${{{dotted(name)}}} is not known when {path[0]} is built; {built}")


def _attribute(available: Mapping[str, object], path: KeyPath) -> Any:
    if path[0] not in available:
        built = listed(available) or "nothing"
        raise ConfigError(f"${{{dotted(path)}}}: no `{path[0]}` is built yet; there is {built}")
    value: Any = available[str(path[0])]
    for depth, key in enumerate(path[1:], start=1):
        is_hidden = isinstance(key, str) and key.startswith("_")
        try:
            is_container = isinstance(value, Mapping) or isinstance(key, int)
            inner = value[key] if is_container else getattr(value, str(key))
        except (KeyError, IndexError, AttributeError, TypeError):
            is_hidden = True
        if is_hidden or callable(inner):
            known = _public(value) + _public(getattr(value, "__wrapped__", None))
            value = getattr(value, "__wrapped__", value)
            owner = dotted(path[:depth]) if isinstance(value, Mapping) else type(value).__name__
            what = f"{owner} has no value `{key}`{did_you_mean(str(key), known)}"
            raise ConfigError(f"${{{dotted(path)}}}: {what}")
        value = inner
    return value


def _public(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [str(key) for key in value]
    classes = [cls for cls in type(value).__mro__ if cls.__module__.split(".")[0] not in ("torch", "typing")]
    of_class = {name for cls in classes for name, each in vars(cls).items() if not callable(each)}
    return sorted(name for name in {*getattr(value, "__dict__", {}), *of_class} if not name.startswith("_"))


def _text_value(text: str, lookup: Lookup) -> Any:
    """Returns the value of a text: any type when it is one `${...}` as a whole, else text with the values put in."""
    whole = _PIECE.fullmatch(text)
    if whole is not None and whole[1] is not None:
        return _expression(whole[1], lookup)

    def piece(match: re.Match[str]) -> str:
        if match[0] == "$${":
            return "${"
        if match[1] is None:
            raise ConfigError(f"`${{` without `}}` in {found(text)}; write `$${{` for the text itself")
        return str(_expression(match[1], lookup))

    return _PIECE.sub(piece, text)


def _expression(text: str, lookup: Lookup) -> Any:
    variable = _ENV.fullmatch(text.strip())
    if variable is not None:
        if variable[1] not in os.environ:
            raise ConfigError(f"environment variable {variable[1]} isn't set")
        return scalar(os.environ[variable[1]])
    try:
        if len(text) > 200:
            raise SyntaxError
        return _evaluated(ast.parse(text.strip(), mode="eval").body, lookup)
    except (SyntaxError, ValueError):
        raise ConfigError(f"${{{text}}} is not a key path such as `trainer.epochs`, nor arithmetic with them") from None
    except (ZeroDivisionError, TypeError, OverflowError) as error:
        raise ConfigError(f"${{{text}}}: {error}") from None


def _evaluated(node: ast.expr, lookup: Lookup) -> Any:
    """Works out an expression of numbers, key paths, `+ - * / // %` and a few functions; nothing else is possible."""
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return node.value
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        left, right = _number(_evaluated(node.left, lookup)), _number(_evaluated(node.right, lookup))
        return _OPERATORS[type(node.op)](left, right)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_number(_evaluated(node.operand, lookup))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS:
        return _FUNCTIONS[node.func.id](*(_evaluated(argument, lookup) for argument in node.args))
    return lookup(_key_path(node))


def _key_path(node: ast.expr) -> KeyPath:
    if isinstance(node, ast.Name):
        return (node.id,)
    if isinstance(node, ast.Attribute):
        return (*_key_path(node.value), node.attr)
    if (
        isinstance(node, ast.Subscript)
        and isinstance(node.slice, ast.Constant)
        and type(node.slice.value) in (int, str)
    ):
        return (*_key_path(node.value), node.slice.value)  # type: ignore[arg-type]
    raise SyntaxError


def _number(value: Any) -> Any:
    if isinstance(value, str | bool | list | Mapping) or value is None:
        raise ConfigError(f"arithmetic needs numbers, found {found(value)}")
    return value
