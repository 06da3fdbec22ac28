"""How one optimizer update is made: forward, backward, clip, step."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from src.trainer.backward import backward
from src.trainer.checkpoints.memory import Progress
from src.trainer.criterion import TermWeights, Weight
from src.trainer.evaluate import autocast
from src.trainer.faults.out_of_memory import MicroBatches, free_cached_memory, is_out_of_memory
from src.trainer.optimizers import apply_gradients, drop_gradients, failed_update, has_gradients, parameters_of
from src.trainer.settings import TrainerSettings
from src.trainer.task import StepOutput, Task
from src.utils.device import to_device
from src.utils.errors import ConfigError

Mark = Callable[[str], None]
Update = Callable[[Sequence[Any]], None]


class Step:
    """Makes optimizer updates from batches.

    Args:
        task: Says what a batch means; its `update`, if it has one, makes the whole update itself.
        forward: The model, or its compiled form.
        optimizers: By name.
        settings: Of the trainer.
        device: Where batches go.
        take: Called with the output and the batch on the device, before the weights change.
        progress: Says in how many micro-batches a batch is computed, and is told when memory asks for more.
    """

    agree: Callable[[Any], bool] = staticmethod(bool)
    """Whether all processes stop, given whether this one wants to."""

    def __init__(
        self,
        task: Task,
        forward: Callable[..., Any],
        optimizers: Mapping[str, Optimizer],
        settings: TrainerSettings,
        device: torch.device,
        take: Callable[[StepOutput, Any], None],
        progress: Progress | None = None,
    ) -> None:
        self.task, self.forward, self.device, self.take = task, forward, device, take
        self.optimizers = optimizers
        self.max_grad_norm = settings.max_grad_norm
        self.amp = autocast(settings.amp_dtype, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=settings.amp_dtype == "fp16")
        self._step_one: Callable[[Optimizer], Any] = self.scaler.step if self.scaler.is_enabled() else apply_gradients
        self.look: Callable[..., None] = _pass_over
        """Called with all parameters when their gradients are complete, before the weights change; by an optimizer that
        asks for the loss itself with each loss, too."""
        self.grad_norm: Tensor | None = None
        """Norm of the last gradient before it was clipped, on the device; None without clipping."""
        self._parameters = [each for optimizer in optimizers.values() for each in parameters_of(optimizer)]
        self._named = {name.removeprefix("optimizer."): optimizer for name, optimizer in optimizers.items()}
        self._progress = progress or Progress()
        self._micro_batches = MicroBatches(self._progress, forward, task)
        self._make, self._watched = self._choose(settings)
        self._mark: Mark = _pass_over
        self.make: Update = self._make
        """Make one update from the micro-batches given."""

    def _choose(self, settings: TrainerSettings) -> tuple[Update, Update]:
        """Return how updates are made, and how while they are watched."""
        if hasattr(self.task, "update"):
            check_own_update(settings)
            return self._update_by_task, self._update_by_task
        if not self.optimizers:
            raise ConfigError("optimizer: is missing, and without one only a task with an `update` of its own trains")
        if any(map(needs_closure, self.optimizers.values())):
            check_closure(settings, self.optimizers)
            return self._update_by_closure, self._update_by_closure
        is_plain = settings.accumulate_steps == 1 and settings.amp_dtype is None
        return self._update_plainly if is_plain else self._update, self._update

    def watch(self, mark: Mark | None) -> None:
        """Call `mark` with the name of each part of an update when it is done; None stops that. No bit changes."""
        self.make, self._mark = (self._make, _pass_over) if mark is None else (self._watched, mark)

    def _update_plainly(self, batches: Sequence[Any]) -> None:
        """Do what `_update` does, where one batch makes a step and nothing is scaled: half the cost of a tiny step."""
        if self._progress.micro_batches > 1:
            self._update(batches)
            return
        num_taken = 0
        drop_gradients(self.optimizers)
        try:
            batch = to_device(batches[0], self.device)
            output = self.task.step(self.forward, batch)
            self.take(output, batch)
            num_taken = 1
            backward(output.loss)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            self._micro_batches.num_taken = num_taken
            self._micro_batches.halve(batches, error)
            batch = output = None  # they hold what ran out
        else:
            self._apply(self.optimizers.values())
            return
        free_cached_memory(self.device)
        self._update(batches)

    def _apply(self, optimizers: Iterable[Optimizer]) -> None:
        """Clip the gradients, look at them, and step."""
        if self.max_grad_norm is not None:
            self.grad_norm = nn.utils.clip_grad_norm_(self._parameters, self.max_grad_norm)
        self.look(self._parameters)
        for optimizer in optimizers:
            try:
                self._step_one(optimizer)
            except Exception as error:
                raise failed_update(optimizer, error) from error

    def _update(self, batches: Sequence[Any]) -> None:
        """Descend the gradient of the mean loss over all rows of `batches`."""
        factor, _ = self._fitting_gradients(batches)
        trained = [optimizer for optimizer in self.optimizers.values() if has_gradients(optimizer)]
        for optimizer in trained:
            self.scaler.unscale_(optimizer)
        rescale(self._parameters, factor)
        self._apply(trained)
        self.scaler.update()
        self._mark("optimizer")

    def _update_by_closure(self, batches: Sequence[Any]) -> None:
        """Let the optimizer ask for loss and gradient as often as it likes; the first answer is what is logged."""
        (optimizer,) = self.optimizers.values()

        def closure() -> Tensor:
            factor, loss = self._fitting_gradients(batches)
            self._micro_batches.num_taken = len(batches) * self._progress.micro_batches
            rescale(self._parameters, factor)
            loss = loss * factor
            self.look(self._parameters, loss)
            return loss

        try:
            optimizer.step(closure)  # type: ignore[arg-type]  # the loss may stay on its device
        finally:
            self._micro_batches.num_taken = 0
        self._mark("optimizer")

    def _fitting_gradients(self, batches: Sequence[Any]) -> tuple[Weight, Tensor]:
        """Make the gradients of a step in pieces that fit into memory.

        Returns:
            The factor that makes them exact, see `rescale`, and the mean loss, to be corrected alike.
        """
        while True:
            try:
                made = self._gradients(self._micro_batches.cut(batches))
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                self._micro_batches.halve(batches, error)
            else:
                self._micro_batches.num_taken = 0
                return made
            free_cached_memory(self.device)  # here nothing refers to the attempt any more

    def _gradients(self, pieces: Sequence[tuple[int, Any]]) -> tuple[Weight, Tensor]:
        drop_gradients(self.optimizers)
        self._mark("optimizer")
        weights: list[Weight | TermWeights] = []
        losses: list[Tensor] = []
        total = self.task.weigh_ahead([batch for _, batch in pieces], self.device) if len(pieces) > 1 else None
        for place, host_batch in pieces:
            batch = to_device(host_batch, self.device)
            self._mark("copy")
            with self.amp():
                output = self.task.step(self.forward, batch)
            self._mark("forward")
            if place >= self._micro_batches.num_taken:
                self.take(output, batch)
                self._micro_batches.num_taken = place + 1
            self._mark("metrics")
            weights.append(output.weight)
            loss = output.loss if len(pieces) == 1 else shared(output, weights, len(pieces), total)
            backward(self.scaler.scale(loss))
            losses.append(loss.detach())
            self._mark("backward")
        first, count = weights[0], len(weights)
        factor = 1.0 if count == 1 or isinstance(first, TermWeights) else missing_factor(first * count, weights)
        return factor, sum(losses[1:], start=losses[0])

    def _update_by_task(self, batches: Sequence[Any]) -> None:
        for host_batch in batches:
            batch = to_device(host_batch, self.device)
            self._mark("copy")
            try:
                with self.amp():
                    output = self.task.update(self.forward, batch, self._named)  # type: ignore[attr-defined]
            except torch.OutOfMemoryError as error:
                self._micro_batches.refuse(error)
            self._mark("update")
            self.take(output, batch)
            self._mark("metrics")


def _pass_over(*_: object) -> None:
    """Mark nothing, look at nothing."""


def check_own_update(settings: TrainerSettings) -> None:
    """Refuse what a task that makes whole updates itself would silently leave out.

    Raises:
        ConfigError: Gradients are to be clipped, accumulated or scaled.
    """
    asked = {
        "accumulate_steps": settings.accumulate_steps > 1,
        "max_grad_norm": settings.max_grad_norm is not None,
        "amp_dtype": settings.amp_dtype == "fp16",
    }
    if wrong := [name for name, is_asked in asked.items() if is_asked]:
        raise ConfigError(f"trainer.{', '.join(wrong)}: the task has an `update` of its own and must do that itself")


def needs_closure(optimizer: Optimizer) -> bool:
    """Say whether an optimizer asks for the loss itself, several times a step: LBFGS."""
    parameter = inspect.signature(type(optimizer).step).parameters.get("closure")
    return parameter is not None and parameter.default is inspect.Parameter.empty


def check_closure(settings: TrainerSettings, optimizers: Mapping[str, Optimizer]) -> None:
    """Refuse what does not go with an optimizer that asks for the loss itself.

    Raises:
        ConfigError: Gradients are to be clipped or scaled, bad steps undone, or there are several optimizers.
    """
    name = next(type(optimizer).__name__ for optimizer in optimizers.values() if needs_closure(optimizer))
    if len(optimizers) > 1:
        raise ConfigError(f"optimizer: {name} trains alone; beside others it needs a task with an `update` of its own")
    asked = {"max_grad_norm": settings.max_grad_norm is not None, "amp_dtype": settings.amp_dtype == "fp16"}
    wrong = [key for key, is_asked in asked.items() if is_asked]
    if wrong:
        raise ConfigError(
            f"trainer.{', '.join(wrong)}: {name} searches along the true gradient of the loss; leave it out"
        )
    if settings.nonfinite != "stop" or settings.loss_spikes not in (None, "stop"):
        raise ConfigError(
            f"trainer.nonfinite, trainer.loss_spikes: {name} moves the weights while it searches, so a step cannot be "
            "left out; only `stop` goes with it"
        )


def shared(
    output: StepOutput, weights: Sequence[Weight | TermWeights], num_batches: int, total: TermWeights | None
) -> Tensor:
    """Return the newest of `num_batches` losses such that their sum is near the mean over all rows.

    Exact when all weights are equal, or where each term has its own and all of them weigh `total`; `missing_factor`
    is what it lacks otherwise.
    """
    if isinstance(output.weight, TermWeights):
        return output.weight.scaled(output.loss, output.scalars, total)
    return output.loss * share(weights, num_batches)


def share(weights: Sequence[Weight | TermWeights], num_batches: int) -> Weight:
    """Return the factor for the newest of `num_batches` losses; 1 for sums (weight 0), which are just added."""
    first, newest = weights[0], weights[-1]
    assert not isinstance(first, TermWeights) and not isinstance(newest, TermWeights)
    if isinstance(first, float) and first == 0.0:
        return 1.0
    return newest / (first * num_batches)


def missing_factor(expected: Weight, weights: Sequence[Weight | TermWeights]) -> Weight:
    """Return by what to multiply gradients of batches that were `expected` to weigh so much, and weigh `weights`.

    1 for sums (weight 0), and where each term has its own weight: those were made exact one by one.
    """
    known = [each for each in weights if not isinstance(each, TermWeights)]
    if len(known) < len(weights):
        return 1.0
    total = sum(known[1:], start=known[0])
    if isinstance(expected, float) and isinstance(total, float) and total in (0.0, expected):
        return 1.0
    return expected / total


def rescale(parameters: Sequence[Tensor], factor: Weight) -> None:
    """Multiply gradients by `factor`, so that every row counts alike when batches differ in size."""
    if isinstance(factor, Tensor) or factor != 1.0:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        torch._foreach_mul_(gradients, factor)
