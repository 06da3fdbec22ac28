"""Train a project written for pytorch-template, as it is: `python train.py -c their/config.json`."""

from __future__ import annotations

import json
import logging
import math
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from src.compat.build import Parts, build_parts
from src.compat.command_line import Request, read_request
from src.compat.dialect import patience
from src.compat.names import open_checked
from src.compat.outputs import ProgressLines, TheirCharts, TheirCheckpoints, TheirExtras
from src.compat.project import Project
from src.compat.resume import go_on_from_theirs
from src.compat.their_config import LEVELS, ConfigParser
from src.compat.their_log import use_their_log
from src.config.mistakes import placed
from src.logger.console import closing_summary, log_to_file, setup_console
from src.logger.csv_file import CSVFile
from src.logger.logger import Logger
from src.logger.run_dir import RunDir, check_run_name
from src.logger.run_index import seconds_of
from src.logger.settings import LoggerSettings
from src.logger.status import write_status
from src.trainer.checkpoints.resume import open_checkpoint
from src.trainer.hooks import Hook
from src.trainer.rehearsal.rehearse import rehearse
from src.trainer.schedule import Schedule
from src.trainer.settings import TrainerSettings
from src.trainer.trainer import Trainer
from src.trainer.views import standard_hooks
from src.utils.paths import PROJECT_ROOT, shown_path
from src.utils.whole_file import write_file

log = logging.getLogger("src")

DIFFERENCES = (
    "on purpose unlike the original: metrics and loss are weighted by rows; the best is saved whenever it is best, "
    "and a tie is none; early_stop N stops after exactly N epochs; the end is always saved; the schedule's state is "
    "resumed (docs/migrating.md)"
)

PATH_ENDINGS = ("dir", "path", "root", "file", "folder")
"""How arguments are called that name files even when there is no `/` in them."""


def train(argv: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    request = read_request(argv, "train.py", __doc__)
    if request.print_config:
        request.mistakes.stop_if_any()
        print(json.dumps(request.config, indent=4))
        return 0
    folder, project = open_checked(request)
    verbosity = request.config["trainer"].get("verbosity", 2)
    setup_console(quiet=verbosity == 0, verbose=LEVELS.get(verbosity) == logging.DEBUG, is_timed=False)
    for slip in request.slips:
        log.warning("%s", slip)
    config = ConfigParser(with_paths_of(folder, request.config), request.resume)
    device, gpus = find_devices(config.get("n_gpu", 0))
    with placed(request.mistakes.places):
        parts = build_parts(config, project)
    monitor = their_monitor(config["trainer"]["monitor"], value_names(parts))
    if request.only_check:
        return check(request, parts, monitor, device)

    in_place = request.resume if request.checkpoint is None else None
    path, state = open_checkpoint(in_place) if in_place else (None, None)
    run = open_run(config, folder, path)
    trainer = build_trainer(config, parts, run, monitor, device)
    if len(gpus) > 1:  # the weights keep the names of the bare model
        trainer.forward = trainer.step.forward = nn.DataParallel(trainer.model, gpus)
    if state is not None:
        trainer.load_state_dict(state, str(run.path))
    elif request.checkpoint is not None:
        go_on_from_theirs(trainer, request.checkpoint, config, is_new_config=request.config_path is not None)
    run.write_environment(["train.py", *argv], seed=torch.initial_seed())
    introduce(config, request, project, parts, run)
    return fit(trainer, run, folder)


def check(request: Request, parts: Parts, monitor: str, device: torch.device) -> int:
    """Try a few rows of each loader, and say what would be trained."""
    for note in request.notes:
        log.info("config   %s", note)
    parts.model.to(device)
    for loader in parts.loaders.values():
        rehearse(parts.task, parts.model, loader, device, metrics=parts.metrics)
    log.info("%s", parts.model)
    log.info("data     %s rows", rows_of(parts))
    log.info("monitor  %s", monitor)
    log.info("all is well; nothing was written")
    return 0


def rows_of(parts: Parts) -> str:
    """Return how many rows each loader has, as text."""
    return ", ".join(f"{name} {loader.num_rows}" for name, loader in parts.loaders.items())


def fit(trainer: Trainer, run: RunDir, project: Path) -> int:
    """Train, and say how it ended and what to type next."""
    started_s, code, seconds_before = time.perf_counter(), 1, seconds_of(run.path) or 0.0
    write_status(run.path, None, trainer.saver.saved_step, seconds_before)
    try:
        trainer.fit()
        code = 128 + trainer.signal if trainer.signal else 0
    finally:
        trainer.logger.close()
        seconds = time.perf_counter() - started_s
        write_status(run.path, code, trainer.saver.saved_step, seconds_before + seconds)
        run.close()
    monitor = trainer.monitor
    best = {monitor.name: monitor.best} if monitor.name and monitor.best is not None else None
    named = [] if project == Path.cwd() else ["--project", shown_path(project)]
    words = ["python", shown_path(PROJECT_ROOT / "test.py"), "-r", shown_path(run.path), *named]
    summary = closing_summary(
        run.path, seconds=seconds, best=best, best_at=monitor.best_at, commands=[shlex.join(words)]
    )
    log.info("%s", summary)
    return code


def with_paths_of(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config with data that lie in the project's folder named so that they are found from anywhere."""
    new = json.loads(json.dumps(config))
    for section in (part for part in new.values() if isinstance(part, dict) and isinstance(part.get("args"), dict)):
        for name, value in section["args"].items():
            is_path = isinstance(value, str) and ("/" in value or name.endswith(PATH_ENDINGS))
            if is_path and not Path(value).exists() and (folder / value).exists():
                section["args"][name] = str(folder / value)
    return new  # type: ignore[no-any-return]


def find_devices(n_gpu: int) -> tuple[torch.device, list[int]]:
    """Return the device of the model, and the GPUs that share the work."""
    present = torch.cuda.device_count()
    if n_gpu > present:
        log.warning("n_gpu is %d, this machine has %d; training on %s", n_gpu, present, present or "the CPU")
    gpus = list(range(min(n_gpu, present)))
    return torch.device("cuda:0" if gpus else "cpu"), gpus


def value_names(parts: Parts) -> dict[str, str]:
    """Return what this run logs: their name to ours."""
    names = ["loss", *parts.metrics.compute()]
    ours = {name: f"train/{name}" for name in names}
    return ours | ({f"val_{name}": f"val/{name}" for name in names} if "val" in parts.loaders else {})


def their_monitor(spec: str, names: Mapping[str, str]) -> str:
    """Return `min val_loss` as `min val/loss`; a value that is not logged switches the monitor off, as theirs does."""
    mode, _, name = spec.partition(" ")
    if mode == "off":
        return "off"
    if name not in names:
        log.warning("trainer.monitor: %r is not logged, only %s; monitoring is off", name, ", ".join(names))
        return "off"
    return f"{mode} {names[name]}"


def open_run(config: ConfigParser, folder: Path, path: Path | None) -> RunDir:
    """Make the folder of a new run, `save_dir/models/<name>/<MMDD_HHMMSS>`, or open that of a run which goes on."""
    check_run_name(config["name"])
    save_dir = folder / Path(config["trainer"].get("save_dir", "saved/")).expanduser()
    run = RunDir.create(save_dir / "models", config["name"]) if path is None else RunDir.open(path.resolve())
    is_usual = run.path.parents[1].name == "models"
    config.save_dir = run.path
    config.log_dir = run.path.parents[2] / "log" / config["name"] / run.path.name if is_usual else run.path / "log"
    config.log_dir.mkdir(parents=True, exist_ok=True)
    write_file(run.path / "config.json", json.dumps(config.config, indent=4) + "\n")
    if not use_their_log(folder, config.log_dir):
        log_to_file(config.log_dir / "info.log")
    return run


def build_trainer(config: ConfigParser, parts: Parts, run: RunDir, monitor: str, device: torch.device) -> Trainer:
    """Translate section `trainer`, and introduce everyone to the loop."""
    theirs = config["trainer"]
    batch_size = getattr(parts.loaders["train"].loader, "batch_size", None) or 1
    settings = TrainerSettings(
        epochs=theirs["epochs"],
        monitor=monitor,
        patience=patience(theirs),
        save_every_epochs=theirs.get("save_period", 1),
        log_every_steps=max(1, math.isqrt(batch_size)),
    )
    shown = LoggerSettings(tensorboard=bool(theirs.get("tensorboard", False)), histograms_every_epochs=1)
    charts = [TheirCharts(config.log_dir)] if shown.tensorboard and config.log_dir else []
    sinks = [CSVFile(run.path / "metrics.csv"), *charts]
    own = TheirCheckpoints(run.path, settings.save_every_epochs, config.config)
    hooks: list[Hook] = [*standard_hooks(shown), ProgressLines(), TheirExtras(), own]
    return Trainer(
        parts.task,
        parts.model,
        parts.loaders["train"],
        {"optimizer": parts.optimizer},
        settings,
        schedules={"lr_scheduler": Schedule(parts.optimizer, parts.scheduler, "epoch", monitor=monitor.split()[-1])},
        val_loaders={name: loader for name, loader in parts.loaders.items() if name == "val"},
        metrics=parts.metrics,
        logger=Logger(sinks),
        checkpoints=run.checkpoints,
        hooks=hooks,
        device=device,
        memory={"train_loader": parts.loaders["train"]},
        record={"config": config.config},
    )


def introduce(config: ConfigParser, request: Request, project: Project, parts: Parts, run: RunDir) -> None:
    """Say what is about to run, and where it is not what they know."""
    log.info("project %s, run %s", project.folder, run.path)
    log.info("%s", parts.model)
    log.info("data    %s rows", rows_of(parts))
    for note in request.notes:
        log.info("config  %s", note)
    log.info("%s", DIFFERENCES)
    if (project.folder / "trainer" / "trainer.py").is_file():
        log.info(
            "trainer/trainer.py is not run, Keel's own loop trains; what you changed there goes into a task or hook"
        )
    log.debug("config  %s", json.dumps(config.config))
