"""Finding where in a step the first nan or inf came from, by doing the step once more under observation."""

from __future__ import annotations

import re
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from src.trainer.faults.nonfinite import all_finite, tensors_in
from src.utils.paths import shown_path
from src.utils.processes.ranks import Ranks

TORCH = str(Path(torch.__file__).parent)
OURS = tuple(str(Path(__file__).with_name(name)) for name in ("diagnosis.py", "guard.py", "step.py", "trainer.py"))
UNWRITTEN = ("empty", "new_empty", "resize")
"""Operations whose results hold whatever lay in memory."""
MASKS = ("full", "masked_fill", "scalar_tensor", "fill", "lift_fresh", "_to_copy", "clone", "detach", "view", "expand")
"""Operations that hand an inf on that somebody wrote there: masks of attention hold it rightly."""


@dataclass
class Finding:
    """What the repeated step showed; empty texts where it showed nothing."""

    first_inf: str = ""
    """Operation, layer and line that made the first inf."""
    first_nan: str = ""
    """The same of the first nan."""
    parameter: str = ""
    """First parameter, in the order of the backward pass, whose gradient is not finite."""
    derivative: str = ""
    """Operation whose derivative is nan, and its line."""

    def __bool__(self) -> bool:
        return bool(self.first_inf or self.first_nan or self.parameter or self.derivative)

    def __str__(self) -> str:
        parts = {
            "first inf": self.first_inf,
            "first nan": self.first_nan,
            "first gradient": self.parameter,
            "derivative": self.derivative,
        }
        told = "; ".join(f"{name}: {text}" for name, text in parts.items() if text)
        return told or "the step, done once more, shows nothing: it depends on more than weights, batch and streams"


def diagnose(model: nn.Module, forward_and_backward: Callable[[], object], again: Callable[[], Any]) -> Finding:
    """Return where the first nan or inf comes from.

    Args:
        model: Whose layers are named.
        forward_and_backward: Does the step without its update, eagerly.
        again: Makes a context in which the step starts from its old state. The step is done twice.
    """
    finding = Finding()
    with _gradients_in_order(model, finding):
        with again(), _named_layers(model) as layers, _Watch(layers, finding):
            forward_and_backward()
        if finding.parameter:
            with again():
                finding.derivative = nan_derivative(forward_and_backward)
    return finding


def agreed(ranks: Ranks, told: list[str], is_found: bool) -> list[str]:
    """Return what the first rank tells whose rows showed something; of several all must tell the same.

    Args:
        ranks: The processes; all of them call this.
        told: What this one would tell.
        is_found: Whether its rows showed anything.
    """
    if ranks.is_alone:
        return told
    every = ranks.gather([f"rank {ranks.rank}: ", is_found, *told])
    chosen: list[str] = ranks.broadcast(max(every, key=lambda each: each[1]) if every else None)
    return [chosen[2], chosen[0] + chosen[3]]


def nan_derivative(forward_and_backward: Callable[[], object]) -> str:
    """Return the operation whose derivative is nan, with the line that called it; empty if there is none."""
    with warnings.catch_warnings(record=True) as told, suppress(RuntimeError):
        warnings.simplefilter("always")
        with torch.autograd.set_detect_anomaly(True):
            forward_and_backward()
    for warning in told:
        text = str(warning.message)
        if operation := re.search(r"Error detected in (\w+?)(Backward\d*)?\.", text):
            lines = re.findall(r'File "([^"]+)", line (\d+)', text)
            places = [f"{shown_path(Path(file))}:{line}" for file, line in lines if not _is_machinery(file)]
            return f"{operation[1]}{f' at {places[-1]}' if places else ''}"
    return ""


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Looks at the result of every operation."""

    def __init__(self, layers: list[str], finding: Finding) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.layers, self.finding = layers, finding

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name.startswith(UNWRITTEN) or (self.finding.first_nan and self.finding.first_inf):
            return result
        for tensor in tensors_in(result):
            if not (tensor.is_floating_point() and tensor.layout == torch.strided):
                continue
            if not self.finding.first_nan and bool(tensor.isnan().any()):  # device sync
                self.finding.first_nan = self._place(name)
            elif not self.finding.first_inf and not name.startswith(MASKS) and bool(tensor.isinf().any()):
                self.finding.first_inf = self._place(name)
        return result

    def _place(self, operation: str) -> str:
        layer = f" in layer {self.layers[-1]}" if self.layers else ""
        frames = [frame for frame in traceback.extract_stack() if not _is_machinery(frame.filename)]
        is_backward = not frames or any("_engine_run_backward" in frame.name for frame in traceback.extract_stack())
        where = (
            " in the backward pass"
            if is_backward
            else f" at {shown_path(Path(frames[-1].filename))}:{frames[-1].lineno}"
        )
        return f"{operation.strip('_')}{layer}{where}"


def _is_machinery(file: str) -> bool:
    return file.startswith((TORCH, "<")) or file in OURS


@contextmanager
def _named_layers(model: nn.Module) -> Iterator[list[str]]:
    """Keep a list of the layers that are at work, the innermost last."""
    layers: list[str] = []

    def enter(name: str, *_: Any) -> None:
        layers.append(name)

    def leave(*_: Any) -> None:
        if layers:
            layers.pop()

    hooks = []
    for name, module in model.named_modules():
        if name:
            hooks.append(module.register_forward_pre_hook(partial(enter, f"{name} ({type(module).__name__})")))
            hooks.append(module.register_forward_hook(leave))
    try:
        yield layers
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _gradients_in_order(model: nn.Module, finding: Finding) -> Iterator[None]:
    """Note the first gradient that is not finite; afterwards all gradients are as they were."""

    def look(name: str, parameter: Tensor) -> None:
        gradient = parameter.grad
        if gradient is not None and not finding.parameter and not all_finite([gradient]):
            finding.parameter = name

    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    gradients = {name: each.grad for name, each in trained.items()}
    for each in trained.values():
        each.grad = None
    register = nn.Parameter.register_post_accumulate_grad_hook
    hooks = [register(each, partial(look, name)) for name, each in trained.items()]  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for name, each in trained.items():
            each.grad = gradients[name]
