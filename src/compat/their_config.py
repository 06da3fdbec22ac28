"""Their config: read as JSON, changed by the command line, and the object that their code knows it as."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from src.config.mistakes import KeyPath, Mistakes, did_you_mean
from src.config.yaml_file import places, read_text
from src.utils.errors import ConfigError
from src.utils.paths import shown_path

LEVELS = {0: logging.WARNING, 1: logging.INFO, 2: logging.DEBUG}
"""What `trainer.verbosity` means."""


class ConfigParser:
    """The whole config as their code reads it: `config['arch']['args']`, unknown sections included.

    Args:
        config: The sections.
        resume: Checkpoint to go on from.
        save_dir: Folder of the checkpoints of this run.
        log_dir: Folder of its log.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        resume: Path | None = None,
        save_dir: Path | None = None,
        log_dir: Path | None = None,
    ) -> None:
        self.config = dict(config)
        self.resume, self.save_dir, self.log_dir = resume, save_dir, log_dir

    def __getitem__(self, name: str) -> Any:
        return self.config[name]

    def __contains__(self, name: str) -> bool:
        return name in self.config

    def get(self, name: str, default: Any = None) -> Any:
        """Return a section, `default` when there is none."""
        return self.config.get(name, default)

    def init_obj(self, name: str, module: Any, *args: Any, **kwargs: Any) -> Any:
        """Call what section `name` has for `type` in `module`, with its `args` as keywords."""
        return getattr(module, self[name]["type"])(*args, **self._arguments(name, kwargs))

    def init_ftn(self, name: str, module: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the function that section `name` names, with its `args` filled in."""
        return partial(getattr(module, self[name]["type"]), *args, **self._arguments(name, kwargs))

    def get_logger(self, name: str, verbosity: int = 2) -> logging.Logger:
        """Return a logger of this name."""
        logger = logging.getLogger(f"src.project.{name}")
        logger.setLevel(LEVELS[verbosity])
        return logger

    def _arguments(self, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
        return merged_arguments(name, self[name].get("args") or {}, given)


def merged_arguments(section: str, config: Mapping[str, Any], code: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a component, of which each comes from one place.

    Raises:
        ConfigError: One is given in the config and in the code.
    """
    if doubled := sorted(set(config) & set(code)):
        raise ConfigError(
            f"{section}.args: {', '.join(doubled)}: Overwriting kwargs given in config file is not allowed; "
            "leave it out in one of the two places"
        )
    return {**config, **code}


def read_json(path: Path) -> dict[str, Any]:
    """Read a config as JSON reads it: 1e-4 is a number, keys keep their order, NaN and Infinity are numbers.

    Raises:
        ConfigError: It is not there, or is not JSON; says where.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{shown_path(path)}:{error.lineno}:{error.colno}: not JSON: {error.msg}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{shown_path(path)}: cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{shown_path(path)}: sections are needed, found a {type(values).__name__}")
    return values


def places_of(path: Path) -> dict[KeyPath, str]:
    """Return where each key of a JSON file stands; of the file alone where that cannot be told."""
    name = shown_path(path)
    try:  # JSON is YAML, whose reader knows lines; save tabs, and what JSON has besides
        node = read_text(path.read_text(encoding="utf-8-sig").replace("\t", " "), name, Mistakes())
    except (ConfigError, OSError, ValueError):
        node = None
    return {(): name} if node is None else {**places(node), (): name}


def apply_options(config: dict[str, Any], options: Sequence[tuple[str, Any]], mistakes: Mistakes) -> None:
    """Set keys by path, `optimizer;args;lr` or `optimizer.args.lr`. The last key may be new, those above it may not.

    Args:
        config: Is changed.
        options: Paths and values.
        mistakes: Receives the sections that are not there, and learns which keys were set here.
    """
    where: dict[KeyPath, str] = {}
    for number, (path, value) in enumerate(options, start=1):
        place = f"command line #{number}"
        *parents, leaf = path.replace(";", ".").split(".")
        section: Any = config
        for depth, key in enumerate(parents):
            known = list(section)
            section = section.get(key)
            if not isinstance(section, dict):
                missing = ".".join(parents[: depth + 1])
                mistakes.add_at(f"{place} {path}", f"the config has no section {missing}{did_you_mean(key, known)}")
                break
        else:
            section[leaf] = value
            where[(*parents, leaf)] = place
    mistakes.places = {**mistakes.places, **where}
