"""One run, from a checked config to its exit code. What trains a config calls `train`: train.py, sweeps, repeats.

Nothing heavy is imported before names and arguments are known to be right.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.utils.command import exit_code

if TYPE_CHECKING:
    import torch

    from src.config.settings import Config
    from src.experiment import Experiment
    from src.logger.logger import Logger
    from src.logger.run_dir import RunDir
    from src.trainer.trainer import Trainer

log = logging.getLogger(__name__)


def train(
    config: Config,
    path: Path | None,
    state: dict[str, Any] | None,
    command: Sequence[str],
    allowed: Sequence[str] = (),
) -> int:
    """Build everything, train, and return the exit code.

    Args:
        config: Of this run.
        path: Run directory to go on in; None makes a new one.
        state: Checkpoint to go on from, or None.
        command: The command line, for the record.
        allowed: Keys that may differ from the run that goes on, though they should not.
    """
    from src.utils.host_memory import keep_freed_memory, lasting_objects

    with lasting_objects():
        from src.config.signatures import check_components

        check_components(config)
        from src.config.changes import check_changes
        from src.experiment import build_experiment, build_sinks, build_trainer
        from src.logger.console import log_to_file
        from src.logger.logger import Logger, check_sinks
        from src.logger.run_dir import RunDir, check_writable
        from src.trainer.init_from import init_weights
        from src.utils.device import find_device, load_compiler, make_deterministic
        from src.utils.paths import project_path
        from src.utils.seed import seed_everything

        load_compiler()

    changed = [] if state is None else check_changes(state["config"], config, allowed, str(path))
    check_sinks(config.logger)
    check_writable(project_path(config.trainer.save_dir))
    keep_freed_memory()
    device = find_device(config.trainer.device)
    if config.trainer.deterministic:
        make_deterministic()
    seed_everything(config.seed)
    experiment = build_experiment(config, device, state and state["data"])
    if config.trainer.init_from and state is None:
        init_weights(experiment.model, config.trainer.init_from)
    try_out(experiment, device, None if "data" in allowed else state, str(path))

    run = RunDir.open(path) if path else RunDir.create(project_path(config.trainer.save_dir), config.name)
    with ExitStack() as undo:  # what cannot begin leaves no folder behind
        undo.callback(lambda: run.discard() if path is None else run.close())
        logger = Logger(build_sinks(config, run.path))
        trainer = build_trainer(config, experiment, device, logger, run.checkpoints)
        if state is not None:
            trainer.load_state_dict(state, str(run.path))
        undo.pop_all()
    run.write_config(config.as_dict())
    run.write_environment(command, config.seed)
    log_to_file(run.log_file)
    introduce(config, experiment, run, logger, None if state is None else changed)
    return fit(trainer, run, logger)


def try_out(experiment: Experiment, device: torch.device, state: dict[str, Any] | None, where: str) -> None:
    """Find out while there is no folder yet what would stop the run: a batch of each part, and changed data.

    Args:
        experiment: As built.
        device: Of the run.
        state: Checkpoint that the run goes on from; None for a new one, or where the data may have changed.
        where: What messages call the run.
    """
    from src.data.content import check_same_data
    from src.trainer.rehearse import rehearse

    if state is not None:
        check_same_data(state.get("parts"), experiment.parts, where)
    for loader in [experiment.loaders["train"], *experiment.val_loaders.values()]:
        rehearse(experiment.task, experiment.model, loader, device, experiment.made_with)


def fit(trainer: Trainer, run: RunDir, logger: Logger) -> int:
    """Train, say how it ended, and return the exit code."""
    from src.logger.console import closing_summary
    from src.logger.status import write_status
    from src.utils.paths import shown_path

    started_s = time.perf_counter()
    code = 1
    write_status(run.path, None, trainer.saver.saved_step)
    try:
        trainer.fit()
        code = 128 + trainer.signal if trainer.signal else 0
    except BaseException as error:
        code = exit_code(error)
        saved = trainer.saver.saved_step
        kept = "no checkpoint yet, its log and config" if saved < 0 else f"a checkpoint of step {saved}; go on with -r"
        log.info("stopped in step %d; %s holds %s", trainer.progress.step + 1, shown_path(run.path), kept)
        raise
    finally:
        logger.close()
        write_status(run.path, code, trainer.saver.saved_step)
        run.close()
    monitor = trainer.monitor
    best = {monitor.name: monitor.best} if monitor.name and monitor.best is not None else None
    seconds = time.perf_counter() - started_s
    log.info("%s", closing_summary(run.path, seconds=seconds, best=best, best_at=monitor.best_at))
    return code


def introduce(
    config: Config, experiment: Experiment, run: RunDir, logger: Logger, changed: Sequence[str] | None
) -> None:
    """Say what is about to run, on the console and to whoever looks at the run later.

    Args:
        config: Of this run.
        experiment: As built.
        run: Its folder.
        logger: Takes the config of a new run.
        changed: Of a run that goes on: what differs from before. None for a new run.
    """
    from src.data.content import AT_START, find_overlaps
    from src.trainer.rehearse import count_parameters, describe_length
    from src.utils.paths import shown_path

    rows = ", ".join(f"{name} {describe_length(part)}" for name, part in experiment.parts.items())
    total, trainable = count_parameters(experiment.model)
    name = type(experiment.model).__name__
    log.info("run    %s", shown_path(run.path))
    log.info("data   %s rows", rows)
    log.info(
        "model  %s, %s parameters%s", name, f"{total:,}", "" if total == trainable else f", {trainable:,} trainable"
    )
    for line in changed or ():
        log.info("change %s", line)
    if changed is None:
        overlaps = find_overlaps(experiment.parts, AT_START, fast_only=True)
        if overlaps:
            log.warning("data   %s", "; ".join(map(str, overlaps)))
        logger.text("config", f"```yaml\n{(run.path / 'config.yaml').read_text(encoding='utf-8')}```")
        logger.text("environment", f"```json\n{(run.path / 'environment.json').read_text(encoding='utf-8')}```")
        logger.hparams(config.as_dict())
