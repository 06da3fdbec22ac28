"""Their command line, and the config that it means."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.compat.checkpoint import load_theirs
from src.compat.detect import NATIVE_FORM
from src.compat.dialect import modernise, note_slips
from src.compat.their_config import apply_options, places_of, read_json
from src.config.command_line import Parser
from src.config.mistakes import KeyPath, Mistakes
from src.utils.errors import CheckpointError, ConfigError
from src.utils.paths import shown_path


@dataclass(frozen=True)
class Request:
    """What the command line asks for."""

    config: dict[str, Any]
    """All sections, in the newest spelling."""
    notes: list[str]
    """Spellings that were translated."""
    project: str | None
    resume: Path | None
    checkpoint: dict[str, Any] | None
    """Content of `resume` when it is one of their `.pth` files."""
    only_check: bool
    """Whether to build everything, try one batch, and stop there."""
    print_config: bool
    """Whether to print the config, and do nothing else."""
    config_path: Path | None
    """As named with -c."""
    slips: list[str]
    """Keys that are kept, and may be meant otherwise."""
    mistakes: Mistakes
    """What is wrong so far; the code of the project may tell more."""


def read_request(argv: Sequence[str], prog: str, description: str | None) -> Request:
    """Read a command line.

    Raises:
        ConfigError: It cannot be understood, or a file cannot be read.
    """
    options = parse(argv, prog, description)
    if options.config is None and options.resume is None:
        raise ConfigError(
            "Configuration file need to be specified. Add '-c config.json', for example; or go on with '-r CHECKPOINT'"
        )
    if options.device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = options.device  # before CUDA starts
    resume = Path(options.resume) if options.resume else None
    path = Path(options.config) if options.config else None
    checkpoint = load_theirs(resume) if resume and resume.suffix == ".pth" else None
    config: dict[str, Any] = {}
    notes: list[str] = []
    mistakes, unheard = Mistakes(), Mistakes()
    if resume is not None:
        written, mistakes.places = _config_beside(resume, checkpoint)
        config, notes = modernise(written, unheard)  # what is wrong with it may be changed by what lies above
    if path is not None:
        written = read_json(path)
        below = {key: place for key, place in mistakes.places.items() if key and key[0] not in written}
        mistakes.places = {**below, **places_of(path)}
        config, more = modernise({**config, **written}, unheard)
        notes = [*notes, *more]
    apply_options(config, _options(options), mistakes)
    config, _ = modernise(config, mistakes)
    slips = note_slips(config, mistakes)
    if resume is not None and path is None and not mistakes.lines:
        _check_save_dir(config["trainer"].get("save_dir"), resume, options.overrides)
    wants = (options.check, options.print_config)
    return Request(config, notes, options.project, resume, checkpoint, *wants, path, slips, mistakes)


def parse(argv: Sequence[str], prog: str, description: str | None) -> argparse.Namespace:
    """Read the words of a command line."""
    parser = Parser(prog, f"{prog} -c config.json [-r CHECKPOINT] [KEY=VALUE ...]", description)
    parser.add_argument("-c", "--config", metavar="FILE", help="their config.json")
    parser.add_argument("-r", "--resume", metavar="CKPT", help="a checkpoint of theirs (.pth), or a run of ours")
    parser.add_argument("-d", "--device", metavar="LIST", help="GPUs to use (CUDA_VISIBLE_DEVICES)")
    parser.add_argument("--lr", "--learning_rate", "--learning-rate", dest="lr", type=float, metavar="X")
    parser.add_argument("--bs", "--batch_size", "--batch-size", dest="bs", type=int, metavar="N")
    parser.add_argument("--project", metavar="DIR", help="folder of model/ and data_loader/; default: this folder")
    parser.add_argument("--check", action="store_true", help="build everything, try one batch, write nothing")
    parser.add_argument("--print-config", action="store_true", help="print the config as it would be kept")
    parser.add_argument("--traceback", action="store_true", help="show the whole traceback of an error")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="e.g. trainer.epochs=5 or 'arch;args;width=8'"
    )
    options, unknown = parser.parse_known_intermixed_args(argv)
    if unknown:
        raise ConfigError(
            f"{unknown[0]}: {prog} does not know it for a project of pytorch-template (--help lists what it knows); "
            f"for all else {NATIVE_FORM}"
        )
    return options


def _options(options: argparse.Namespace) -> list[tuple[str, Any]]:
    given = [("optimizer;args;lr", options.lr), ("data_loader;args;batch_size", options.bs)]
    pairs = [(key, value) for key, value in given if value is not None]
    for word in options.overrides:
        key, equals, text = word.partition("=")
        if not equals:
            raise ConfigError(f"{word}: write KEY=VALUE")
        try:
            pairs.append((key, json.loads(text)))
        except json.JSONDecodeError:
            pairs.append((key, text))
    return pairs


def _config_beside(resume: Path, checkpoint: dict[str, Any] | None) -> tuple[dict[str, Any], dict[KeyPath, str]]:
    """Return the config of a run and where its keys stand: `config.json` beside it, else what the checkpoint holds."""
    folder = resume if resume.is_dir() else resume.parent
    for path in (folder / "config.json", folder.parent / "config.json"):
        if path.is_file():
            return read_json(path), places_of(path)
    if checkpoint is None:
        raise CheckpointError(f"{shown_path(resume)}: there is no config.json beside it; name the config with -c")
    held: dict[str, Any] = checkpoint["config"]
    return held, {(): shown_path(resume)}


def _check_save_dir(save_dir: Any, resume: Path, overrides: Sequence[str]) -> None:
    """Write outside of the project only where a person said so: a checkpoint and the config beside it may be strange.

    Raises:
        ConfigError: The folder of runs is elsewhere, and not where the checkpoint lies.
    """
    folder = Path(str(save_dir or "saved")).expanduser()
    is_inside = not folder.is_absolute() and ".." not in folder.parts
    is_named = any(word.replace(";", ".").startswith("trainer.save_dir=") for word in overrides)
    if not (is_inside or is_named or resume.resolve().is_relative_to(folder.resolve())):
        raise ConfigError(
            f"trainer.save_dir: {save_dir} comes with the checkpoint and lies outside of the project; "
            f"if that is right, say trainer.save_dir={save_dir}"
        )
