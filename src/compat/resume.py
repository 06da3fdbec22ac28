"""Going on from one of their checkpoints: the rest of a run, or with a new config a fine-tuning that counts on."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Mapping
from typing import Any

from src.compat.their_config import ConfigParser
from src.trainer.checkpoints.resume import load_weights
from src.trainer.schedule import learning_rates
from src.trainer.trainer import Trainer
from src.utils.errors import CheckpointError

log = logging.getLogger(__name__)


def go_on_from_theirs(
    trainer: Trainer, checkpoint: Mapping[str, Any], config: ConfigParser, *, is_new_config: bool
) -> None:
    """Put weights, optimizer, epoch and best value into `trainer`.

    A checkpoint that was written here holds the state of schedule and random streams as well: the run then goes on
    bit for bit, unless a new config was named. One from elsewhere holds none: the schedule is moved to its epoch.

    Raises:
        CheckpointError: It is of another model.
    """
    same_optimizer = checkpoint["config"]["optimizer"]["type"] == config["optimizer"]["type"]
    if "keel" in checkpoint and same_optimizer and not is_new_config:
        optimizer = {"type": config["optimizer"]["type"], "state": checkpoint["optimizer"]}
        state = {**checkpoint["keel"], "model": checkpoint["state_dict"], "optimizer": optimizer}
        trainer.load_state_dict({**state, "logger": trainer.logger.state_dict()})
    else:
        _take_over(trainer, checkpoint, config, same_optimizer)
    if same_optimizer and checkpoint["config"]["optimizer"] != config["optimizer"]:
        rates = ", ".join(f"{rate:g}" for rate in learning_rates(trainer.optimizers).values())
        log.warning("optimizer.args differ from those of the checkpoint, whose state counts: learning rate %s", rates)
    if trainer.is_finished:
        raise CheckpointError(
            f"the checkpoint has {trainer.progress.epoch} epochs and trainer.epochs is {config['trainer']['epochs']}: "
            "it is the number of the last epoch, also after a resume; raise it"
        )
    log.info("Checkpoint loaded. Resume training from epoch %d", trainer.progress.epoch + 1)


def _take_over(trainer: Trainer, checkpoint: Mapping[str, Any], config: ConfigParser, same_optimizer: bool) -> None:
    old, epoch = checkpoint["config"], int(checkpoint["epoch"])
    if old["arch"] != config["arch"]:
        log.warning("arch differs from that of the checkpoint; its weights are loaded all the same, if they fit")
    load_weights(trainer.model, checkpoint["state_dict"], "checkpoint")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch expects an optimizer step before: it was in another run
        for schedule in trainer.schedules.values():
            for _ in range(epoch):
                schedule.after_epoch()
    optimizer = trainer.optimizers["optimizer"]
    if same_optimizer:
        optimizer.load_state_dict(checkpoint["optimizer"])
    else:
        log.warning("optimizer.type differs from that of the checkpoint; the optimizer starts afresh")
    progress = trainer.progress
    progress.epoch, progress.step = epoch, epoch * len(trainer.train_loader)
    _take_best(trainer, checkpoint, config)


def _take_best(trainer: Trainer, checkpoint: Mapping[str, Any], config: ConfigParser) -> None:
    """Continue from the best value so far, if it is of what is watched now; patience starts afresh."""
    best, monitor = float(checkpoint["monitor_best"]), trainer.monitor
    if monitor.name is None or not math.isfinite(best):
        return
    if checkpoint["config"].get("trainer", {}).get("monitor") != config["trainer"]["monitor"]:
        log.warning("trainer.monitor differs from that of the checkpoint; the best value starts afresh")
        return
    monitor.load_state_dict(
        {"name": monitor.name, "best": best, "best_epoch": trainer.progress.epoch, "num_waited": 0, "reference": best}
    )
