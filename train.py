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
from src.utils.errors import CheckpointError, ConfigError
from src.utils.paths import has_checkpoint, project_path
from src.utils.processes.launched import find_ranks, is_launched
from src.utils.processes.ranks import ALONE, Ranks

if TYPE_CHECKING:
    from src.config.settings import Config


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    from src.compat.detect import is_classical

    if is_classical(argv):
        if is_launched():
            raise ConfigError("torchrun: starts no projects of pytorch-template; they train in one process")
        from src.compat.run import train as train_theirs

        return train_theirs(argv)
    ranks = find_ranks()  # first: only one of several is to tell what is wrong with their command line
    arguments = parse_training(argv, __doc__)
    answered = answer(arguments)
    if answered is not None:
        print(answered)
        return 0
    if arguments.replay:
        from src.run.replay import replay

        return replay(arguments.replay, arguments.overrides, arguments.trusted)
    if (code := ranks.recall("code")) is not None:  # an earlier attempt has ended, and not by accident
        return int(code)
    from src.logger.console import setup_console

    if ranks.is_main:
        setup_console(arguments.quiet, arguments.verbose)
    is_many = arguments.folds or arguments.seeds  # they find out themselves what to go on with
    config, run_dir, state = open_run(replace(arguments, resume=None) if is_many else arguments, ranks)
    with placed(config.places):
        return check_or_train(arguments, config, run_dir, state, [Path(sys.argv[0]).name, *argv], ranks)


def check_or_train(
    arguments: Arguments,
    config: Config,
    run_dir: Path | None,
    state: dict[str, Any] | None,
    command: Sequence[str],
    ranks: Ranks,
) -> int:
    """Do what the command line asks for with a config that is right as far as can be told without building it."""
    if arguments.check:
        from src.run.check import check

        for line in check(config, run_dir, state, arguments.allowed, pretended(arguments.world_size)):
            print(line)
        return 0
    if (arguments.folds or arguments.seeds) and ("," in config.trainer.device or not ranks.is_alone):
        option = "--folds" if arguments.folds else "--seeds"
        here = config.trainer.device if ranks.is_alone else f"{ranks.world_size} processes"
        raise ConfigError(f"{option}: trains in one process, on one device; found {here}")
    if ranks.is_alone and "," in config.trainer.device:
        return start_ranks(config)
    with served(config) if arguments.board and ranks.is_main else nullcontext():
        if arguments.folds:
            from src.sweep.folds import train_folds

            return train_folds(config, arguments, command)
        if arguments.seeds:
            from src.sweep.seeds import train_seeds

            return train_seeds(config, arguments, command)
        from src.run.training import train

        return train(config, run_dir, state, command, arguments.allowed, ranks)


def served(config: Config) -> AbstractContextManager[None]:
    """Return the context in which TensorBoard shows the runs of this name."""
    from src.logger.board import board

    return board(project_path(config.trainer.save_dir) / config.name)


def pretended(world_size: int | None) -> Ranks:
    """Return rank 0 of so many that are not there; of one process if nobody asked for more."""
    if world_size is None or world_size < 2:
        return ALONE
    from src.utils.processes.pretended import PretendedGroup

    return PretendedGroup(world_size)


def start_ranks(config: Config) -> int:
    """Start this command again as one process for each device of the config, and return the exit code."""
    from src.utils.device import find_device, split_devices
    from src.utils.processes.launch import launch

    devices = split_devices(config.trainer.device)
    for device in devices:
        find_device(device)
    return launch([sys.executable, *sys.argv], len(devices), config.trainer.parallel_settings.max_restarts)


def open_run(arguments: Arguments, ranks: Ranks) -> tuple[Config, Path | None, dict[str, Any] | None]:
    """Return the config, and for a resume the run directory and its checkpoint.

    Ranks that were started again go on with the run of their first attempt.
    """
    from src.config.load import config_from_dict, load_config
    from src.config.registry import trust, use_folder, use_recorded_folder

    use_folder(arguments.config.parent if arguments.config else None)
    trust(arguments.trusted)
    config = load_config(arguments.config, arguments.overrides, whole_report=True) if arguments.config else None
    wanted = earlier_attempt(ranks) or arguments.resume
    if wanted is None:
        assert config is not None  # the command line asks for one of the two
        return config, None, None

    from src.trainer.checkpoints.resume import newest_run, open_together

    if wanted == "auto":
        assert config is not None
        wanted = ranks.broadcast(str(newest_run(project_path(config.trainer.save_dir), config.name) or ""))
        if not wanted:
            return config, None, None
    run_dir, state = open_together(Path(wanted), ranks)
    if "config" not in state:
        raise CheckpointError(f"{run_dir}: its checkpoint holds no config; trainer.init_from takes its weights alone")
    if config is None:
        use_recorded_folder(state.get("config_folder"))
        trust(arguments.trusted)
        config = config_from_dict(state["config"], arguments.overrides, str(run_dir), whole_report=True)
    return config, run_dir, state


def earlier_attempt(ranks: Ranks) -> str | None:
    """Return the run that ranks which have died since had begun and saved; one that was never saved is begun again."""
    run = ranks.recall("run")
    if run is None or has_checkpoint(Path(run)):
        return run
    if ranks.is_main:
        from src.logger.run_dir import RunDir

        RunDir.open(Path(run)).discard()
    return None


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
