"""A whole sweep: checked, begun or gone on with, made, and told."""

from __future__ import annotations

import logging
import shlex
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from src.config.load import varied
from src.config.settings import Config
from src.config.signatures import check_components
from src.config.tune import TrialResources
from src.logger.logger import Logger
from src.logger.run_dir import check_run_name
from src.run.experiment import build_experiment, build_trainer
from src.run.training import prepare, try_out
from src.sweep.draws import check_installed
from src.sweep.outcome import tell_outcome
from src.sweep.ray_tune import Sweep, check_resources, num_cores, run_trials
from src.sweep.record import CRASHED, SweepFolder, newest_sweep
from src.sweep.space import check_space, draw, num_trials, plain_name
from src.trainer.checkpoints.saving import state_bytes
from src.utils.errors import ConfigError
from src.utils.paths import project_path, shown_path
from src.utils.secrets import masked_command

log = logging.getLogger(__name__)


def run_sweep(
    config: Config,
    config_file: Path,
    resume: str | None,
    address: str | None,
    trusted: tuple[str, ...],
    command: Sequence[str],
) -> int:
    """Make a sweep, or go on with one, and return the exit code.

    Args:
        config: With a section `tune`.
        config_file: Where it was read.
        resume: Folder of the sweep to go on with; `auto` is the newest of this config, or a new one; None begins one.
        address: Of a running Ray cluster; None starts Ray here.
        trusted: Packages and folders whose classes may be named.
        command: That begins the same sweep; with `--resume` it goes on.

    Raises:
        KeelError: It cannot begin, and why.
    """
    base, parts, num_bytes = ready(config, local=address is None)
    parent = project_path(config.trainer.save_dir) / config.name
    found = newest_sweep(parent) if resume == "auto" else Path(resume) if resume else None
    folder = SweepFolder.open(found, config) if found else SweepFolder.create(parent, config)
    sweep = Sweep(base, folder, *compared(config), config_file.parent.resolve(), parts, trusted)
    kept = num_trials(sweep.tune) * (config.trainer.keep + 1)
    done = sum(bool(trial.outcome) for trial in folder.trials())
    log.info("sweep  %s", shown_path(folder.path))
    log.info("trials %d%s", num_trials(sweep.tune), f", {done} of them made before" if done else "")
    log.info("disk   up to %.3g MiB: %d checkpoints of %.3g MiB", kept * num_bytes / 2**20, kept, num_bytes / 2**20)
    code = 0
    try:
        run_trials(sweep, address)
    except BaseException as error:
        if not folder.trials():  # nothing was begun
            folder.discard()
            raise
        if not isinstance(error, SystemExit):
            raise
        code = int(error.code or 1)
    for line in tell_outcome(sweep, config_file):
        log.info("%s", line)
    if all(trial.outcome == CRASHED for trial in folder.trials()):
        return code or 1
    if code:
        again = shlex.join(["python", *masked_command([*command, "--resume", shown_path(folder.path)])])
        log.info("stopped; go on with: %s", again)
    return code


def check_sweep(config: Config) -> Iterator[str]:
    """Yield what a sweep would be: its trials and their values; nothing is begun.

    Raises:
        KeelError: It could not begin, and why.
    """
    _, _, num_bytes = ready(config)
    assert config.tune is not None
    total = num_trials(config.tune)
    kept = total * (config.trainer.keep + 1)
    yield f"compared   {' '.join(reversed(compared(config)))}"
    yield f"disk       up to {kept * num_bytes / 2**20:.3g} MiB: {kept} checkpoints of {num_bytes / 2**20:.3g} MiB"
    yield f"trials     {total}"
    if config.tune.search == "random":
        for number in range(min(total, 100)):
            values = draw(config.tune, config.seed, number)
            yield "  ".join([f"trial_{number:03d}", *(f"{plain_name(k, values)} {v}" for k, v in values.items())])


def compared(config: Config) -> tuple[str, str]:
    """Return (metric, mode)."""
    assert config.tune is not None
    mode, _, name = (config.trainer.monitor or "min val/loss").partition(" ")
    return config.tune.metric or name, config.tune.mode or mode


def ready(config: Config, local: bool = True) -> tuple[Config, list[str], int]:
    """Check everything that can be known before Ray starts; return what is known of each trial.

    That is its config but for its values, the names of its parts of data, and the bytes of a checkpoint.

    Raises:
        KeelError: What is wrong.
    """
    if config.tune is None:
        example = "tune: {space: {optimizer.args.lr: {loguniform: [1e-5, 1e-1]}}, samples: 8}"
        raise ConfigError(f"tune: missing; say what to search, e.g. {example}")
    check_installed(config.tune)
    check_components(config)
    check_space(config)
    if local:
        check_resources(config.tune.resources_per_trial, {"cpu": num_cores()})
    check_run_name(config.name)
    device = prepare(config)
    experiment = build_experiment(config, device)
    try_out(config, experiment, device, None, "sweep")
    with tempfile.TemporaryDirectory(prefix="keel-tune-") as scratch:
        state = build_trainer(config, experiment, device, Logger([]), Path(scratch)).state_dict()
    return _of_trials(config, device.type), list(experiment.parts), state_bytes(state)


def _of_trials(config: Config, device: str) -> Config:
    """Return the config of all trials, which says what they compute on, and watch: each can be made again alone."""
    assert config.tune is not None
    takes = config.tune.resources_per_trial
    gpu = float(device == "cuda") if takes.gpu is None else takes.gpu
    kind = "cuda" if gpu else "mps" if device == "mps" else "cpu"
    monitor = " ".join(reversed(compared(config)))
    values: dict[str, Any] = {"trainer.threads": takes.cpu, "trainer.device": kind, "trainer.monitor": monitor}
    tune = replace(config.tune, resources_per_trial=TrialResources(takes.cpu, gpu))
    return replace(varied(config, values), tune=tune)
