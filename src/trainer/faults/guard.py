"""What is done about steps that went wrong: a loss or gradient that is no number, a loss that jumps."""

from __future__ import annotations

import copy
import logging
import math
import shlex
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from src.data.parts.part import shown_rows
from src.trainer.evaluate import with_rows
from src.trainer.faults.before_step import BeforeStep
from src.trainer.faults.capsule import write_capsule
from src.trainer.faults.diagnosis import Finding, agreed, diagnose
from src.trainer.faults.nonfinite import ADVICE, SpikeRule, all_finite, explain_nonfinite, shown_rates
from src.trainer.optimizers import parameters_of
from src.trainer.schedule import learning_rates
from src.utils.alike import check_alike
from src.utils.device import to_device
from src.utils.errors import DataError, NumericsError
from src.utils.paths import shown_path

if TYPE_CHECKING:
    from src.trainer.task import StepOutput
    from src.trainer.trainer import Trainer

KEPT_EVERY_STEPS = 50
"""With `rollback`: how often a copy of what is trained is kept."""
TRAINED = ("model", "criterion", "ema", "optimizer", "scaler")
"""What `rollback` puts back. Time goes on: counters, schedules and the order of the data are not among them."""
log = logging.getLogger(__name__)


class BadStep(NumericsError):
    """A step has gone wrong before anything was applied.

    Args:
        kind: `loss`, `gradient`, `spike`, or `labels` where the batch has none.
        loss: Of the batch; of a gradient unknown.
    """

    def __init__(self, kind: str, loss: float = math.nan) -> None:
        told = f"the loss is {loss:.6g}" if kind != "gradient" else "the loss is finite, but its gradient is not"
        super().__init__(f"{told}; {ADVICE}")
        self.kind, self.loss = kind, loss


class NoticedLate(NumericsError):
    """A step went wrong some steps ago, and its update was applied."""

    kind = "loss"


class SpikeNoticedLate(NoticedLate):
    """The same of a loss that jumped."""

    kind = "spike"


class Guard:
    """Makes the updates of `trainer`, and answers those that go wrong as the settings say.

    On the CPU, where reading a number costs nothing, loss and gradients are looked at before they are applied. Other
    devices would have to be waited for, so there only the losses are kept, and looked at when one is read anyway. If
    one is bad, the run goes back to its newest checkpoint and repeats the steps since, now looking at each.
    """

    def __init__(self, trainer: Trainer) -> None:
        settings = trainer.settings
        self.trainer = trainer
        self.is_careful = self._is_always_careful = trainer.device.type == "cpu"
        """Whether each step is looked at before it is applied."""
        self.trusted: Sequence[str] = ()
        """What the command line needs besides, for the config in a capsule to name what it names."""
        self.spikes = SpikeRule()
        self._before: BeforeStep | None = None
        self._gradients = trainer.parallel.finite_gradients(trainer.device)
        self._has_scaler = settings.amp_dtype == "fp16"  # it skips gradients that are not finite by itself
        self._rolls_back = "rollback" in (settings.nonfinite, settings.loss_spikes)
        self._kept: dict[str, Any] = {}
        self._losses: list[tuple[int, Tensor]] = []
        self._noticed: NoticedLate | None = None
        self._repeats_until, self._num_returns, self._num_answered, self._num_before = 0, 0, 0, 0
        trainer.step.look = self.look
        if hasattr(trainer.task, "update"):  # it calls the optimizers itself
            for optimizer in trainer.optimizers.values():
                optimizer.register_step_pre_hook(lambda optimizer, *_: self.look(parameters_of(optimizer)))

    def make(self, batches: Sequence[Any]) -> None:
        """Make one update from the micro-batches given, unless it goes wrong."""
        trainer, progress = self.trainer, self.trainer.progress
        if self._rolls_back and progress.step % KEPT_EVERY_STEPS == 0:
            self._kept = {name: copy.deepcopy(trainer.stateful[name].state_dict()) for name in self._trained()}
        if not self.is_careful:
            trainer.step.make(batches)
            return
        if self._before is None:
            criterion = [trainer.task.criterion] if isinstance(trainer.task.criterion, nn.Module) else []
            self._before = BeforeStep([trainer.model, *criterion], trainer.task)
        self._before.keep()
        self._num_before = trainer.meters.num_batches
        try:
            trainer.step.make(batches)
        except BadStep as bad:
            self._answer(bad, batches, self._before)
        except DataError as error:
            number = progress.batch + trainer.meters.num_batches - self._num_before
            raise with_rows(error, trainer.train_loader, progress.epoch, number, progress.micro_batches == 1) from error
        if not self._is_always_careful and progress.step + 1 >= self._repeats_until:
            self._end_repetition()

    def take(self, output: StepOutput) -> None:
        """Look at the loss of a batch, or keep it to be looked at later."""
        if not self.is_careful:
            self._losses.append((self.trainer.progress.step + 1, output.loss.detach()))
            return
        value = output.loss.item()
        if not math.isfinite(value):
            raise BadStep("labels" if self.trainer.task.has_no_label(output.targets) else "loss", value)
        if self.trainer.settings.loss_spikes:
            if value > self.spikes.limit():
                raise BadStep("spike", value)
            self.spikes.losses.append(value)

    def look(self, parameters: Sequence[Tensor], loss: Tensor | None = None) -> None:
        """Look at the gradients that are about to be applied, and at a loss that `take` was not given."""
        if loss is not None and self.is_careful and not math.isfinite(value := loss.item()):
            raise BadStep("loss", value)
        if self.is_careful and not self._has_scaler:
            gradients = list(map(_gradient, parameters))
            if not self._gradients.hold(gradients):
                raise BadStep("gradient")

    def check(self, loss: float, *, before_saving: bool = False) -> None:
        """Refuse a mean loss that is nan or inf, and on other devices than the CPU each single one since last time.

        Args:
            loss: The mean over several batches.
            before_saving: Look at the weights as well, where gradients were not looked at.

        Raises:
            NumericsError: Something is not finite.
        """
        losses, self._losses = self._losses, []
        if losses and (self.trainer.settings.loss_spikes or not math.isfinite(loss)):
            values = torch.stack([each.float() for _, each in losses]).tolist()  # device sync
            for (step, _), value in zip(losses, values, strict=True):
                if not math.isfinite(value) or value > self.spikes.limit():
                    kind = SpikeNoticedLate if math.isfinite(value) else NoticedLate
                    raise kind(f"step {step}: the loss is {value:.6g} at {self._rates()}; {ADVICE}")
                self.spikes.losses.append(value)
        step = self.trainer.progress.step
        if not math.isfinite(loss):
            raise NoticedLate(explain_nonfinite(loss, step + 1, learning_rates(self.trainer.optimizers), None))
        if before_saving and not self._is_always_careful and not all_finite(list(self.trainer.model.parameters())):
            raise NoticedLate(f"step {step}: the weights are no longer finite at {self._rates()}; {ADVICE}")

    def repeat_if_bad(self, train: Callable[[], None]) -> None:
        """Call `train`; when something bad is noticed late, go back to the newest checkpoint and call it again.

        Raises:
            NumericsError: There is none to go back to, or the settings say to stop.
        """
        trainer = self.trainer
        goes_on = {trainer.settings.nonfinite, trainer.settings.loss_spikes} & set(POLICIES)
        if not self._is_always_careful and goes_on and trainer.saver.has_saved(-1):
            trainer.saver.save(trainer.state_dict, trainer.progress.step, False, False)
        while True:
            try:
                return train()
            except NoticedLate as late:
                self._num_returns += 1
                is_hopeless = self._is_always_careful or self._num_returns > max(1, trainer.settings.max_bad_steps)
                if trainer.saver.store is None or is_hopeless or trainer.saver.has_saved(-1):
                    raise
                self._noticed, self._repeats_until, self._num_answered = late, trainer.progress.step, 0
                trainer.load_state_dict(trainer.saver.newest())
                self.is_careful, self._losses = True, []
                log.warning("%s\ngoing back to step %d to find out where", late, trainer.progress.step)

    def _end_repetition(self) -> None:
        self.is_careful = False
        if self._num_answered == 0 and self._noticed is not None:
            told = (
                f"{self._noticed}\nThe steps up to {self._repeats_until} were repeated, and nothing was wrong with them"
            )
            if self._policy(self._noticed.kind) == "stop":
                raise NumericsError(f"{told}: the device does not compute the same twice; see trainer.deterministic")
            log.warning("%s; going on", told)

    def _policy(self, kind: str) -> str:
        settings = self.trainer.settings
        return settings.loss_spikes or "skip" if kind == "spike" else settings.nonfinite

    def _answer(self, bad: BadStep, batches: Sequence[Any], before: BeforeStep) -> None:
        """Tell what went wrong, write it down, and go on or stop."""
        trainer = self.trainer
        progress, settings, batches = trainer.progress, trainer.settings, trainer.parallel.own(batches)
        rows = trainer.train_loader.rows(progress.epoch, progress.batch, len(batches)) or []
        num_done = trainer.meters.num_batches - self._num_before
        is_one = bad.kind != "gradient" and progress.micro_batches == 1 and num_done < len(batches)
        which = slice(num_done if is_one else 0, None)
        shown = self._found(batches, before), shown_rows([row for batch in rows[which] for row in batch])
        told = [self._explain(bad, batches[which], rows[which]), "; ".join(map(str, shown))]
        told = agreed(trainer.ranks, told, bool(shown[0]))
        before.put_back()
        failure = {
            "step": progress.step + 1,
            "reason": told[0],
            "finding": told[1],
            "rows": rows,
            "rates": learning_rates(trainer.optimizers),
            "epoch": progress.epoch,
            "batch": progress.batch,
        }
        folder = trainer.saver.store.folder.parent if trainer.saver.store and trainer.ranks.is_main else None
        capsule = write_capsule(folder, {**trainer.state_dict(), "rng": before.streams}, failure, batches)
        if capsule:
            words = ["python", "train.py", "--replay", shown_path(capsule), *self.trusted]
            told.append(f"to repeat this step: {shlex.join(words)}")
        policy = self._policy(bad.kind)
        if policy != "stop" and progress.bad_steps >= settings.max_bad_steps:
            told[1] += f"; trainer.max_bad_steps is {settings.max_bad_steps}"
        if policy == "stop" or progress.bad_steps >= settings.max_bad_steps:
            raise (DataError if bad.kind == "labels" else NumericsError)("\n".join(told))
        progress.bad_steps += 1
        self._num_answered += 1
        for line in told:
            log.warning("%s", line)
        if policy == "rollback":
            self._roll_back()
        log.warning("%s; %d of %d bad steps", POLICIES[policy], progress.bad_steps, settings.max_bad_steps)

    def _explain(self, bad: BadStep, batches: Sequence[Any], rows: Sequence[Sequence[int]]) -> str:
        step, rates = self.trainer.progress.step + 1, learning_rates(self.trainer.optimizers)
        if bad.kind == "spike":
            rule = f"{SpikeRule.SIGMAS:g} standard deviations above the mean of the last {len(self.spikes.losses)}"
            return f"step {step}: the loss is {bad.loss:.6g}, more than {rule}, at {shown_rates(rates)}"
        if bad.kind == "labels":
            return f"step {step}: no row of the batch has a label, so the loss is {bad.loss}; leave such rows out"
        if bad.kind == "gradient":
            return f"step {step}: the loss is finite, but its gradient is not, at {shown_rates(rates)}; {ADVICE}"
        return explain_nonfinite(bad.loss, step, rates, batches[0], rows[0] if rows else None)

    def _found(self, batches: Sequence[Any], before: BeforeStep) -> Finding | str:
        trainer = self.trainer
        if hasattr(trainer.task, "update"):
            return "the task makes its updates itself, so the step is not done again here"
        model = trainer.parallel.alone(trainer.model)
        if model is None:
            return f"of the rows of rank {trainer.ranks.rank}; no process can do the step again by itself"

        def forward_and_backward() -> None:
            for batch in batches:
                with trainer.step.amp():
                    output = trainer.task.step(model, to_device(batch, trainer.device))
                output.loss.backward()  # type: ignore[no-untyped-call]

        return diagnose(model, forward_and_backward, before.again)

    def _roll_back(self) -> None:
        for name, state in self._kept.items():
            owner = self.trainer.stateful[name]
            state = copy.deepcopy(state)  # an optimizer would go on in the copy itself
            if name.startswith("optimizer"):  # the rates are of now
                state["state"]["param_groups"] = owner.state_dict()["state"]["param_groups"]
            owner.load_state_dict(state)

    def _trained(self) -> list[str]:
        return [name for name in self.trainer.stateful if name.split(".")[0] in TRAINED]

    def _rates(self) -> str:
        return shown_rates(learning_rates(self.trainer.optimizers))

    def state_dict(self) -> dict[str, Any]:
        return {"losses": list(self.spikes.losses), "kept": self._kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        check_alike({"losses": [0.0], "kept": {}}, state, "guard")
        self.spikes.losses.clear()
        self.spikes.losses.extend(state["losses"])
        self._kept = state["kept"] if self._rolls_back else {}


POLICIES = {
    "skip": "the step is left out",
    "rollback": f"what is trained goes back to where it was at most {KEPT_EVERY_STEPS} steps ago, the data go on",
}


_gradient = attrgetter("grad")
