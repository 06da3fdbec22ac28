"""`--check`: everything is built and tried once, and what a run would be is told. Nothing of it is left behind."""

from __future__ import annotations

import math
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from src.config.changes import check_changes
from src.config.checks import components
from src.config.mistakes import with_place
from src.config.settings import Config
from src.config.signatures import check_components
from src.data.parts.content import AT_CHECK, find_overlaps
from src.logger.logger import Logger, check_sinks
from src.logger.run_dir import check_writable
from src.run.check_steps import shown_size, try_steps
from src.run.experiment import Experiment, build_experiment, build_optimizers, build_trainer
from src.run.restore import restore
from src.run.streams import unowned_streams
from src.run.training import try_out
from src.trainer.checkpoints.init_from import init_weights
from src.trainer.checkpoints.store import CheckpointStore, load_checkpoint
from src.trainer.rehearsal.misfits import misfits
from src.trainer.rehearsal.rehearse import count_parameters, describe_length
from src.trainer.schedule import count_epochs, count_steps, learning_rates, rates_over
from src.trainer.trainer import Trainer
from src.utils.device import find_device
from src.utils.paths import project_path
from src.utils.processes.ranks import ALONE, Ranks
from src.utils.seed import seed_everything

PLOT_WIDTH = 60
_LEVELS = "▁▂▃▄▅▆▇█"


def check(
    config: Config,
    run: Path | None = None,
    state: dict[str, Any] | None = None,
    allowed: Sequence[str] = (),
    ranks: Ranks = ALONE,
) -> Iterator[str]:
    """Yields the lines of the report; warnings come last.

    Args:
        config: What would be trained.
        run: Folder of the run that would go on; None for a new one.
        state: Its checkpoint.
        allowed: Keys that may differ from that run, though they should not.
        ranks: Those of the run, or a group that is only pretended.

    Raises:
        KeelError: The run could not begin, and why.
    """
    check_components(config)
    changed = [] if state is None else check_changes(state["config"], config, allowed, str(run))
    check_sinks(config.logger)
    check_writable(project_path(config.trainer.save_dir))
    device = find_device(config.trainer.device)
    seed_everything(config.seed)
    experiment = build_experiment(config, device, state and state["data"], ranks)
    experiment.model.to(device)  # the others are only pretended: all of it is tried here
    if config.trainer.init_from and state is None:
        init_weights(experiment.model, config.trainer.init_from)
    try_out(config, experiment, device, None if "data" in allowed else state, str(run))
    with tempfile.TemporaryDirectory(prefix="keel-check-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ranks.start(device, config.trainer.parallel_settings.timeout)
        trainer = build_trainer(config, experiment, device, Logger([]), Path(folder), ranks)
        if state is not None:
            restore(trainer, state, str(run), config, experiment)
            yield from _describe_resume(trainer, str(run), changed)
        yield from _describe_config(config)
        yield from _describe_data(experiment)
        yield from _describe_ranks(trainer)
        yield from _describe_model(experiment, trainer)
        yield from _describe_phases(trainer)
        yield from _describe_optimizers(trainer)
        mistrusted = [with_place(each, config.places) for each in misfits(trainer)]
        mistrusted += [str(each) for each in find_overlaps(experiment.parts, AT_CHECK, fast_only=False)]
        yield from _describe_schedules(config, experiment, mistrusted)
        yield from try_steps(trainer, experiment, config, mistrusted)
        yield from _describe_log(trainer, config)
        yield from _try_checkpoint(trainer, config, Path(folder), mistrusted)
        mistrusted += unowned_streams(config, device, Path(folder))
    ranks.leave(0)
    yield from (f"warning    {line}" for line in mistrusted)


def _describe_resume(trainer: Trainer, run: str, changed: Sequence[str]) -> Iterator[str]:
    """Says where the run would go on, after its checkpoint was read into all that was built."""
    place = trainer.progress
    yield f"goes on    {run}: after step {place.step:,} (epoch {place.epoch + 1}, batch {place.batch}); all of it fits"
    yield from (f"changed    {line}" for line in changed)
    if trainer.is_finished:
        yield "           nothing is left to do: trainer.epochs=N makes it longer"


def _describe_config(config: Config) -> Iterator[str]:
    """Says what was held against the signatures of the code: a report without mistakes would not show it."""
    names = [component.type for _, component in components(config)]
    yield f"config     {config.name}: the arguments of {', '.join(dict.fromkeys(names))} fit their signatures"


def _describe_data(experiment: Experiment) -> Iterator[str]:
    rows = ", ".join(f"{name} {describe_length(part)}" for name, part in experiment.parts.items())
    yield f"data       {rows} rows"


def _describe_ranks(trainer: Trainer) -> Iterator[str]:
    size, rows = trainer.ranks.world_size, trainer.train_loader.batch_size
    if not trainer.ranks.is_alone:
        yield f"ranks      as rank 0 of {size:,}: {rows // size:,} rows each, a global batch of {rows:,} rows"
        if trainer.device.type == "cuda":
            yield "             a batch that does not fit into a GPU's memory ends the run; one process would cut it"


def _describe_model(experiment: Experiment, trainer: Trainer) -> Iterator[str]:
    resting = trainer.freezing.resting(count_epochs(trainer.train_loader, trainer.settings))
    total, trainable = count_parameters(experiment.model, resting)
    yield f"model      {type(experiment.model).__name__}, {total:,} parameters, {trainable:,} trainable"
    for name, block in experiment.model.named_children():
        own, trains = count_parameters(block, resting)
        if own:
            yield f"             {name:<20} {own:>12,}" + ("" if own == trains else f"  ({trains:,} trainable)")


def _describe_phases(trainer: Trainer) -> Iterator[str]:
    if trainer.freezing.has_phases:
        for epoch, patterns, num_trained in trainer.freezing.phases(trainer.settings.num_epochs):
            frozen = f", frozen: {', '.join(patterns)}" if patterns else ""
            yield f"phase      from epoch {epoch + 1} on {num_trained:,} parameters are trained{frozen}"


def _describe_optimizers(trainer: Trainer) -> Iterator[str]:
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    for name, optimizer in trainer.optimizers.items():
        for index, group in enumerate(optimizer.param_groups):
            held = [names.get(id(parameter), "of the loss") for parameter in group["params"]]
            shown = ", ".join(held[:4]) + (f", ... ({len(held)} in all)" if len(held) > 4 else "")
            rates = f"lr {group['lr']:.3g}, weight_decay {group.get('weight_decay', 0):.3g}"
            yield f"{name:<10} {type(optimizer).__name__} group {index}: {rates}: {shown}"


def _describe_schedules(config: Config, experiment: Experiment, mistrusted: list[str]) -> Iterator[str]:
    """Plots the rates over the whole run, on optimizers of their own."""
    steps_per_epoch, total = count_steps(experiment.loaders["train"], config.trainer)
    if not math.isfinite(total):
        yield "length     unknown: the data have no length, and there is no trainer.max_steps"
        return
    has_length = math.isfinite(steps_per_epoch)
    epochs = f", {total / steps_per_epoch:.4g} epochs of {steps_per_epoch:,} steps" if has_length else ""
    yield f"length     {int(total):,} steps{epochs}"
    optimizers, schedules = build_optimizers(config, experiment)
    for name, values in rates_over(optimizers, schedules, int(total), steps_per_epoch).items():
        if values and len(set(values)) == 1:
            yield f"{name:<10} constant: {values[0]:.3g}"
        elif values:
            told = f"first {values[0]:.3g}, highest {max(values):.3g}, last {values[-1]:.3g}"
            yield f"{name:<10} {_plot(values)}  {told}"
        else:
            yield f"{name:<10} too long to be followed to its end: {int(total):,} steps"
        num_zeros = len(values) - len("".join("0" if value == 0 else "1" for value in values).rstrip("0"))
        if num_zeros > 1:
            mistrusted.append(f"{name} is 0 for the last {num_zeros / len(values):.0%} of the run")


def _plot(values: list[float]) -> str:
    """Draws values over time as one line of bars."""
    width, top = min(PLOT_WIDTH, len(values)), max(values) or 1.0
    chosen = [values[index * len(values) // width] for index in range(width)]
    return "".join(_LEVELS[round(max(0.0, value) / top * (len(_LEVELS) - 1))] for value in chosen)


def _describe_log(trainer: Trainer, config: Config) -> Iterator[str]:
    """Says which numbers there would be, how often, and where."""
    settings = config.trainer
    names, rates = _measured(trainer, config), [*learning_rates(trainer.optimizers)]
    every = settings.eval_every_steps
    when = f"every {every:,} steps" if every else f"after every {settings.eval_every_epochs} epochs"
    evaluated = [f"{part}/{name}" for part in ("train", *trainer.val_loaders) for name in names]
    yield f"logged     {', '.join([*evaluated, *rates])}: {when.replace('every 1 epochs', 'each epoch')}"
    norm = [] if settings.max_grad_norm is None else ["grad_norm"]
    within = ", ".join(f"step/{name}" for name in ("loss", *rates, *norm))
    yield f"           {within}: every {settings.log_every_steps:,} steps"
    own = [sink.type for sink in config.logger.sinks]
    ours = {"metrics.csv": config.logger.csv, "TensorBoard": config.logger.tensorboard}
    places = ["the console", "log.txt", *(name for name, is_on in ours.items() if is_on), *own]
    yield f"           into {', '.join(places)}"


def _measured(trainer: Trainer, config: Config) -> list[str]:
    """Returns the names of what was measured in the steps that were tried; a metric may have several values."""
    try:
        values = [*trainer.meters.compute()]
    except Exception:  # any metric of the user's, of so few rows
        values = []
    return values or ["loss", *trainer.meters.scalars, *config.metrics]


def _try_checkpoint(trainer: Trainer, config: Config, folder: Path, mistrusted: list[str]) -> Iterator[str]:
    path = CheckpointStore(folder).save(trainer.state_dict(), trainer.progress.step, is_best=False)
    trainer.load_state_dict(load_checkpoint(path), "the checkpoint just written")
    size = path.stat().st_size
    target = project_path(config.trainer.save_dir)
    existing = next(folder for folder in (target, *target.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    kept = config.trainer.keep + 1
    yield f"checkpoint {shown_size(size)}, read back; up to {kept} are kept; {free / 2**30:.3g} GiB are free"
    if free < kept * size:
        mistrusted.append(f"{kept} checkpoints need {shown_size(kept * size)}, and {free / 2**30:.3g} GiB are free")
