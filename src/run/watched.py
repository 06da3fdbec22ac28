"""Whether the values that a run watches are among those it logs."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

from src.config.mistakes import did_you_mean
from src.config.settings import Config
from src.model.metric import MetricSet
from src.run.experiment import Experiment
from src.trainer.task import StepOutput
from src.utils.errors import ConfigError


def check_watched(config: Config, experiment: Experiment, part: str, output: StepOutput) -> None:
    """Refuse to watch a value of `part` that it does not log, known once a step of the task was tried.

    Raises:
        ConfigError: Names the key, what is logged, and the nearest.
    """
    logged = ["loss", *output.scalars, *config.metrics]
    schedules = config.lr_scheduler if isinstance(config.lr_scheduler, Mapping) else {"": config.lr_scheduler}
    compared = None if config.tune is None else config.tune.metric
    watched = {"trainer.monitor": config.trainer.monitor, "tune.metric": compared}
    for name, schedule in schedules.items():
        watched[f"lr_scheduler{name and '.'}{name}.monitor"] = schedule.monitor if schedule else None
    for key, monitor in watched.items():
        where, _, value = (monitor or "").rpartition(" ")[2].partition("/")
        metric, _, row = value.partition("/")
        if where != part:
            continue
        if value not in logged and metric not in logged:
            close = did_you_mean(value, logged)
            raise ConfigError(f"{key}: {part} logs no `{value}`{close}; it logs {', '.join(logged)}")
        rows = _values_of(experiment.metrics, metric, output) if metric in config.metrics else []
        classes = getattr(experiment.parts["train"].dataset, "class_names", None) or range(len(rows))
        is_certain = not row or rows == [str(name) for name in classes]  # other names may depend on the rows
        if rows and row not in rows and is_certain:
            what = f"there is no `{metric}/{row}`" if row else f"`{metric}` has several values"
            raise ConfigError(f"{key}: {what}{did_you_mean(row, rows)}; write {metric}/{rows[0]}, for example")


def _values_of(metrics: MetricSet, metric: str, output: StepOutput) -> list[str]:
    """Return the names of a metric's several values; none where it has one, or so few rows do not tell."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of a few rows of one class, say
            metrics.update(output.outputs, output.targets)
            names = list(metrics.compute())
    except Exception:  # any metric of the user's
        return []
    finally:
        metrics.reset()
    return [name.removeprefix(f"{metric}/") for name in names if name.startswith(f"{metric}/")]
