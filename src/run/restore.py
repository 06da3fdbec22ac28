"""A run goes on: its checkpoint, and what its config says otherwise now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from src.config.load import config_from_dict
from src.config.settings import Config
from src.run.experiment import Experiment, build_optimizers
from src.trainer.trainer import Trainer


def restore(trainer: Trainer, state: Mapping[str, Any], where: str, config: Config, experiment: Experiment) -> None:
    """Put a checkpoint into a trainer, with the settings of optimizers and schedules that differ in the config now.

    Torch puts back the rates and decays of a checkpoint too. Moments stay, and the place in a schedule.
    """
    trainer.load_state_dict(state, where)
    old = config_from_dict(state["config"], origin=where)
    so_far = replace(config, optimizer=old.optimizer, lr_scheduler=old.lr_scheduler, parameters=old.parameters)
    if so_far == config:
        return
    before, schedules_before = build_optimizers(so_far, experiment)
    after, schedules_after = build_optimizers(config, experiment)
    for name, optimizer in trainer.optimizers.items():
        groups = zip(optimizer.param_groups, before[name].param_groups, after[name].param_groups, strict=True)
        for group, was, given in groups:
            changed = {key: value for key, value in given.items() if key not in ("params", "lr")}
            group.update({key: value for key, value in changed.items() if was.get(key) != value})
    for name, schedule in trainer.schedules.items():
        schedule.take_settings(schedules_before[name], schedules_after[name])
