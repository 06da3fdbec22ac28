"""When a save fails: what is forgiven, what ends the run, and finding out before it begins."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from src.trainer.checkpoint import CheckpointStore
from src.trainer.nonfinite import tensors_in
from src.utils.errors import ResourceError
from src.utils.paths import shown_path

MAX_FAILED_SAVES = 3
SPARE_BYTES = 1 << 20
"""For logs and manifests."""
log = logging.getLogger(__name__)


class Saver:
    """Saves a run's state into its folder, or nowhere.

    Args:
        folder: For checkpoints; None keeps none.
        keep: How many of the newest stay, besides the best.
    """

    def __init__(self, folder: Path | None, keep: int) -> None:
        self.store = CheckpointStore(folder, keep) if folder else None
        self.saved_step = -1
        """The step whose state is on disk."""
        self._num_failed = 0

    def prepare(self, state: Mapping[str, Any]) -> None:
        """Tidy up after a killed save, and look whether two states fit on the disk.

        Args:
            state: As it would be saved now. Optimizers that have made no step yet are counted as Adam's.

        Raises:
            ResourceError: They do not fit.
        """
        if self.store is None:
            return
        self.store.recover()
        num_bytes, free = state_bytes(state), shutil.disk_usage(self.store.folder).free
        if free < 2 * num_bytes + SPARE_BYTES:
            raise ResourceError(
                f"{shown_path(self.store.folder)}: checkpoints need about {2 * num_bytes / 2**20 + 1:.0f} MiB, "
                f"{free / 2**20:.0f} MiB are free; free some, or name another trainer.save_dir"
            )

    def save(self, state: Callable[[], Mapping[str, Any]], step: int, is_best: bool, is_last_chance: bool) -> None:
        """Save; a failure is reported and forgiven twice, but not at the end.

        Raises:
            ResourceError: Three saves in a row failed, or the last one.
        """
        if self.store is None:
            return
        try:
            self.store.save(state(), step, is_best)
        except ResourceError as error:
            self._num_failed += 1
            if is_last_chance or self._num_failed >= MAX_FAILED_SAVES:
                raise
            log.warning("%s; training goes on and saves again later", error)
        else:
            self.saved_step, self._num_failed = step, 0


def state_bytes(state: Mapping[str, Any]) -> int:
    """Return about how many bytes a state has on disk once every optimizer has made a step."""
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors_in(state))
    weights = sum(tensor.numel() * tensor.element_size() for tensor in tensors_in(state["model"]))
    has_moments = any(tensors_in(value) for name, value in state.items() if name.split(".")[0] == "optimizer")
    return num_bytes + (0 if has_moments else 2 * weights)
