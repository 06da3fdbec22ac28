"""`--replay`: a step that went wrong in some run, done once more under observation. Nothing is written."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from torch import nn

from src.run.experiment import build_optimizers
from src.run.saved_run import SavedRun
from src.trainer.checkpoints.memory import OptimizerMemory
from src.trainer.checkpoints.resume import load_weights
from src.trainer.faults.diagnosis import diagnose
from src.trainer.faults.nonfinite import all_finite
from src.trainer.task import StepOutput
from src.utils.device import make_deterministic, to_device
from src.utils.errors import CheckpointError, NumericsError
from src.utils.paths import shown_path
from src.utils.seed import set_rng_state

NUM_SHOWN = 3


class Replay:
    """The step of a failure capsule.

    Args:
        path: The capsule.
        overrides: Keys of its config to change, say to see whether another rate or precision helps.
        trusted: Packages and folders that its config may name classes of, besides the known ones.

    Raises:
        CheckpointError: It is no capsule.
    """

    def __init__(self, path: Path, overrides: Sequence[str] = (), trusted: Sequence[str] = ()) -> None:
        self.saved = SavedRun(path, overrides=overrides, trusted=trusted)
        failure = self.saved.state.get("failure")
        if not isinstance(failure, dict):
            raise CheckpointError(f"{shown_path(path)}: is no failure capsule; those are RUN/failure-*.pt")
        self.failure = failure
        if self.saved.config.trainer.deterministic:
            make_deterministic()
        self.model, self.task = self.saved.model, self.saved.task
        self.outputs: list[StepOutput] = []
        self._is_finite = True
        self._optimizers: dict[str, Any] = {}
        if hasattr(self.task, "update"):
            self.model, self.task = self.saved.experiment.model, self.saved.experiment.task
            self._optimizers = build_optimizers(self.saved.config, self.saved.experiment)[0]

    def report(self) -> Iterator[str]:
        """Yields what was recorded, and what the step shows now."""
        failure = self.failure
        yield f"recorded   {failure['reason']}"
        yield f"           {failure['finding']}"
        batches = failure["batches"] or self._batches_of_the_data()
        finding = diagnose(self.model, lambda: self._forward_and_backward(batches), self._before)
        yield "now        " + "; ".join(f"loss {output.loss.item():.6g}" for output in self.outputs[: len(batches)])
        if self.is_bad:
            yield f"           {finding}"
        else:
            yield f"           loss and gradients are finite; largest gradients: {self._largest_gradients(batches)}"

    @property
    def is_bad(self) -> bool:
        """Whether a loss or gradient of the step just made was not finite."""
        return not all(math.isfinite(output.loss.item()) for output in self.outputs) or not self._is_finite

    def _batches_of_the_data(self) -> list[Any]:
        """Read the batches again, which the capsule could not hold."""
        batches = self.saved.experiment.loaders["train"].batches(self.failure["epoch"], self.failure["batch"])
        return list(islice(batches, self.saved.config.trainer.accumulate_steps))

    @contextmanager
    def _before(self) -> Iterator[None]:
        """Put everything to where it was before the step."""
        state, where = self.saved.state, shown_path(self.saved.path)
        load_weights(self.model, state["model"], where)
        if isinstance(self.task.criterion, nn.Module) and "criterion" in state:
            load_weights(self.task.criterion, state["criterion"], where)
        if hasattr(self.task, "load_state_dict") and "task" in state:
            self.task.load_state_dict(state["task"])
        for name, optimizer in self._optimizers.items():
            if name in state:
                OptimizerMemory(optimizer).load_state_dict(state[name])
        self.model.train()
        self.outputs.clear()
        set_rng_state(state["rng"])
        yield

    def _forward_and_backward(self, batches: Sequence[Any]) -> None:
        for host_batch in batches:
            batch = to_device(host_batch, self.saved.device)
            with self.saved.amp():
                if self._optimizers:
                    named = {name.removeprefix("optimizer."): each for name, each in self._optimizers.items()}
                    output = self.task.update(self.model, batch, named)  # type: ignore[attr-defined]
                else:
                    output = self.task.step(self.model, batch)
            self.outputs.append(output)
            if not self._optimizers:
                output.loss.backward()
        self._is_finite = all_finite([each.grad for each in self.model.parameters()])

    def _largest_gradients(self, batches: Sequence[Any]) -> str:
        with self._before():
            self.model.zero_grad()
            self._forward_and_backward(batches)
        sizes = {name: float(each.grad.norm()) for name, each in self.model.named_parameters() if each.grad is not None}
        largest = sorted(sizes, key=lambda name: -sizes[name])[:NUM_SHOWN]
        return ", ".join(f"{name} {sizes[name]:.3g}" for name in largest)


def replay(path: Path, overrides: Sequence[str] = (), trusted: Sequence[str] = ()) -> int:
    """Print what a capsule's step shows now; return 6 if it still goes wrong, else 0."""
    repeated = Replay(path, overrides, trusted)
    for line in repeated.report():
        print(line)
    return NumericsError.exit_code if repeated.is_bad else 0
