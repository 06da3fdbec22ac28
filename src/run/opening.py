"""What is said when a run begins: what it reads, trains and goes on from."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from src.config.mistakes import with_place
from src.config.settings import Config
from src.data.parts.content import AT_START, find_overlaps
from src.logger.console import log_to_file
from src.logger.logger import Logger
from src.logger.run_dir import RunDir
from src.run.experiment import Experiment
from src.trainer.rehearsal.misfits import misfits
from src.trainer.rehearsal.rehearse import count_parameters, describe_length
from src.trainer.schedule import count_epochs
from src.trainer.trainer import Trainer
from src.utils.paths import shown_path

log = logging.getLogger(__name__)


def introduce(
    config: Config,
    experiment: Experiment,
    trainer: Trainer,
    run: RunDir,
    command: Sequence[str],
    state: Mapping[str, Any] | None,
    changed: Sequence[str],
) -> None:
    """Write down how a run is made, and say what is about to run; from now on its log is kept.

    Args:
        config: Of this run.
        experiment: As built.
        trainer: Of it.
        run: Its folder.
        command: The command line.
        state: What the run goes on from; None for a new one.
        changed: What differs from before.
    """
    run.write_config(config.as_dict())
    run.write_environment(command, config.seed)
    log_to_file(run.log_file)
    rows = ", ".join(f"{name} {describe_length(part)}" for name, part in experiment.parts.items())
    epochs = count_epochs(experiment.loaders["train"], config.trainer)
    total, trainable = count_parameters(experiment.model, experiment.freezing.resting(epochs))
    name = type(experiment.model).__name__
    log.info("run    %s", shown_path(run.path))
    log.info("data   %s rows", rows)
    log.info(
        "model  %s, %s parameters%s", name, f"{total:,}", "" if total == trainable else f", {trainable:,} trainable"
    )
    for line in changed:
        log.info("change %s", line)
    if state is None:
        _tell_of_data_and_config(config, experiment, trainer.logger, run)
    _describe_steps(config, trainer, state)


def _tell_of_data_and_config(config: Config, experiment: Experiment, logger: Logger, run: RunDir) -> None:
    overlaps = find_overlaps(experiment.parts, AT_START, fast_only=True)
    if overlaps:
        log.warning("data   %s", "; ".join(map(str, overlaps)))
    logger.text("config", f"```yaml\n{(run.path / 'config.yaml').read_text(encoding='utf-8')}```")
    logger.text("environment", f"```json\n{(run.path / 'environment.json').read_text(encoding='utf-8')}```")
    logger.hparams(config.as_dict())


def _describe_steps(config: Config, trainer: Trainer, state: Mapping[str, Any] | None) -> None:
    """Say how many processes train together, what that makes of a batch, and what the run is too short or long for."""
    loader, size = trainer.train_loader, trainer.ranks.world_size
    if size > 1:
        rows = loader.batch_size
        log.info("ranks  %d processes, %d rows each: a global batch of %d rows", size, rows // size, rows)
    before = state and state.get("batch_size")
    if before not in (None, loader.batch_size):
        log.info("change global batch  %d -> %d", before, loader.batch_size)
    for line in misfits(trainer):
        log.warning("%s", with_place(line, config.places))
