"""Which way of sharing the work the settings ask for."""

from __future__ import annotations

from src.trainer.parallel.processes import OneProcess, Replicas
from src.trainer.settings import TrainerSettings
from src.utils.errors import ConfigError
from src.utils.processes.ranks import Ranks


def is_cut(settings: TrainerSettings, ranks: Ranks) -> bool:
    """Return whether each process holds a part of the model."""
    return settings.parallel_settings.mode == "fsdp" and not ranks.is_alone


def choose_parallel(settings: TrainerSettings, ranks: Ranks) -> OneProcess:
    """Return how the processes of a run share the work.

    Raises:
        ConfigError: The settings and the number of processes do not go together.
    """
    mode = settings.parallel_settings.mode
    if mode == "fsdp":
        from src.trainer.parallel.sharded import Sharded, Unsharded  # torch's FSDP takes a while to import

        return Unsharded(settings, ranks) if ranks.is_alone else Sharded(settings, ranks)
    if ranks.is_alone:
        return OneProcess(settings, ranks)
    if mode == "none":
        raise ConfigError(
            f"trainer.parallel: none, and there are {ranks.world_size} processes; use auto, or start one process"
        )
    return Replicas(settings, ranks)
