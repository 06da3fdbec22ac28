"""Train a model: `python train.py -c configs/digits.yaml`, with any key changed by `key.path=value`.

Nothing heavy is imported before the command line and the config are known to be right.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.config.answers import answer
from src.config.command_line import Arguments, parse_training
from src.config.mistakes import placed
from src.utils.command import run_command

if TYPE_CHECKING:
    from src.config.settings import Config


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    from src.compat.detect import is_classical

    if is_classical(argv):
        from src.compat.run import train as train_theirs

        return train_theirs(argv)
    arguments = parse_training(argv, __doc__)
    answered = answer(arguments)
    if answered is not None:
        print(answered)
        return 0
    if arguments.replay:
        from src.replay import replay

        return replay(arguments.replay, arguments.overrides, arguments.trusted)
    config, run_dir, state = open_run(replace(arguments, resume=None) if arguments.folds else arguments)
    with placed(config.places):
        return check_or_train(arguments, config, run_dir, state, [Path(sys.argv[0]).name, *argv])


def check_or_train(
    arguments: Arguments, config: Config, run_dir: Path | None, state: dict[str, Any] | None, command: Sequence[str]
) -> int:
    """Do what the command line asks for with a config that is right as far as can be told without building it."""
    if arguments.check:
        from src.check import check

        for line in check(config, run_dir, state, arguments.allowed):
            print(line)
        return 0
    from src.logger.console import setup_console

    setup_console(arguments.quiet, arguments.verbose)
    with served(config) if arguments.board else nullcontext():
        if arguments.folds:
            from src.folds import train_folds

            return train_folds(config, arguments, command)
        from src.training import train

        return train(config, run_dir, state, command, arguments.allowed)


def served(config: Config) -> AbstractContextManager[None]:
    """Return the context in which TensorBoard shows the runs of this name."""
    from src.logger.board import board
    from src.utils.paths import project_path

    return board(project_path(config.trainer.save_dir) / config.name)


def open_run(arguments: Arguments) -> tuple[Config, Path | None, dict[str, Any] | None]:
    """Return the config, and for a resume the run directory and its checkpoint."""
    from src.config.load import config_from_dict, load_config
    from src.config.registry import trust, use_folder, use_recorded_folder

    use_folder(arguments.config.parent if arguments.config else None)
    trust(arguments.trusted)
    config = load_config(arguments.config, arguments.overrides, whole_report=True) if arguments.config else None
    if arguments.resume is None:
        assert config is not None  # the command line asks for one of the two
        return config, None, None

    from src.trainer.resume import newest_run, open_checkpoint
    from src.utils.paths import project_path

    if arguments.resume == "auto":
        assert config is not None
        newest = newest_run(project_path(config.trainer.save_dir), config.name)
        if newest is None:
            return config, None, None
        run_dir, state = open_checkpoint(newest)
    else:
        run_dir, state = open_checkpoint(Path(arguments.resume))
    if config is None:
        use_recorded_folder(state.get("config_folder"))
        trust(arguments.trusted)
    return config or config_from_dict(state["config"], arguments.overrides, str(run_dir)), run_dir, state


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
