"""Answers to what a person asks before a run: `--print-config`, `--list KIND`, `--explain KEY`."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable
from dataclasses import MISSING
from typing import Any

from src.config.checks import components
from src.config.command_line import Arguments
from src.config.forms import config_form
from src.config.kinds import WORDS
from src.config.load import load_config
from src.config.manual import argument_doc, summary
from src.config.mistakes import KeyPath, did_you_mean, dotted, listed
from src.config.printed import place_of, printed
from src.config.registry import HOMES, find, known_names, trust, use_folder
from src.config.schema import describe
from src.config.settings import Config
from src.config.signatures import filled_by_position, kind_at
from src.utils.errors import ConfigError

WIDTH = 116
_PLURALS = {"losses": "loss", "schedulers": "lr_scheduler", "schedules": "lr_scheduler", "data": "data"}
_PLURALS |= {f"{kind.removesuffix('s')}s": kind for kind in HOMES if kind not in _PLURALS.values()}


def list_kind(word: str) -> str:
    """Returns what can be written for a kind of component, with arguments and defaults. Imports that kind alone.

    Args:
        word: `models`, `model`, `losses`, ...; `all` names the kinds.
    """
    if word == "all":
        return f"kinds: {', '.join(sorted(_PLURALS))}; e.g. --list models"
    kind = _PLURALS.get(word, word)
    if kind not in HOMES:
        raise ConfigError(f"--list {word}: no such kind{did_you_mean(word, [*HOMES, *_PLURALS])}")
    entries = []
    for name in known_names(kind):
        try:
            target = find(kind, name)
        except ConfigError as error:
            entries.append(f"{name}\n    {error}")
            continue
        entries.append(_entry(kind, name, target))
    return "\n".join(entries) or f"there are no {WORDS.get(kind, kind)}s yet"


def _entry(kind: str, name: str, target: Callable[..., Any]) -> str:
    shown = [re.sub(r": '([^']*)'", r": \1", str(parameter)) for parameter in _parameters(kind, target).values()]
    head = textwrap.fill(f"{name}({', '.join(shown)})", WIDTH, subsequent_indent=" " * 8, break_long_words=False)
    text = summary(target)
    return f"{head}\n{textwrap.indent(textwrap.fill(text, WIDTH - 4), '    ')}" if text else head


def _parameters(kind: str, target: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Returns the parameters that a config may give."""
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):
        return {}
    filled = filled_by_position(kind, target, parameters)
    return {name: parameter for name, parameter in parameters.items() if name not in filled}


def explain(key: str, config: Config | None) -> str:
    """Returns what a key means, its type, its default, and what a config says there and where.

    Args:
        key: Dotted, as on the command line: `optimizer.args.betas`.
        config: Needed for arguments of components, which only their `type` knows.

    Raises:
        ConfigError: There is no such key.
    """
    path: KeyPath = tuple(int(word) if word.isdecimal() else word for word in key.split("."))
    if path[0] == "task" and path[1:2] not in ((), ("type",), ("args",)):
        path = ("task", "args", *path[1:])
    rows = _of_argument(path, config) if "args" in path[:-1] else _of_setting(path)
    if config is not None:
        value = _value(config.as_dict(), path)
        rows["value"] = "not given; the default holds" if value is MISSING else repr(value)
        place = place_of(path, config.places)
        rows["set at"] = "nowhere" if place == "default" else place
    told = (
        textwrap.fill(f"  {name:<8} {text}", WIDTH, subsequent_indent=" " * 11) for name, text in rows.items() if text
    )
    return "\n".join([key, *told])


def _of_argument(path: KeyPath, config: Config | None) -> dict[str, str]:
    at, name = path[: path.index("args")], str(path[path.index("args") + 1])
    if config is None:
        raise ConfigError(f"--explain {dotted(path)}: which arguments there are depends on the type; add -c CONFIG")
    known = dict(components(config))
    if at not in known:
        hint = did_you_mean(dotted(at), map(dotted, known))
        raise ConfigError(f"--explain {dotted(path)}: the config has no component there{hint}")
    kind, component = kind_at(at), known[at]
    target = find(kind, component.type)
    parameters = _parameters(kind, target)
    if name not in parameters and not any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
        raise ConfigError(f"--explain: {component.type} takes no `{name}`{did_you_mean(name, parameters)}")
    parameter = parameters.get(name)
    is_typed = parameter is not None and parameter.annotation is not parameter.empty
    is_optional = parameter is not None and parameter.default is not parameter.empty
    return {
        "means": argument_doc(target, name) or f"an argument of {component.type}; its docstring does not say more",
        "type": inspect.formatannotation(parameter.annotation).strip("'")
        if parameter and is_typed
        else "not annotated",
        "default": repr(parameter.default) if parameter and is_optional else "none; it must be given",
    }


def _of_setting(path: KeyPath) -> dict[str, str]:
    form = config_form()
    for key in path:
        below = form.below(str(key))
        if below is None:
            raise ConfigError(f"--explain {dotted(path)}: there is no key `{key}`{did_you_mean(str(key), form.keys)}")
        form = below
    default = (
        "none"
        if form.default is None
        else ""
        if form.default is ...
        else repr(getattr(form.default, "type", form.default))
    )
    return {
        "means": form.means,
        "type": describe(form.annotation),
        "default": "none; it must be given" if form.is_required else default,
        "keys": listed(form.keys),
    }


def _value(values: Any, path: KeyPath) -> Any:
    for key in path:
        try:
            values = values[key]
        except (KeyError, IndexError, TypeError):
            return MISSING
    return values


def answer(arguments: Arguments) -> str | None:
    """Returns what a question on the command line of `train.py` asks for; `None` when it asks nothing."""
    if arguments.list_kind is None and arguments.explain is None and not arguments.print_config:
        return None
    trust(arguments.trusted)
    use_folder(arguments.config.parent if arguments.config else None)
    if arguments.list_kind is not None:
        return list_kind(arguments.list_kind)
    config = load_config(arguments.config, arguments.overrides) if arguments.config else None
    if arguments.explain is not None:
        return explain(arguments.explain, config)
    assert config is not None  # the command line asks for -c
    return printed(config).rstrip()
