"""Train a model: `python train.py -c configs/digits.yaml`, with any key changed by `key.path=value`.

Nothing heavy is imported before the command line and the config are known to be right.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.config.command_line import Arguments, parse_training
from src.utils.command import run_command

if TYPE_CHECKING:
    from src.config.settings import Config


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    arguments = parse_training(argv, __doc__)
    config, run_dir, state = open_run(arguments)
    return train(config, run_dir, state, command=[Path(sys.argv[0]).name, *argv])


def open_run(arguments: Arguments) -> tuple[Config, Path | None, dict[str, Any] | None]:
    """Return the config, and for a resume the run directory and its checkpoint."""
    from src.config.load import config_from_dict, load_config

    config = load_config(arguments.config, arguments.overrides) if arguments.config else None
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
    return config or config_from_dict(state["config"], arguments.overrides, str(run_dir)), run_dir, state


def train(config: Config, path: Path | None, state: dict[str, Any] | None, command: Sequence[str]) -> int:
    """Build everything, train, and return the exit code."""
    from src.config.build import build, check_components

    check_components(config)

    from src.config.experiment import DataMemory, build_experiment, build_optimizers
    from src.logger.console import closing_summary, log_to_file, setup_console
    from src.logger.logger import Logger, standard_sinks
    from src.logger.run_dir import RunDir
    from src.trainer.hooks import standard_hooks
    from src.trainer.rehearse import rehearse
    from src.trainer.resume import init_weights
    from src.trainer.trainer import Trainer
    from src.utils.device import find_device, make_deterministic
    from src.utils.paths import project_path
    from src.utils.seed import seed_everything

    setup_console()
    device = find_device(config.trainer.device)
    if config.trainer.deterministic:
        make_deterministic()
    seed_everything(config.seed)
    experiment = build_experiment(config, device, state and state["data"])
    if config.trainer.init_from and state is None:
        init_weights(experiment.model, project_path(config.trainer.init_from))
    for loader in [experiment.loaders["train"], *experiment.val_loaders.values()]:
        rehearse(experiment.task, experiment.model, loader, device)
    optimizers, schedules = build_optimizers(config, experiment)
    hooks = [*standard_hooks(config.logger), *(build("hooks", hook) for hook in config.hooks)]

    run = RunDir.open(path) if path else RunDir.create(project_path(config.trainer.save_dir), config.name)
    logger = Logger(standard_sinks(config.logger, run.path))
    trainer = Trainer(
        experiment.task,
        experiment.model,
        experiment.loaders["train"],
        optimizers,
        config.trainer,
        schedules=schedules,
        val_loaders=experiment.val_loaders,
        metrics=experiment.metrics,
        logger=logger,
        checkpoints=run.checkpoints,
        hooks=hooks,
        device=device,
        memory={"data": DataMemory(experiment.parts)},
        config=config.as_dict(),
    )
    if state is not None:
        trainer.load_state_dict(state, str(run.path))
    run.write_config(config.as_dict())
    run.write_environment(command, config.seed)
    trainer.fit()
    logger.close()
    return 128 + trainer.signal if trainer.signal else 0


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
