"""Trying one batch before a run begins, so that what cannot work is said before anything is written."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from src.data.loading.loader import Loader
from src.data.parts.part import Part
from src.model.metric import MetricSet
from src.trainer.criterion import are_labels, terms_of
from src.trainer.evaluate import evaluating
from src.trainer.faults.nonfinite import explain_nonfinite, tensors_in
from src.trainer.rehearsal.batch_norms import BatchNorms
from src.trainer.rehearsal.first_output import check_output, try_metrics, warn_of_wrong_scale
from src.trainer.task import StepOutput, Task, undisturbed
from src.utils.command import shortage
from src.utils.deterministic import no_deterministic_form
from src.utils.device import to_device
from src.utils.errors import ConfigError, DataError, KeelError, NumericsError, first_line
from src.utils.own_line import own_line
from src.utils.seed import forked_rng

NUM_ROWS = 2
MORE_ROWS = 64
"""For a metric that fails on a few rows, as one may."""
UNKNOWN = "unknown"
"""The length of data that have none."""
_NO_STEP = "the task has an `update` alone: write `step`, which says what evaluation measures, or leave `val` out"
_CALLERS = ("src/trainer/rehearsal/rehearse.py", "src/trainer/task.py")
log = logging.getLogger(__name__)


def size_lazy_layers(task: Task, model: nn.Module, loader: Loader, device: torch.device) -> None:
    """Let layers such as `nn.LazyLinear` take their sizes, and their first weights, from a batch.

    Raises:
        DataError: The data do not fit the model.
    """
    if not any(is_lazy(value) for value in [*model.parameters(), *model.buffers()]):
        return
    model.to(device)
    args, kwargs, _ = task.open(to_device(loader.peek(NUM_ROWS), device))
    with evaluating(model), torch.no_grad():
        try:
            model(*args, **kwargs)
        except Exception as error:
            raise DataError(f"{loader.part.name}: the model's lazy layers find no size: {error}") from error


def rehearse(
    task: Task,
    model: nn.Module,
    loader: Loader,
    device: torch.device,
    arguments: Mapping[str, Any] | None = None,
    metrics: MetricSet | None = None,
) -> StepOutput | None:
    """Run the first rows of `loader` through model, loss and metrics, changing nothing.

    Args:
        task: Says what a batch means.
        model: On `device`.
        loader: Of the part to try.
        device: Where to compute.
        arguments: What the model was made with, by the key that a user would change: `model.args.in_features`.
        metrics: Tried, and reset.

    Returns:
        What the rows gave; None where only an update could tell.

    Raises:
        DataError: The data do not fit the model or the loss, names shapes; or a metric fails.
        NumericsError: The very first loss is not finite.
    """
    only_updates = hasattr(task, "update") and type(task).step is Task.step
    if only_updates and not loader.part.name.startswith("val"):
        return None  # it trains in a way of its own, which is not tried here: that would change the weights
    attempt = partial(_attempt, task, model, loader, device, arguments or {}, only_updates)
    batch, output = attempt(NUM_ROWS)
    check_output(task, loader.part.name, output)
    if loader.part.name == "train":
        warn_of_wrong_scale(task, output.outputs)
    _check_labels(task, loader.part, output, arguments or {})
    _check_broadcast(task, loader.part, output, batch)
    if not torch.isfinite(output.loss) and not task.has_no_label(output.targets):  # later rows may have some
        raise NumericsError(f"{loader.part.name}: {explain_nonfinite(output.loss.item(), 1, {}, batch)}")
    if metrics is not None:
        try_metrics(metrics, output, lambda: attempt(MORE_ROWS)[1])
    return output


def _attempt(
    task: Task, model: nn.Module, loader: Loader, device: torch.device, arguments: Mapping[str, Any],
    only_updates: bool, num_rows: int,
) -> tuple[Any, StepOutput]:  # fmt: skip
    """Return a batch of at most `num_rows`, and what the task makes of it."""
    batch = to_device(loader.peek(num_rows), device)
    with forked_rng(), evaluating(model), undisturbed(task), torch.no_grad(), _LastLayer(model) as last:
        norms = BatchNorms(model)
        try:
            task.begin(loader.part.name, 0)
            with warnings.catch_warnings():
                warnings.filterwarnings("error", "Using a target size")  # torch would broadcast, and go on
                output = task.step(model, batch)
        except KeelError as error:
            if only_updates:
                raise DataError(f"{loader.part.name}: {error}; {_NO_STEP}") from error
            raise
        except Exception as error:
            if shortage(error) or no_deterministic_form(error):
                raise
            if (mistake := uses_uncalled(error)) is not None:
                raise mistake from error
            raise DataError(
                f"{loader.part.name}: {_explain(model, batch, error, last, arguments)}"
                + (f"; {_NO_STEP}" if only_updates else "")
            ) from error
        finally:
            norms.remove()
    norms.check(loader)
    return batch, output


def uses_uncalled(error: Exception) -> ConfigError | None:
    """Return what to say where `error` came of using a part of a weight that is gathered for calls of its module."""
    if "mixed torch.Tensor and DTensor" not in str(error):
        return None
    return ConfigError(
        "trainer.parallel: fsdp gathers weights when the module that holds them is called, and the task uses some "
        "without calling the model; name the modules it calls in trainer.parallel.shard, or use ddp"
    )


def _check_broadcast(task: Task, part: Part, output: StepOutput, batch: Any) -> None:
    """Refuse outputs [N, 1] and targets [N] where the loss, [N, N] numbers' mean, would be another if they agreed."""
    outputs, targets = output.outputs, output.targets
    if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor) or outputs.shape == targets.shape:
        return
    if outputs.numel() != targets.numel() or hasattr(task, "update"):
        return
    try:
        losses: list[Tensor] = []
        for aimed_at in (targets, targets.reshape(outputs.shape)):
            with forked_rng(0), torch.no_grad():
                losses.append(task.loss(outputs, aimed_at, batch)[0])
    except Exception:  # of the second it may not be a loss at all: of labels and their scores, say
        return
    if not torch.allclose(losses[0], losses[1], equal_nan=True):
        raise DataError(
            f"{part.name}: the loss broadcasts outputs of shape {list(outputs.shape)} against targets of shape "
            f"{list(targets.shape)} to {losses[0].item():.4g}; with equal shapes it is "
            f"{losses[1].item():.4g}; make them equal"
        )


class _LastLayer:
    """Notes which layer of a model was begun last and not finished, and what it was given."""

    def __init__(self, model: nn.Module) -> None:
        self.name = ""
        self.layer: nn.Module | None = None
        self.inputs: Any = ()
        leaves = ((name, module) for name, module in model.named_modules() if not any(module.children()))
        self._layers = {name: leaf for name, leaf in leaves if not isinstance(leaf, torch.jit.ScriptModule)}
        self._hooks: list[Any] = []

    def __enter__(self) -> _LastLayer:
        for name, layer in self._layers.items():
            self._hooks.append(layer.register_forward_pre_hook(partial(self._begin, name)))
            self._hooks.append(layer.register_forward_hook(self._end))
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _begin(self, name: str, layer: nn.Module, inputs: Any) -> None:
        self.name, self.layer, self.inputs = name, layer, inputs

    def _end(self, *ignored: Any) -> None:
        self.layer = None

    @property
    def sizes(self) -> tuple[int, int] | None:
        """How many features or channels the layer is made for, and how many it was given."""
        wanted = getattr(self.layer, "in_features", getattr(self.layer, "in_channels", None))
        given = next(iter(tensors_in(self.inputs)), None)
        if self.layer is None or not isinstance(wanted, int) or given is None or given.dim() < 2:
            return None
        return wanted, given.shape[-1 if hasattr(self.layer, "in_features") else 1]

    @property
    def types(self) -> tuple[torch.dtype, torch.dtype] | None:
        """Of which types the layer's weights are, and the numbers it was given."""
        weight = None if self.layer is None else next(self.layer.parameters(), None)
        given = next(iter(tensors_in(self.inputs)), None)
        is_lookup = isinstance(self.layer, nn.Embedding | nn.EmbeddingBag)
        return None if weight is None or given is None or is_lookup else (weight.dtype, given.dtype)


def _change_of(arguments: Mapping[str, Any], value: int, needed: int) -> str:
    """Return which key to change so that the model has `needed` of something instead of `value`."""
    keys = [key for key, given in arguments.items() if given == value and type(given) is int]
    if keys:
        return f"; change {' or '.join(keys)} from {value} to {needed}"
    numbers = [f"{key}={given}" for key, given in arguments.items() if type(given) is int]
    return f"; it was made with {', '.join(numbers)}" if numbers else ""


def _check_labels(task: Task, part: Part, output: StepOutput, arguments: Mapping[str, Any]) -> None:
    """Hold all labels against the model, where the dataset offers them: a GPU reports a wrong one as a crash."""
    terms = [term for term in terms_of(task.criterion) if term.is_of_labels and term.second == "targets"]
    outputs = output.outputs
    if not terms or not isinstance(outputs, Tensor) or outputs.dim() < 2:
        return
    num_outputs = outputs.shape[1]
    if (labels := _labels_of(part)) is not None:
        if not isinstance(task.criterion, Mapping) and bool((labels == terms[0].ignore_index).all()):
            raise DataError(
                f"{part.name}: no row has a label: all are {terms[0].ignore_index}, which {terms[0].name} leaves out; "
                "the loss would be nan"
            )
        if part.name == "train" and bool((labels == labels[0]).all()):
            log.warning("data   all labels of %s are %d: there is nothing to tell apart", part.name, int(labels[0]))
        for term in terms:
            _check_range(part, labels, labels != term.ignore_index, num_outputs, arguments)
    said = getattr(part.dataset, "num_classes", None) or 0
    if said > num_outputs and are_labels(output.targets):
        change = _change_of(arguments, num_outputs, said)
        raise DataError(f"{part.name}: the dataset has {said} classes, and the model {num_outputs} outputs{change}")


def _labels_of(part: Part) -> Tensor | None:
    """Return the class of each row, where the dataset offers it."""
    if getattr(part.dataset, "targets", None) is None:
        return None
    labels = part.targets()
    return labels if labels.dim() == 1 and are_labels(labels) else None


def _check_range(part: Part, labels: Tensor, counts: Tensor, num_outputs: int, arguments: Mapping[str, Any]) -> None:
    """Refuse labels that count in the loss, and of which the model has no output."""
    wrong = ((labels < 0) | (labels >= num_outputs)) & counts
    if wrong.any():
        first = int(wrong.nonzero()[0])
        raise DataError(
            f"{part.name} row {int(part.row_ids()[first])}: label {int(labels[first])} is out of range: the model "
            f"has {num_outputs} outputs, so labels are 0 to {num_outputs - 1} ({int(wrong.sum())} such rows)"
            + (_change_of(arguments, num_outputs, int(labels.max()) + 1) if labels.max() >= num_outputs else "")
        )


def _explain(model: nn.Module, batch: Any, error: Exception, last: _LastLayer, arguments: Mapping[str, Any]) -> str:
    shapes = ", ".join(
        f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}" for tensor in tensors_in(batch)
    )
    name = type(model).__name__
    if isinstance(model, nn.ModuleDict):
        return f"several models ({', '.join(model)}) need a task of your own that says how they work together"
    if type(model).forward is nn.Module.forward:
        return f"the model {name} has no method `forward`"
    failed = f"the model {name} fails on a batch of {shapes or type(batch).__name__}: "
    layer = f"{last.name or name} ({type(last.layer).__name__})"
    if last.sizes is not None and last.sizes[0] != last.sizes[1]:
        wanted, given = last.sizes
        of_what = "features" if hasattr(last.layer, "in_features") else "channels"
        return f"{failed}{layer} takes {wanted} {of_what} and gets {given}{_change_of(arguments, wanted, given)}"
    if last.types is not None and last.types[0] != last.types[1]:
        needed, found = (str(each).removeprefix("torch.") for each in last.types)
        advice = "add the transform ToFloat" if found == "uint8" else f"let the dataset give {needed}"
        return f"{failed}{layer} computes in {needed} and gets {found}; {advice}"
    return failed + first_line(error) + own_line(error, _CALLERS)


def count_parameters(model: nn.Module, resting: Collection[int] = ()) -> tuple[int, int]:
    """Return (all, trainable) parameters of a model; `resting` holds the `id` of those that rest besides."""
    sizes = [(each.numel(), each.requires_grad and id(each) not in resting) for each in model.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trains in sizes if trains)


def describe_length(part: Part) -> str:
    """Return the number of rows of a part as text."""
    try:
        return f"{len(part):,}"
    except TypeError:
        return UNKNOWN
