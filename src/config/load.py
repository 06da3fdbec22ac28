"""From a file and the command line to a checked, frozen `Config`. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from src.config.checks import check_sections
from src.config.layers import apply_overrides, laid_over, read_layers
from src.config.mistakes import Mistakes
from src.config.references import resolve
from src.config.sections import read_config
from src.config.settings import Config
from src.config.yaml_file import Node, places, plain
from src.utils.errors import ConfigError


def load_config(path: Path, overrides: Sequence[str] = (), whole_report: bool = False) -> Config:
    """Reads a config file with its bases, applies `key.path=value` overrides, and checks everything but signatures.

    Args:
        path: Of the file.
        overrides: `key.path=value` texts that lie over it.
        whole_report: Where something is wrong, look at the signatures too, and tell all at once: imports torch.

    Raises:
        ConfigError: With all mistakes, one a line, each with its place.
    """
    mistakes = Mistakes()
    return _checked(read_layers(path, overrides, mistakes), mistakes, whole_report)


def config_from_dict(
    values: Mapping[str, Any], overrides: Sequence[str] = (), origin: str = "config", whole_report: bool = False
) -> Config:
    """Reads a config from plain data, as `Config.as_dict` gives it.

    Args:
        values: The sections.
        overrides: `key.path=value` texts that lie over them.
        origin: What messages call the data, e.g. `checkpoint last.pt`.
        whole_report: As for `load_config`.
    """
    mistakes = Mistakes()
    return _checked(apply_overrides(_node(values, origin), overrides, mistakes), mistakes, whole_report)


def varied(config: Config, values: Mapping[str, Any], place: str = "variation") -> Config:
    """Reads a config again with other values at some dotted keys, and without its section `tune`.

    Args:
        config: Stays as it is.
        values: By key; they are merged as overrides are.
        place: What messages call the values.

    Raises:
        ConfigError: With all mistakes, one a line.
    """
    mistakes = Mistakes()
    node = _node({key: value for key, value in config.as_dict().items() if key != "tune"}, "config")
    for key, value in values.items():
        node = laid_over(node, key.split("."), _node(value, place), mistakes)
    return _checked(node, mistakes)


def _checked(tree: Node, mistakes: Mistakes, whole_report: bool = False) -> Config:
    mistakes.places = places(tree)
    config = read_config(resolve(plain(tree), mistakes), mistakes)
    if config is not None:
        check_sections(config, mistakes)
        if mistakes.lines and whole_report:
            from src.config.signatures import note_components

            note_components(config, mistakes)
    mistakes.stop_if_any()
    assert config is not None
    return config


def _node(value: Any, origin: str) -> Node:
    if isinstance(value, Mapping):
        return Node({key: _node(child, origin) for key, child in value.items()}, origin)
    if isinstance(value, list | tuple):
        return Node([_node(child, origin) for child in value], origin)
    if value is not None and not isinstance(value, str | int | float | bool):
        raise ConfigError(f"{origin}: plain data are needed, found {type(value).__name__}")
    return Node(value, origin)
