"""The training loop, in the order a batch travels."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from src.data.loading.loader import Loader
from src.logger.logger import Logger
from src.model.metric import MetricSet
from src.trainer.account import Account
from src.trainer.checkpoints.memory import Progress, Stateful, collect_state, find_place, name_memory, restore_state
from src.trainer.checkpoints.saving import Saver
from src.trainer.checkpoints.store import FORMAT
from src.trainer.compiled import compiled
from src.trainer.faults.guard import Guard
from src.trainer.freezing import Freezing
from src.trainer.hooks import Hook, reactions
from src.trainer.journal import Journal
from src.trainer.monitor import Monitor, default_monitor
from src.trainer.parallel.choose import choose_parallel
from src.trainer.schedule import Schedule, count_batches
from src.trainer.settings import TrainerSettings
from src.trainer.task import StepOutput, Task
from src.trainer.validation import Validation
from src.utils.errors import DataError
from src.utils.processes.ranks import ALONE, Ranks
from src.utils.signals import Stopped, StopSignals

log = logging.getLogger(__name__)


class Trainer:
    """Trains `model` on `train_loader` and keeps what is worth keeping.

    Args:
        task: Says what one batch means.
        model: Is moved to `device`.
        train_loader: Its batches make the epochs.
        optimizers: By the name under which they are saved; the usual one is `{"optimizer": ...}`. May be empty.
        settings: The section `trainer` of a config.
        schedules: By name, alike.
        val_loaders: Parts to evaluate, by name.
        metrics: Computed for training and for every val part.
        logger: Takes the numbers.
        checkpoints: Folder for checkpoints; None keeps none.
        hooks: Watchers, called in this order.
        device: Where to compute. Default: the CPU.
        memory: Further objects that go through the checkpoint, by name.
        record: Plain data that goes into every checkpoint as it is: the resolved config, say.
        freezing: Which parameters rest in which epochs.
        ranks: The processes that train together; each of them makes such a trainer.
    """

    def __init__(
        self,
        task: Task,
        model: nn.Module,
        train_loader: Loader,
        optimizers: Mapping[str, Optimizer],
        settings: TrainerSettings,
        *,
        schedules: Mapping[str, Schedule] | None = None,
        val_loaders: Mapping[str, Loader] | None = None,
        metrics: MetricSet | None = None,
        logger: Logger | None = None,
        checkpoints: Path | None = None,
        hooks: Sequence[Hook] = (),
        device: torch.device | None = None,
        memory: Mapping[str, Stateful] | None = None,
        record: Mapping[str, Any] | None = None,
        freezing: Freezing | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.device = device or torch.device("cpu")
        self.parallel, self.ranks = choose_parallel(settings, ranks), ranks
        self.task, self.model, self.train_loader = task, self.parallel.place(model, self.device), train_loader
        self.optimizers, self.schedules = dict(optimizers), dict(schedules or {})
        self.settings, self.record = settings, {"batch_size": train_loader.batch_size, **(record or {})}
        self.freezing = freezing or Freezing(self.model)
        self.val_loaders = dict(val_loaders or {})
        self.logger, self.hooks, self.journal = logger or Logger([]), list(hooks), Journal(self)
        self._reactions = reactions(self.hooks)
        self.saver = Saver.of(settings, checkpoints, ranks, self.parallel.bring)

        self.progress = Progress()
        self.forward = compiled(self.model, settings, train_loader)
        self.step = self.parallel.make_step(self, self._take, self._wants_to_stop)
        self.account = Account(self.step, self.device, train_loader)
        self.guard = Guard(self)
        self.ema = self.parallel.average(self.model)
        metrics = metrics or MetricSet({})
        val_metrics = copy.deepcopy(metrics)
        self.validation = Validation(self, self.parallel.make_meters(val_metrics, self.device), self._is_interrupted)
        self.meters = self.parallel.make_meters(metrics.numbers(), self.device)
        watched = settings.monitor or default_monitor(self.val_loaders)
        self.monitor = Monitor(watched, settings.patience, settings.min_delta)
        self.values: dict[str, float] = {}
        """What the last epoch or evaluation found."""
        self.figures: dict[str, tuple[str, Tensor]] = {}
        """What the last evaluation counted to be drawn: `part/metric` to its kind and counts."""
        self.is_best = False
        """Whether the evaluation just made is the best so far."""
        self.signal: int | None = None
        """SIGINT or SIGTERM if a signal, or the end of `max_time`, stopped this run."""

        self._batches_per_epoch = count_batches(train_loader)
        self._signals, self._stop_reason = StopSignals(), ""
        self._end_waits_when_asked()
        self.stateful = self.parallel.as_whole(name_memory(
            self.model, task.criterion, self.ema, self.optimizers, self.schedules, self.hooks, memory or {}, ranks,
            progress=self.progress, meters=self.meters, monitor=self.monitor, logger=self.logger,
            scaler=self.step.scaler, guard=self.guard,
        ))  # fmt: skip

    def fit(self) -> dict[str, float]:
        """Train to the end that the settings name, and return the last values logged.

        Stops and saves before that after `patience`, when a hook asks, or on a signal (then `signal` is its number).

        Raises:
            NumericsError: A loss is not finite. On the CPU that step is not applied; it is never saved.
            ResourceError: Three saves in a row failed, or the one at the end.
        """
        self.saver.prepare(self.state_dict)
        self._reactions = reactions(self.hooks)  # some may have come since
        self.tell("on_fit_start")
        try:
            with StopSignals(self.settings.max_time_s) as self._signals, self.saver:
                with suppress(Stopped):
                    self.guard.repeat_if_bad(self._train)
                if not self.saver.has_saved(self.progress.step) or self.is_best:
                    self._save(is_last_chance=True)
                self.signal = self.ranks.largest(self._signals.received or 0) or None
        finally:
            self.tell("on_fit_end")
            self.logger.flush()
        if self.signal:
            log.info("stopped by %s; all is saved, go on with -r", self._signals.reason or "a signal to another rank")
        return self.values

    def _train(self) -> None:
        self._evaluate_if_due()  # where a signal came before or while this was done
        while not self.is_finished and not self._must_stop():
            self._train_epoch()
        if not self._is_interrupted() and self.progress.evaluated_step != self.progress.step:
            self._evaluate()  # the end fell between evaluations
        self._check()  # the last steps

    def _train_epoch(self) -> None:
        self.freezing.begin(self.progress.epoch)
        if self.progress.batch == 0:
            self.task.begin(self.train_loader.part.name, self.progress.epoch)
        self.model.train()
        started_s, samples_before, batches_before = time.perf_counter(), self.progress.samples, self.progress.batch
        host_batches = self.train_loader.batches(self.progress.epoch, self.progress.batch)
        for batches in self.account.groups(host_batches, self.settings.accumulate_steps):
            self.guard.make(batches)
            self.advance(len(batches))
            self._after_step()
            is_last = self.progress.step >= self.settings.num_steps
            if self._must_stop() or (is_last and self.progress.batch < self._batches_per_epoch):
                return
        if self.progress.batch == batches_before == 0:
            raise DataError(f"{self.train_loader.part.name}: gave no batch, so there is nothing to train on")
        num_rows, seconds = self.progress.samples - samples_before, time.perf_counter() - started_s
        self._end_epoch({"time/samples_per_s": num_rows / seconds} if num_rows else {})

    def advance(self, num_batches: int) -> None:
        """Count an update made of so many batches, and move on what moves with every step."""
        self.progress.step += 1
        self.progress.batch += num_batches
        for schedule in self.schedules.values():
            schedule.after_step()
        if self.ema:
            self.ema.update()

    def _take(self, output: StepOutput, batch: Any) -> None:
        self.guard.take(output)
        self.progress.samples += output.num_rows
        self.meters.update(output)

    def _after_step(self) -> None:
        settings, step = self.settings, self.progress.step
        if step % settings.log_every_steps == 0:
            self.journal.log_step()
        for react in self._reactions["on_step_end"]:
            react(self)
        if settings.eval_every_steps is not None:
            self._evaluate_if_due()
        if self.is_best or (settings.save_every_steps and step % settings.save_every_steps == 0):
            self._save()

    def _evaluate_if_due(self) -> None:
        every, step = self.settings.eval_every_steps, self.progress.step
        is_due = every is not None and step > 0 and step % every == 0 and self.progress.evaluated_step != step
        if is_due and self.progress.batch < self._batches_per_epoch:  # the end of the epoch evaluates by itself
            self._evaluate()

    def _evaluate(self) -> None:
        self._judge(self.validation.measure())
        self._log(self.values)

    def _end_epoch(self, timing: Mapping[str, float]) -> None:
        settings, epoch, step = self.settings, self.progress.epoch + 1, self.progress.step
        is_last, every = epoch >= settings.num_epochs or step >= settings.num_steps, settings.eval_every_steps
        left_over = step % every if every else epoch % settings.eval_every_epochs
        is_due = (is_last or left_over == 0) and self.progress.evaluated_step != step
        values = self.validation.measure() if is_due else self.journal.train_values()  # stopped here, no epoch ended
        self.progress.epoch, self.progress.batch = epoch, 0
        for schedule in self.schedules.values():
            schedule.after_epoch()
        if is_due:
            self._judge(values)
        self._log(values, timing)
        self.meters.reset()
        self.tell("on_epoch_end", values)
        if self.is_best or epoch % settings.save_every_epochs == 0:
            self._save()

    def _judge(self, values: dict[str, float]) -> None:
        self.values, self.progress.evaluated_step = values, self.progress.step
        self.is_best = self.monitor.update(values, self.progress.epoch, self.progress.place)
        for schedule in self.schedules.values():
            schedule.after_evaluation(values)
        self.tell("on_evaluation_end", values)

    def _log(self, values: Mapping[str, float], timing: Mapping[str, float] | None = None) -> None:
        self.values = dict(values)
        self.journal.log(values, timing)
        if self.monitor.is_exhausted and not self._stop_reason:
            self.stop(f"{self.monitor.name} has not improved in {self.monitor.num_waited} evaluations")

    def _save(self, is_last_chance: bool = False) -> None:
        is_best, self.is_best = self.is_best, False
        if self.saver.store is None:
            return
        self._check()  # what nan has touched is never saved
        with self.account.saving:
            self.tell("on_save")
            self.saver.save(self.state_dict, self.progress.step, is_best, is_last_chance)

    def _check(self) -> None:
        self.guard.check(self.meters.loss.compute(), before_saving=True)

    def state_dict(self) -> dict[str, Any]:
        """Return the whole run as tensors and plain data."""
        return {"format": FORMAT, **self.record, **collect_state(self.stateful)}

    def load_state_dict(self, state: Mapping[str, Any], where: str = "checkpoint") -> None:
        """Go on where `state` was taken.

        Raises:
            CheckpointError: `state` is of another run; says what differs.
        """
        progress = state.get("progress", {})
        if progress.get("batch"):  # in mid-pass: what `begin` made, then what the batches since have made of it
            self.task.begin(self.train_loader.part.name, progress.get("epoch", 0))
        restore_state(self.stateful, state, where)
        find_place(self.progress, self.train_loader, state.get("batch_size"))
        self.saver.saved_step = self.progress.step

    def stop(self, reason: str) -> None:
        """End the run after the step in progress."""
        log.info("stopping: %s", reason)
        self._stop_reason = reason

    @property
    def is_finished(self) -> bool:
        """Whether all epochs or steps are done."""
        return self.progress.epoch >= self.settings.num_epochs or self.progress.step >= self.settings.num_steps

    def _end_waits_when_asked(self) -> None:
        if self.ranks.is_alone:  # several can only stop together, at a step
            for loader in (self.train_loader, *self.val_loaders.values()):
                loader.is_asked_to_stop = lambda: self._signals.received is not None

    def _is_interrupted(self) -> bool:
        """Whether a signal to any rank asks all to leave what they are doing."""
        return self.step.agree(self._signals.received is not None)

    def _wants_to_stop(self) -> bool:
        return self._signals.received is not None or bool(self._stop_reason)

    def _must_stop(self) -> bool:
        return self.step.agree(self._signals.received is not None or self._stop_reason) or self.monitor.is_exhausted

    def tell(self, event: str, *args: Any) -> None:
        """Call the method `event` of every hook."""
        for react in self._reactions[event]:
            react(self, *args)
