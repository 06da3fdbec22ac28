"""The command line that all commands share. Imports nothing heavy: `--help` answers at once."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from src.utils.errors import ConfigError
from src.utils.paths import PROJECT_ROOT, shown_path

CONFIGS = PROJECT_ROOT / "configs"


@dataclass(frozen=True)
class Arguments:
    """What `train.py` was asked to do."""

    config: Path | None
    resume: str | None
    overrides: tuple[str, ...]
    trusted: tuple[str, ...]


class Parser(argparse.ArgumentParser):
    """Reports mistakes as every other mistake is reported."""

    def error(self, message: str) -> None:  # type: ignore[override]
        """Raise `ConfigError` with the usage."""
        raise ConfigError(f"{self.prog}: {message}\n{self.format_usage().strip()}")


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Add what every command understands."""
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="change one key, e.g. optimizer.args.lr=0.1")
    parser.add_argument("-d", "--device", help="cpu, cuda, cuda:1, mps or a GPU number (trainer.device)")
    parser.add_argument("--bs", "--batch-size", dest="bs", metavar="N", help="rows in a batch (loader.batch_size)")
    parser.add_argument(
        "--trust", action="append", default=[], metavar="PACKAGE", help="let the config name its classes"
    )
    parser.add_argument("--traceback", action="store_true", help="show the whole traceback of an error")


def collect_overrides(options: argparse.Namespace) -> tuple[str, ...]:
    """Return all overrides, the shortcuts spelt out."""
    shortcuts = {"device": "trainer.device", "lr": "optimizer.args.lr", "bs": "loader.batch_size"}
    given = {key: getattr(options, name, None) for name, key in shortcuts.items()}
    return (*options.overrides, *(f"{key}={value}" for key, value in given.items() if value is not None))


def parse_training(argv: Sequence[str], description: str | None) -> Arguments:
    """Read the command line of `train.py`.

    Raises:
        ConfigError: It cannot be understood, or a file it names is not there.
    """
    parser = Parser("train.py", "train.py -c CONFIG [-r RUN] [KEY=VALUE ...]", description)
    parser.add_argument("-c", "--config", metavar="FILE", help="the experiment, e.g. configs/digits.yaml")
    parser.add_argument("-r", "--resume", metavar="RUN", help="go on with a run directory, a checkpoint, or `auto`")
    parser.add_argument("--lr", "--learning-rate", dest="lr", metavar="X", help="learning rate (optimizer.args.lr)")
    add_common_options(parser)
    options = parser.parse_intermixed_args(argv)
    if options.config is None and (options.resume is None or options.resume == "auto"):
        examples = ", ".join(shown_path(path) for path in sorted(CONFIGS.glob("*.yaml"))[:5])
        parser.error(f"say what to train with -c CONFIG (there are {examples}), or go on with -r RUN")
    config = None if options.config is None else find_config(options.config)
    return Arguments(config, options.resume, collect_overrides(options), tuple(options.trust))


def find_config(name: str) -> Path:
    """Return the path of a config file.

    Raises:
        ConfigError: No such file; names the nearest.
    """
    path = Path(name)
    if path.is_dir():
        raise ConfigError(f"{name}: is a folder, a file is needed")
    if not path.exists():
        known = {shown_path(found): found for found in sorted(CONFIGS.rglob("*.yaml"))}
        by_stem = [shown for shown, found in known.items() if found.stem == path.stem]
        close = by_stem or get_close_matches(name, known, n=1)
        hint = f"; did you mean {close[0]}?" if close else f"; there are {', '.join(known)}"
        raise ConfigError(f"{name}: no such file{hint}")
    return path
