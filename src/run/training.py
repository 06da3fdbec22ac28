"""One run, from a checked config to its exit code. What trains a config calls `train`: train.py, sweeps, repeats.

Nothing heavy is imported before names and arguments are known to be right.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.utils.command import exit_code
from src.utils.errors import ConfigError, DataError, ResourceError, WorkerError
from src.utils.processes.ranks import ALONE, Ranks
from src.utils.signals import StopSignals

if TYPE_CHECKING:
    import torch

    from src.config.settings import Config
    from src.logger.logger import Logger
    from src.logger.run_dir import RunDir
    from src.run.experiment import Experiment
    from src.trainer.hooks import Hook
    from src.trainer.trainer import Trainer

log = logging.getLogger(__name__)


def train(
    config: Config, path: Path | None, state: dict[str, Any] | None, command: Sequence[str],
    allowed: Sequence[str] = (), ranks: Ranks = ALONE, watchers: Sequence[Hook] = (), is_one_of_many: bool = False,
) -> int:  # fmt: skip
    """Build everything, train, and return the exit code.

    Args:
        config: Of this run.
        path: Run directory to go on in; None makes a new one.
        state: Checkpoint to go on from, or None.
        command: The command line, for the record.
        allowed: Keys that may differ from the run that goes on, though they should not.
        ranks: The processes that train together; each of them calls this.
        watchers: Hooks besides those of the config.
        is_one_of_many: Say nothing of what to type next: others follow.
    """
    from src.utils.host_memory import lasting_objects

    with lasting_objects():
        from src.config.signatures import check_components
        from src.run.closing import next_commands, trust_needed

        check_components(config)
        from src.config.changes import check_changes
        from src.logger.logger import Logger
        from src.run.experiment import build_experiment, build_sinks, build_trainer
        from src.run.opening import introduce
        from src.run.restore import restore
        from src.trainer.checkpoints.init_from import init_weights
        from src.trainer.parallel.choose import is_cut
        from src.utils.device import load_compiler

        load_compiler()

    allowed = with_batch_size(allowed, state, config, ranks)
    changed = [] if state is None else check_changes(state["config"], config, allowed, str(path))
    device = prepare(config, ranks)
    experiment = build_experiment(config, device, state and state["data"], ranks)
    if config.trainer.init_from and state is None:
        init_weights(experiment.model, config.trainer.init_from)
    trial = partial(try_out, config, experiment, device, None if "data" in allowed else state, str(path))
    if not is_cut(config.trainer, ranks):
        trial()
    meet(config, experiment, device, ranks)

    run = open_folder(path, config, ranks)
    with ExitStack() as undo:  # what cannot begin leaves no folder behind
        undo.callback(lambda: run.discard() if path is None and ranks.is_main else run.close())
        logger = Logger(build_sinks(config, run.path) if ranks.is_main else [])
        trainer = build_trainer(config, experiment, device, logger, run.checkpoints, ranks)
        if is_cut(config.trainer, ranks):
            trial()  # before, rank 0 alone may have values
        trainer.hooks += watchers
        trainer.guard.trusted = tuple(trust_needed())
        if state is not None:
            restore(trainer, state, str(run.path), config, experiment)
        undo.pop_all()
    if ranks.is_main:
        introduce(config, experiment, trainer, run, command, state, changed)
    return fit(trainer, run, logger, () if is_one_of_many else next_commands(run.path, config, experiment.parts))


def prepare(config: Config, ranks: Ranks = ALONE) -> torch.device:
    """Make this process ready to build the run, and return its device."""
    from src.logger.logger import check_sinks
    from src.logger.run_dir import check_writable
    from src.utils.device import find_device, make_deterministic, use_tf32, use_threads
    from src.utils.host_memory import keep_freed_memory
    from src.utils.paths import project_path
    from src.utils.seed import seed_everything

    check_sinks(config.logger)
    check_writable(project_path(config.trainer.save_dir))
    keep_freed_memory()
    use_threads(config.trainer.threads)
    use_tf32(config.trainer.tf32)
    device = find_device(config.trainer.device, ranks)
    if config.trainer.deterministic:
        make_deterministic()
    seed_everything(config.seed)
    return device


def with_batch_size(
    allowed: Sequence[str], state: Mapping[str, Any] | None, config: Config, ranks: Ranks
) -> Sequence[str]:
    """Return `allowed`, and the size of a batch where all ranks together read the batches the run was begun with."""
    is_same = state is not None and state.get("batch_size") == config.loader_of("train").batch_size * ranks.world_size
    return (*allowed, "loader.batch_size") if is_same else allowed


def meet(config: Config, experiment: Experiment, device: torch.device, ranks: Ranks) -> None:
    """Begin to train together, but not what is not the same: all ranks raise what is wrong with one of them.

    Raises:
        ConfigError: The config of a rank differs from that of rank 0.
        DataError: The data of a rank do.
    """
    ranks.start(device, config.trainer.parallel_settings.timeout)
    if ranks.is_alone:
        return
    from src.config.changes import changes
    from src.config.load import config_from_dict
    from src.data.parts.content import data_changes, fingerprint
    from src.utils.seed import mix_seed, seed_everything

    there = ranks.broadcast({"config": config.as_dict(), "parts": fingerprint(experiment.parts)})
    settings = [each for each in changes(config_from_dict(there["config"]), config) if not each.is_harmless]
    data = data_changes(there["parts"], experiment.parts)
    found = ranks.gather([str(settings[0]) if settings else "", "; ".join(data)])
    for rank, (setting, rows) in enumerate(ranks.broadcast(found)):
        if setting:
            raise ConfigError(f"rank {rank}'s config differs from rank 0's: {setting}")
        if rows:
            raise DataError(f"rank {rank}'s data differ from rank 0's: {rows}")
    if not ranks.is_main:
        seed_everything(mix_seed(config.seed, ranks.rank))  # weights were made alike, noise will not be


def open_folder(path: Path | None, config: Config, ranks: Ranks) -> RunDir:
    """Return the run's folder, which rank 0 decides on for all and for all attempts of this job.

    Args:
        path: Of a run that goes on; None makes a new one.
        config: Of this run.
        ranks: The others only learn where it is, and keep their own log of errors there.
    """
    from src.logger.console import setup_silence
    from src.logger.run_dir import RunDir
    from src.utils.paths import project_path

    if ranks.is_main:
        run = RunDir.open(path) if path else RunDir.create(project_path(config.trainer.save_dir), config.name)
        ranks.remember("run", str(run.path))
        ranks.broadcast(str(run.path))
        return run
    run = RunDir(Path(ranks.broadcast(None)))
    setup_silence(run.path / f"rank{ranks.rank}.log")
    return run


def try_out(
    config: Config, experiment: Experiment, device: torch.device, state: dict[str, Any] | None, where: str
) -> None:
    """Find out while there is no folder yet what would stop the run: changed data, a task's memory, a batch.

    Args:
        config: Of the run.
        experiment: As built.
        device: Of the run.
        state: Checkpoint that the run goes on from; None for a new one, or where the data may have changed.
        where: What messages call the run.
    """
    from src.data.parts.content import check_same_data
    from src.run.watched import check_watched
    from src.trainer.evaluate import autocast
    from src.trainer.rehearsal.first_output import try_memory
    from src.trainer.rehearsal.rehearse import rehearse

    if state is not None:
        check_same_data(state.get("parts"), experiment.parts, where)
    try_memory(experiment.task)
    for loader in [experiment.loaders["train"], *experiment.val_loaders.values()]:
        with autocast(config.trainer.amp_dtype, device)():
            output = rehearse(
                experiment.task, experiment.model, loader, device, experiment.made_with, experiment.metrics
            )
        if output is not None and loader.part.name != "train":
            check_watched(config, experiment, loader.part.name, output)


def fit(trainer: Trainer, run: RunDir, logger: Logger, commands: Sequence[str]) -> int:
    """Train, say how it ended, and return the exit code. A new run refused before its first step leaves no folder."""
    from src.logger.console import closing_summary
    from src.logger.status import write_status
    from src.trainer.checkpoints.store import newest_step

    def note(code: int | None) -> None:
        if ranks.is_main:
            write_status(run.path, code, trainer.saver.saved_step)
        elif is_left_behind and run.path.exists():  # maybe by rank 0, which may have saved or not
            write_status(run.path, code, newest_step(run.checkpoints))

    started_s, code, ranks, never_began, is_left_behind = time.perf_counter(), 1, trainer.ranks, False, False
    note(None)
    ranks.before_giving_up(lambda: note(WorkerError.exit_code))
    with nullcontext() if ranks.is_alone else StopSignals():  # a launcher may send one when another rank has failed
        try:
            trainer.fit()
            code = 128 + trainer.signal if trainer.signal else 0
        except BaseException as error:
            code, is_left_behind = ranks.code_of_end(error, exit_code(error)), ranks.is_left_behind(error)
            kinds = ConfigError | DataError | ResourceError if ranks.is_alone else ConfigError
            never_began = isinstance(error, kinds) and trainer.progress.step == 0 and trainer.saver.saved_step < 0
            never_began = never_began and not any(run.path.glob("failure-*.pt"))  # which the error names
            if ranks.explain(error) is error and not never_began:
                tell_end(trainer, run)
            raise
        finally:
            logger.close()
            if never_began and ranks.is_main:
                run.discard()
            else:
                note(code)
                run.close()
    monitor = trainer.monitor
    best = {monitor.name: monitor.best} if monitor.name and monitor.best is not None else None
    seconds = time.perf_counter() - started_s
    if trainer.signal and commands:
        from src.run.closing import resume_command

        commands = [resume_command(run.path), *commands]
    log.info(
        "%s",
        closing_summary(
            run.path, seconds=seconds, best=best, best_at=monitor.best_at, commands=commands, has_ended=code == 0
        ),
    )
    return code


def tell_end(trainer: Trainer, run: RunDir) -> None:
    """Say how far a run came that fails now, and what is left of it."""
    from src.utils.paths import shown_path

    saved, step = trainer.saver.saved_step, trainer.progress.step + 1
    kept = "no checkpoint yet, its log and config" if saved < 0 else f"a checkpoint of step {saved}; go on with -r"
    if not trainer.ranks.is_main:
        log.error("stopped in step %d", step, exc_info=True)
    log.info("stopped in step %d; %s holds %s", step, shown_path(run.path), kept)
