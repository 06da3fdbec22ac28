"""The command line that all commands share. Imports nothing heavy: `--help` answers at once."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
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
    trusted: tuple[str, ...] = ()
    allowed: tuple[str, ...] = ()
    """Keys that may differ from the run that goes on, though they should not."""

    check: bool = False
    world_size: int | None = None
    """With `check`: how many processes to pretend."""

    replay: Path | None = None
    print_config: bool = False
    list_kind: str | None = None
    explain: str | None = None
    folds: int = 0
    """How many folds to train; 0 trains one run."""
    board: bool = False
    """Serve the runs with TensorBoard meanwhile."""

    quiet: bool = False
    verbose: bool = False

    seeds: int = 0
    """With how many seeds to train; 0 trains one run."""


class Parser(argparse.ArgumentParser):
    """Reports mistakes as every other mistake is reported."""

    def error(self, message: str) -> None:  # type: ignore[override]
        """Raise `ConfigError` with the usage, and what a misspelt option was meant for."""
        unknown = message.partition("unrecognized arguments: ")[2].partition(" ")[0].partition("=")[0]
        near = get_close_matches(unknown, self._option_string_actions, n=1) if unknown else []
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"{self.prog}: {message}{hint}\n{self.format_usage().strip()}")


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Add what every command understands."""
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="change one key, e.g. optimizer.args.lr=0.1")
    parser.add_argument("-d", "--device", help="cpu, cuda, cuda:1, mps or a GPU number (trainer.device)")
    parser.add_argument("--bs", "--batch-size", dest="bs", metavar="N", help="rows in a batch (loader.batch_size)")
    parser.add_argument(
        "--trust",
        action="append",
        default=[],
        metavar="NAME",
        help="let the config name classes of this package or folder/",
    )
    how_much = parser.add_mutually_exclusive_group()
    how_much.add_argument("-q", "--quiet", action="store_true", help="warnings and errors only; files have everything")
    how_much.add_argument("-v", "--verbose", action="store_true", help="what is built, where it runs, and when")
    parser.add_argument("--traceback", action="store_true", help="show the whole traceback of an error")


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add what every command understands that works on a trained run."""
    parser.add_argument("-r", "--resume", dest="run", required=True, metavar="RUN", help="run directory or checkpoint")
    parser.add_argument("--checkpoint", default="best", metavar="WHICH", help="best (default), last, or a file name")


def collect_overrides(options: argparse.Namespace) -> tuple[str, ...]:
    """Return all overrides, the shortcuts spelt out."""
    shortcuts = {"device": "trainer.device", "lr": "optimizer.args.lr", "bs": "loader.batch_size"}
    given = {key: getattr(options, name, None) for name, key in shortcuts.items()}
    if options.device is not None:
        given["trainer.device"] = json.dumps(options.device)  # a GPU's number is a name, and no number
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
    parser.add_argument("--folds", type=_at_least(2), default=0, metavar="K", help="hold out each of K folds once")
    parser.add_argument("--seeds", type=_at_least(2), default=0, metavar="N", help="the same run with N seeds")
    parser.add_argument("--open", action="store_true", help="serve the runs with TensorBoard while this one trains")
    add_common_options(parser)
    _add_questions(parser)
    options = parser.parse_intermixed_args(argv)
    if options.print_config and options.config is None:
        parser.error("--print-config needs -c CONFIG; the config of a run is RUN/config.yaml")
    if options.world_size is not None and not options.check:
        parser.error("--world-size needs --check; torchrun --nproc-per-node=N, or -d 0,1, start several processes")
    is_answered_without = any(each is not None for each in (options.list_kind, options.explain, options.replay))
    if options.config is None and options.resume in (None, "auto") and not is_answered_without:
        examples = ", ".join(shown_path(path) for path in sorted(CONFIGS.glob("*.yaml"))[:5])
        parser.error(f"say what to train with -c CONFIG (there are {examples}), or go on with -r RUN")
    if (options.folds or options.seeds) and options.config is None:
        parser.error(f"{'--folds' if options.folds else '--seeds'} needs -c CONFIG")
    if options.folds and options.seeds:
        parser.error("--folds and --seeds: one of them at a time")
    config = None if options.config is None else find_config(options.config)
    first_fold = (f"data.split.folds={options.folds}", "data.split.fold=1") if options.folds else ()
    return Arguments(
        config,
        options.resume,
        (*collect_overrides(options), *first_fold),
        folds=options.folds,
        seeds=options.seeds,
        trusted=tuple(options.trust),
        allowed=tuple(options.allow_change),
        check=options.check,
        world_size=options.world_size,
        replay=options.replay,
        print_config=options.print_config,
        list_kind=options.list_kind,
        explain=options.explain,
        board=options.open,
        quiet=options.quiet,
        verbose=options.verbose,
    )


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"a number of {least} or more is needed, found {text!r}")
        return int(text)

    return number


def _add_questions(parser: Parser) -> None:
    """Add what `train.py` answers instead of training."""
    parser.add_argument(
        "--allow-change", action="append", default=[], metavar="KEY", help="with -r: let this key differ from the run"
    )
    group = parser.add_argument_group("instead of training")
    group.add_argument("--check", action="store_true", help="build everything, try one step, report; write nothing")
    group.add_argument(
        "--world-size",
        type=_at_least(1),
        metavar="N",
        help="with --check: as rank 0 of N processes, memory and traffic told",
    )
    group.add_argument("--replay", type=Path, metavar="FILE", help="repeat the step of a failure capsule, and tell")
    group.add_argument("--print-config", action="store_true", help="print the resolved config, and where it says so")
    group.add_argument(
        "--list",
        dest="list_kind",
        nargs="?",
        const="all",
        metavar="KIND",
        help="what can be written: models, losses...",
    )
    group.add_argument("--explain", metavar="KEY", help="what a key means, e.g. trainer.patience or optimizer.args.lr")


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
