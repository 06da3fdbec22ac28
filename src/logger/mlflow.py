"""MLflow: `logger: {sinks: [mlflow.MLflow]}`, then `mlflow ui --backend-store-uri sqlite:///saved/mlflow.db`."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from src.logger.sink import Sink
from src.utils.errors import ConfigError
from src.utils.packages import not_installed


class MLflow(Sink):
    """Writes numbers of epochs and the settings to a tracking server, by default a file `mlflow.db` beside all runs.

    A call writes to a database and takes some milliseconds, so numbers of single steps are left out unless asked for.
    After a resume the same MLflow run goes on; steps it has already are left out, as a resumed run repeats them
    bit for bit.

    Args:
        run_path: The run's folder, filled in by the run.
        tracking_uri: Where to; default `sqlite:///<save_dir>/mlflow.db`.
        steps: Write `step/...` too.

    Raises:
        ConfigError: mlflow isn't installed.
    """

    def __init__(self, run_path: Path, tracking_uri: str | None = None, steps: bool = False) -> None:
        try:
            from mlflow import MlflowClient, entities
        except ImportError as error:
            raise ConfigError(not_installed("logger.sinks: mlflow", "mlflow")) from error
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # with theirs, a server that is gone holds the
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")  # training up for minutes
        logging.getLogger("urllib3.connectionpool").setLevel(
            logging.ERROR
        )  # each try is told there; the logger says it
        self._metric: Any = entities.Metric
        self._param: Any = entities.Param
        self._client: Any = MlflowClient(tracking_uri or f"sqlite:///{run_path.resolve().parents[1] / 'mlflow.db'}")
        self._run_path = run_path
        self._steps = steps
        self._id = ""
        self._written: dict[str, int] = {}

    def scalars(self, values: Mapping[str, float], step: int, epoch: int | None) -> None:
        """Write numbers under their full names, all in one transaction."""
        now_ms = int(time.time() * 1000)
        new = [
            self._metric(name, value, now_ms, step)
            for name, value in values.items()
            if step > self._written.get(name, -1) and (self._steps or not name.startswith("step/"))
        ]
        if new:
            self._client.log_batch(self._run_id(), metrics=new)

    def hparams(self, values: Mapping[str, Any]) -> None:
        """Write the run's settings."""
        params = [self._param(name, str(value)[:6000]) for name, value in values.items()]
        for start in range(0, len(params), 100):  # the most that one call takes
            self._client.log_batch(self._run_id(), params=params[start : start + 100])

    def state_dict(self) -> dict[str, Any]:
        """Which MLflow run this is."""
        return {"run_id": self._run_id()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on in that MLflow run, after the last step it has of each number."""
        self._id = state["run_id"]
        names = self._client.get_run(self._id).data.metrics
        self._written = {
            name: max(point.step for point in self._client.get_metric_history(self._id, name)) for name in names
        }

    def close(self) -> None:
        """Mark the run as finished."""
        if self._id:
            self._client.set_terminated(self._id)

    def _run_id(self) -> str:
        if not self._id:
            name = self._run_path.parent.name
            experiment = self._client.get_experiment_by_name(name)
            where = experiment.experiment_id if experiment else self._client.create_experiment(name)
            self._id = self._client.create_run(where, run_name=self._run_path.name).info.run_id
        return self._id
