"""Weights & Biases: `logger: {sinks: [{type: wandb.WandB, args: {project: mine}}]}`.

Offline unless told otherwise: nothing leaves the machine until you type `wandb sync RUN/wandb/offline-run-*`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from src.logger.pictures import grid
from src.logger.sink import Sink
from src.utils.errors import ConfigError
from src.utils.packages import not_installed

LOG = logging.getLogger(__name__)
WAIT_S = 60
"""For the service, when a run begins and when it ends: what it did not take then stays in the run's folder."""


class WandB(Sink):
    """Sends numbers, settings, images and histograms; a call costs about 0.2 milliseconds.

    Every start, also a resumed one, makes a folder `wandb/offline-run-*` with the same run id. The service takes no
    step twice, so what a killed run wrote behind its last checkpoint stays as it was; a resumed run repeats it anyway.

    Args:
        run_path: The run's folder, filled in by the run.
        project: Name of the project.
        mode: `offline` keeps everything in the run's folder, `online` sends it at once; a run that begins while the
            service cannot be reached is kept offline.

    Raises:
        ConfigError: wandb isn't installed.
    """

    def __init__(self, run_path: Path, project: str = "keel", mode: Literal["offline", "online"] = "offline") -> None:
        try:
            import wandb
        except ImportError as error:
            raise ConfigError(not_installed("logger.sinks: wandb", "wandb")) from error
        self._wandb: Any = wandb
        about = {
            "project": project,
            "name": run_path.name,
            "group": run_path.parent.name,
            "id": f"{run_path.parent.name}-{run_path.name}",
            "dir": str(run_path),
        }
        waits = {"init_timeout": WAIT_S, "finish_timeout": WAIT_S, "finish_timeout_raises": True}
        settings = wandb.Settings(console="off", silent=True, **waits)
        try:
            self._run: Any = wandb.init(
                **about, mode=mode, resume="allow" if mode == "online" else None, settings=settings
            )
        except wandb.errors.CommError as error:
            LOG.warning("wandb: the service cannot be reached, so this run is kept offline (%s)", error)
            wandb.teardown()  # it still holds the run's name
            self._run = wandb.init(**about, mode="offline", settings=settings)

    def scalars(self, values: Mapping[str, float], step: int, epoch: int | None) -> None:
        """Send numbers under their full names."""
        self._run.log({**values, **({} if epoch is None else {"epoch": epoch})}, step=step)

    def images(self, tag: str, images: np.ndarray[Any, Any], step: int) -> None:
        """Send one picture with all images in it."""
        self._run.log({tag: self._wandb.Image(grid(images))}, step=step)

    def histogram(self, tag: str, values: np.ndarray[Any, Any], step: int) -> None:
        """Send the distribution of the finite ones of these numbers."""
        counts = np.histogram(values[np.isfinite(values)], bins=64)
        self._run.log({tag: self._wandb.Histogram(np_histogram=counts)}, step=step)

    def hparams(self, values: Mapping[str, Any]) -> None:
        """Send the run's settings."""
        self._run.config.update(dict(values), allow_val_change=True)

    def close(self) -> None:
        """Wait until everything is written or sent."""
        self._run.finish()
