"""The trials of a sweep on Ray Tune, which decides where and when each runs, and which is pruned."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

from src.config.settings import Config
from src.config.tune import TrialResources, TuneSettings
from src.logger.console import duration, number
from src.logger.run_index import is_running
from src.sweep.draws import make_draws
from src.sweep.record import CRASHED, FINISHED, PRUNED, SweepFolder, Trial
from src.sweep.space import num_trials, plain_name
from src.utils.errors import ConfigError, first_line
from src.utils.paths import shown_path

log = logging.getLogger(__name__)

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is sent anywhere
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a trial without a GPU sees none
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # our runs write their own files
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial may crash before it has measured anything
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}
ON_THIS_MACHINE = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # despite its name: on Linux too, listen on the loopback address alone
    "RAY_AUTH_MODE": "token",  # and let in who knows a token that is made for this sweep
}
NO_END = 10**6
"""More evaluations than any run has: ASHA never ends a run by itself."""
STORE_BYTES = 100 * 2**20
"""Of shared memory; only numbers go through it."""
LEAVE_S = 15.0


@dataclass(frozen=True)
class Sweep:
    """What is tried, and where it goes."""

    config: Config
    """As trials have it but for their values."""
    folder: SweepFolder
    metric: str
    mode: str
    home: Path
    """Folder of the config file, where the user's own classes lie."""
    parts: Sequence[str]
    """Names of the parts of the data."""
    trusted: tuple[str, ...] = ()

    @property
    def tune(self) -> TuneSettings:
        """The section `tune`."""
        assert self.config.tune is not None
        return self.config.tune


def run_trials(sweep: Sweep, address: str | None) -> None:
    """Make all trials that have not ended, and record how each ends.

    Raises:
        ConfigError: Nothing here, or in the cluster, has what one trial takes up.
        SystemExit: A signal asked to stop; running trials are saved as far as they got.
    """
    todo = num_trials(sweep.tune) - sum(bool(trial.outcome) for trial in sweep.folder.trials())
    if todo <= 0:
        return
    ray = start_ray(address)
    received: list[int] = []

    def leave(signum: int, frame: FrameType | None) -> None:
        received.append(signum)
        raise SystemExit

    handlers = {signum: signal.signal(signum, leave) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        there = ray.cluster_resources()
        check_resources(sweep.tune.resources_per_trial, {name: there.get(name.upper(), 0.0) for name in ("cpu", "gpu")})
        _fit(sweep, todo)
    except SystemExit:
        raise SystemExit(128 + received[0] if received else 1) from None
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
        ray.shutdown()
        shutil.rmtree(_ray_folder(sweep), ignore_errors=True)
        _wait_for_trials(sweep)


def start_ray(address: str | None) -> Any:
    """Start Ray for this sweep alone, or join a cluster; return the module.

    Raises:
        ConfigError: No cluster answers at the address.
    """
    os.environ.update(QUIET)
    if address is None:
        os.environ.update(ON_THIS_MACHINE, RAY_AUTH_TOKEN=secrets.token_hex(32))
    elif "RAY_AUTH_TOKEN" in os.environ or (Path.home() / ".ray" / "auth_token").exists():
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # `ray start` asks for it since 2.59
    import ray

    logging.getLogger("ray").setLevel(logging.CRITICAL)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if address is None:
        options |= {"num_cpus": num_cores(), "object_store_memory": STORE_BYTES}
        options |= {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    try:
        host, _, port = (address or "").removeprefix("ray://").rpartition(":")
        if port.isdecimal():
            socket.create_connection((host, int(port)), timeout=10).close()  # Ray itself would wait for minutes
        ray.init(address=address or "local", **options)
    except (OSError, ValueError) as error:  # ConnectionError is an OSError
        hint = "is it running (`ray start --head`), and is its token here (RAY_AUTH_TOKEN, or ~/.ray/auth_token)?"
        said = first_line(error).partition(". ")[0]
        raise ConfigError(f"--address {address}: no Ray cluster answers: {said}; {hint}") from None
    return ray


def _ray_folder(sweep: Sweep) -> Path:
    return sweep.folder.path / ".ray"


def _wait_for_trials(sweep: Sweep) -> None:
    """Give trials that were interrupted the time to save."""
    deadline = time.monotonic() + LEAVE_S
    while time.monotonic() < deadline and any(is_running(trial.path) for trial in sweep.folder.trials()):
        time.sleep(0.1)


def num_cores() -> int:
    """Return how many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_resources(takes: TrialResources, there: Mapping[str, float]) -> None:
    """Refuse trials that could never start, for which Ray would wait for ever.

    Args:
        takes: What one trial takes up.
        there: What there is, by `cpu` and `gpu`; what is not named is not checked.

    Raises:
        ConfigError: One trial takes more.
    """
    for name, has in there.items():
        wanted = getattr(takes, name) or 0
        if wanted > has:
            where = f"tune.resources_per_trial.{name}"
            raise ConfigError(f"{where}: one trial takes {wanted:g}, and there are {has:g}; ask for less")


def _fit(sweep: Sweep, todo: int) -> None:
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

    from src.sweep.worker import Worker

    settings = sweep.tune
    scheduler = FIFOScheduler()
    if settings.scheduler == "asha":
        scheduler = ASHAScheduler(
            time_attr="evaluations",
            metric="value",
            mode=sweep.mode,
            max_t=NO_END,
            grace_period=settings.grace_period,
            reduction_factor=settings.reduction_factor,
            stop_last_trials=False,
        )
    common = {
        "config": {key: value for key, value in sweep.config.as_dict().items() if key != "tune"},
        "metric": sweep.metric,
        "home": str(sweep.home),
        "trusted": sweep.trusted,
    }
    takes = {"cpu": settings.resources_per_trial.cpu, "gpu": settings.resources_per_trial.gpu}
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(Worker, common=common), takes),
        tune_config=tune.TuneConfig(
            search_alg=_searcher(sweep, scheduler),
            scheduler=scheduler,
            num_samples=todo,
            max_concurrent_trials=settings.max_concurrent,
            reuse_actors=False,
            trial_name_creator=lambda trial: Path(trial.config["folder"]).name,
            trial_dirname_creator=lambda trial: f"{Path(trial.config['folder']).name}_{trial.trial_id}",
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(_ray_folder(sweep)),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=2),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )
    tuner.fit()


def _searcher(sweep: Sweep, scheduler: Any) -> Any:
    """Return what Ray asks for the next trial, and tells how one ended."""
    from ray.tune.search import Searcher

    old = sweep.folder.trials()
    measured = {trial.number: [value for _, value in trial.measured(sweep.metric)] for trial in old}
    ended = [trial for trial in old if trial.outcome]
    _teach(scheduler, [(trial, measured[trial.number]) for trial in ended])

    class Trials(Searcher):  # type: ignore[misc]
        """First the trials that were interrupted, then new ones."""

        def __init__(self) -> None:
            super().__init__(metric="value", mode=sweep.mode)
            known = [(trial, measured[trial.number]) for trial in ended]
            self.draws = make_draws(sweep.tune, sweep.config.seed, sweep.mode, known)
            self.interrupted = [trial for trial in old if not trial.outcome]
            self.new = iter(range(len(old), num_trials(sweep.tune)))
            self.running: dict[str, Trial] = {}

        def suggest(self, trial_id: str) -> Any:
            if self.interrupted:
                trial = self.interrupted.pop(0)
            else:
                number = next(self.new, None)
                if number is None:
                    return Searcher.FINISHED
                trial = sweep.folder.begin(number, self.draws.ask(number))
            self.running[trial_id] = trial
            return {"folder": str(trial.path), "values": trial.values}

        def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
            trial = self.running.pop(trial_id)
            _end(trial, result or {}, error)
            values = trial.measured(sweep.metric)
            self.draws.tell(trial, [value for _, value in values])
            _tell(sweep, trial, (result or {}).get("time_total_s", 0.0))

        def save(self, checkpoint_path: str) -> None:
            """Keep nothing: the folders of the trials are the record."""
            Path(checkpoint_path).touch()

    return Trials()


def _teach(scheduler: Any, ended: Sequence[tuple[Trial, Sequence[float]]]) -> None:
    """Tell a scheduler what it would know of trials that ended before this process began."""
    for trial, values in ended:
        known = SimpleNamespace(trial_id=trial.name)
        scheduler.on_trial_add(None, known)
        for evaluation, value in enumerate(values, start=1):
            scheduler.on_trial_result(None, known, {"evaluations": evaluation, "value": value})


def _end(trial: Trial, result: dict[str, Any], error: bool) -> None:
    """Put on record how a trial ended; one that was asked to stop by a signal has not ended."""
    code = result.get("code")
    if error:
        trial.end(CRASHED, None)
    elif code is None:
        trial.end(PRUNED, 0)
    elif code not in (130, 143):
        trial.end(FINISHED if code == 0 else CRASHED, code)


def _tell(sweep: Sweep, trial: Trial, seconds: float) -> None:
    values = [value for _, value in trial.measured(sweep.metric)]
    best = f"{sweep.metric} {number((min if sweep.mode == 'min' else max)(values))}" if values else "nothing measured"
    given = "  ".join(f"{plain_name(key, sweep.tune.space)} {shown(value)}" for key, value in trial.values.items())
    outcome = trial.outcome or "stopped"
    log.info("%s  %-8s  %s  %s  %s", trial.name, outcome, best, given, duration(seconds))
    if trial.outcome == CRASHED:
        why = "its worker died" if trial.code is None else f"exit code {trial.code}"
        log.warning("%s crashed (%s): %s", trial.name, why, trial.last_words() or "it said nothing")
        log.warning("all it wrote is in %s", shown_path(trial.path / "output.txt"))


def shown(value: Any) -> str:
    """Return a value of the space as a table shows it."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
