"""What one batch means. The first place to change when `criterion(model(inputs), targets)` is not what you need.

Write your own in any file of `src/model/` or `src/trainer/` and name it in the config: `task: {type: vae.VAETask}`.
Override `step` (forward and loss) for most things, or add `update` to own a whole optimizer update:

    def update(self, model, batch, optimizers):  # forward, backward and optimizer steps, in your order
        ...
        return StepOutput(loss, outputs, targets, weight=len(batch))

What is carried from batch to batch is an attribute: set it afresh in `begin`, save it by `state_dict`.

Axes: N batch, C classes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor

from src.model.accumulate import num_rows
from src.trainer.criterion import Criteria, TermWeights, Weight, terms_of
from src.utils.device import to_device
from src.utils.errors import DataError


@dataclass(slots=True)
class StepOutput:
    """What one batch gave. Everything stays on the device."""

    loss: Tensor
    """Scalar."""
    outputs: Any
    targets: Any
    weight: Weight | TermWeights
    """How much this loss counts in an average over batches: the rows it is a mean over; 0 when it is a sum."""
    scalars: dict[str, Tensor] = field(default_factory=dict)
    """More scalars to log, averaged over batches as the loss is."""

    @property
    def num_rows(self) -> int:
        """Rows of the batch."""
        weight = self.weight
        if type(weight) is float and weight:
            return int(weight)
        return num_rows(self.outputs if self.targets is None else self.targets)


class Task:
    """Opens a batch, runs the model, and computes the loss.

    Args:
        criterion: Called as `criterion(outputs, targets)`, or as its signature has it: `criterion(outputs)`,
            `criterion(outputs, batch)`. Several by name with weights are each logged by name. None where the model
            returns its own loss: a scalar, or something with a part called `loss`.
        inputs: Where the model's arguments stand in a batch: a position or key, a list of them for several
            arguments, or a mapping `argument: position or key`. Default: the first element of a tuple, or the
            batch itself when it is a tensor.
        targets: Where the targets stand, alike; several come to loss and metrics as a tuple, or as a dict by the names
            of a mapping. Default: the second element of a tuple.
        outputs: Where in what the model returns the outputs stand, that loss and metrics get. Default: all of it.
    """

    def __init__(
        self,
        criterion: Criteria = None,
        inputs: Any = None,
        targets: Any = None,
        outputs: Any = None,
    ) -> None:
        self.criterion = criterion
        self.inputs = inputs
        self.targets = targets
        self.outputs = outputs
        self._by_default = inputs is None and targets is None
        self._terms = terms_of(criterion)
        self._named = criterion if isinstance(criterion, Mapping) else {}  # asked once: it takes long of a module
        self._by_rows = not any(self._named) or all(term.is_by_rows for term in self._terms)

    def begin(self, part: str, epoch: int) -> None:
        """Start a pass over a part of the data, training or evaluation; does nothing unless you override it.

        Args:
            part: `train`, `val`, `test`, ...
            epoch: Of the training, counted from 0.
        """

    def step(self, model: Callable[..., Any], batch: Any) -> StepOutput:
        """Return loss, outputs and targets of `batch`; `model` is to be called, not inspected."""
        args, kwargs, targets = self.open(batch)
        if self.targets is not None and _lacks(targets):
            _pick(batch, self.targets, "targets")  # says what is missing
        returned = model(*args, **kwargs)
        outputs = returned if self.outputs is None else _pick(returned, self.outputs, "outputs")
        if self.criterion is None:
            rows = float(num_rows(batch if targets is None else targets))
            return StepOutput(own_loss(returned), outputs, targets, rows)
        loss, scalars = self.loss(outputs, targets, batch)
        return StepOutput(loss, outputs, targets, self.weigh(outputs, targets), scalars)

    def predict(self, model: Callable[..., Any], batch: Any) -> Any:
        """Return the outputs for `batch`, which need not hold targets."""
        args, kwargs, _ = self.open(batch)
        returned = model(*args, **kwargs)
        return returned if self.outputs is None else _pick(returned, self.outputs, "outputs")

    def open(self, batch: Any) -> tuple[Sequence[Any], Mapping[str, Any], Any]:
        """Return the model's positional and keyword arguments, and the targets (None when there are none)."""
        if self._by_default:
            if isinstance(batch, (tuple, list)):
                return (batch[0],), {}, batch[1] if len(batch) > 1 else None
            if isinstance(batch, Mapping):
                raise DataError(
                    f"a batch is a mapping with {_names(batch)}; say what is what, for example "
                    f"`task: {{inputs: {next(iter(batch), 'a')}, targets: {list(batch)[-1] if batch else 'b'}}}`"
                )
            return (batch,), {}, None
        inputs = 0 if self.inputs is None and isinstance(batch, (tuple, list)) else self.inputs
        targets = None if self.targets is None else _pick(batch, self.targets, "targets", is_optional=True)
        if inputs is None:
            return (batch,), {}, targets
        if isinstance(inputs, Mapping):
            return (), _pick(batch, inputs, "inputs"), targets
        if isinstance(inputs, (list, tuple)):
            return _pick(batch, inputs, "inputs"), {}, targets
        return (_pick(batch, inputs, "inputs"),), {}, targets

    def loss(self, outputs: Any, targets: Any, batch: Any = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the scalar to minimise, and its named terms where there are several.

        `batch` is only for a loss that takes it.
        """
        if self._named:
            named = dict(zip(self._named, self._terms, strict=True))
            terms = {name: term.call(outputs, targets, batch) for name, term in named.items()}
            if not self._by_rows:  # of no labels at all the mean is nan; beside other terms it is nothing
                weights = {name: term.weigh(outputs, targets) for name, term in named.items()}
                terms |= {
                    name: torch.where(weight > 0, terms[name], 0.0)
                    for name, weight in weights.items()
                    if isinstance(weight, Tensor)
                }
            weighted = [weight * terms[name] for name, (_, weight) in self._named.items()]
            return sum(weighted[1:], start=weighted[0]), terms
        if self.criterion is None:
            raise DataError("there is no `loss` in the config, and the task does not make one")
        (term,) = self._terms
        if term.is_elementwise and outputs.shape != targets.shape:
            raise DataError(
                f"loss {term.name}: outputs have shape {list(outputs.shape)} and targets "
                f"{list(targets.shape)}; they must be equal, nothing is broadcast"
            )
        return term.call(outputs, targets, batch), {}

    @property
    def is_of_rows(self) -> bool:
        """Whether outputs and targets of any rows are all that the loss of these rows takes."""
        return bool(self._terms) and all(term.second != "batch" for term in self._terms)

    def has_no_label(self, targets: Any) -> bool:
        """Return whether the loss leaves out all these targets, so that it is nan."""
        return not self._named and any(term.has_no_label(targets) for term in self._terms)

    def weigh(self, outputs: Any, targets: Any) -> Weight | TermWeights:
        """Return how much this batch counts in an average: its rows, or the sum of their class weights."""
        if self._terms and not self._named:
            return self._terms[0].weigh(outputs, targets)
        rows = float(num_rows(targets if targets is not None else outputs))
        if self._by_rows:
            return rows
        weights = {name: term.weigh(outputs, targets) for name, term in zip(self._named, self._terms, strict=True)}
        return TermWeights(rows, weights, {name: factor for name, (_, factor) in self._named.items()})

    def weigh_ahead(self, batches: Sequence[Any], device: torch.device) -> TermWeights | None:
        """Return what `batches` weigh together, where each term of the loss has its own weight; else None.

        None too where a `step` of the task's own may take other targets than the config names.
        """
        if self._by_rows or type(self).step is not Task.step:
            return None
        weights = [self.weigh(batch, to_device(self.open(batch)[2], device)) for batch in batches]
        several = [each for each in weights if isinstance(each, TermWeights)]
        return sum(several[1:], start=several[0]) if several else None


def own_loss(returned: Any) -> Tensor:
    """Return the loss that a model computed itself.

    Raises:
        DataError: There is none.
    """
    loss = returned
    if not isinstance(returned, Tensor):
        loss = _pick(returned, "loss", "outputs", is_optional=True)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise DataError(
            f"there is no `loss` in the config, and the model does not return its own: it returns a "
            f"{type(returned).__name__} with {_names(returned)}"
        )
    return loss.reshape(())


@contextmanager
def undisturbed(task: Task) -> Iterator[None]:
    """Put back at the end what a task carries from batch to batch, as far as its `state_dict` tells."""
    state = copy.deepcopy(task.state_dict()) if hasattr(task, "state_dict") else None
    try:
        yield
    finally:
        if state is not None:
            task.load_state_dict(state)  # type: ignore[attr-defined]


def _pick(batch: Any, key: Any, what: str, *, is_optional: bool = False) -> Any:
    if isinstance(key, (list, tuple)):
        return tuple(_pick(batch, part, what, is_optional=is_optional) for part in key)
    if isinstance(key, Mapping):
        return {name: _pick(batch, part, what, is_optional=is_optional) for name, part in key.items()}
    try:
        return getattr(batch, key) if isinstance(key, str) and not isinstance(batch, Mapping) else batch[key]
    except (KeyError, IndexError, AttributeError, TypeError):
        if is_optional:
            return None
        raise DataError(
            f"task.{what}: no {key!r} in {'what the model returns' if what == 'outputs' else 'a batch'}; it is a "
            f"{type(batch).__name__} with {_names(batch)}{_nearest(key, batch)}"
        ) from None


def _lacks(targets: Any) -> bool:
    parts = targets.values() if type(targets) is dict else targets if type(targets) is tuple else ()
    return targets is None or any(map(_lacks, parts))


def _nearest(key: Any, batch: Any) -> str:
    fields: Any = getattr(batch, "_fields", None) or getattr(batch, "__dict__", ())
    names: Any = batch if isinstance(batch, Mapping) else fields
    close = get_close_matches(str(key), map(str, names), n=1)
    return f"; did you mean `{close[0]}`?" if close else ""


def _names(batch: Any) -> str:
    if isinstance(batch, Mapping):
        return ", ".join(map(str, batch))
    if isinstance(batch, (tuple, list)):
        return f"{len(batch)} elements"
    if isinstance(batch, Tensor):
        return f"shape {list(batch.shape)}"
    return ", ".join(getattr(batch, "__dict__", ())) or "no named parts"
