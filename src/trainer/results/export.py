"""A trained model in a file that other programs read, checked against the original before anybody gets it."""

from __future__ import annotations

import copy
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from src.utils.errors import ConfigError, DataError, NumericsError
from src.utils.packages import not_installed

Inputs = tuple[Tensor, ...]
Run = Callable[[Inputs], list[Tensor]]
"""Runs an exported file on inputs."""

_COLOURS = re.compile(r"\x1b?\[[0-9;]*m")
RELATIVE, ABSOLUTE = 1e-3, 1e-4
"""How far an exported model may be off, in shares of the original's largest output and of 1: room for another order
of float32 sums, none for another function."""


def export_safetensors(model: nn.Module, inputs: Inputs, path: Path) -> Run:
    """Write the weights alone; whoever reads them needs the code of the model."""
    with _needing("safetensors"):
        from safetensors.torch import load_file, save_file
    save_file({name: value.detach().clone().contiguous() for name, value in model.state_dict().items()}, path)
    return _with_weights(model, load_file(path))


def export_weights(model: nn.Module, inputs: Inputs, path: Path) -> Run:
    """Write the weights alone, a plain `state_dict`; whoever reads them needs the code of the model."""
    torch.save(model.state_dict(), path)
    return _with_weights(model, torch.load(path, weights_only=True))


def _with_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> Run:
    read = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in read.parameters():
            parameter.zero_()  # what is compared comes from the file
    read.load_state_dict(weights)
    return lambda some: _tensors(read(*some))


def export_torch(model: nn.Module, inputs: Inputs, path: Path) -> Run:
    """Write a graph that torch runs without the code of the model, for any number of rows."""
    torch.export.save(torch.export.export(model, inputs, dynamic_shapes=_any_rows(inputs)), path)
    read = torch.export.load(path).module()
    return lambda some: _tensors(read(*some))


def export_onnx(model: nn.Module, inputs: Inputs, path: Path) -> Run:
    """Write a graph for ONNX runtimes, with torch or without, for any number of rows."""
    with _needing("onnx", "onnxscript", "onnxruntime"):
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    names = input_names(inputs)
    for name in ("torch.onnx", "onnxscript", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about its own code
        torch.onnx.export(
            model, inputs, path, dynamo=True, input_names=names, dynamic_shapes=_any_rows(inputs),
            external_data=False, verbose=False,
        )  # fmt: skip
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    takes = [each.name for each in session.get_inputs()]
    return lambda some: [
        torch.as_tensor(each)
        for each in session.run(None, {n: v.numpy() for n, v in zip(names, some, strict=True) if n in takes})
    ]


FORMATS: dict[str, tuple[str, Callable[[nn.Module, Inputs, Path], Run]]] = {
    "weights": ("weights.pt", export_weights),
    "safetensors": ("model.safetensors", export_safetensors),
    "torch_export": ("model.pt2", export_torch),
    "onnx": ("model.onnx", export_onnx),
}
"""File name and writer of each format."""


def export_model(model: nn.Module, inputs: Inputs, folder: Path, chosen: str) -> float:
    """Write `model` into `folder` and return by how much the written one differs from it, at most.

    Args:
        model: On the CPU, in evaluation mode.
        inputs: Real ones, [N, ...] with N of at least 3; results are compared for N rows, for 3 and for 1.
        folder: Must exist.
        chosen: A key of `FORMATS`.

    Raises:
        ConfigError: A package is missing, or this model cannot be written in this format.
        NumericsError: The written model gives other results.
    """
    name, write = FORMATS[chosen]
    try:
        with torch.no_grad():
            run = write(model, inputs, folder / name)
            return max(
                _difference(model, run, tuple(each[:rows] for each in inputs)) for rows in (len(inputs[0]), 3, 1)
            )
    except (ConfigError, DataError, NumericsError, MemoryError):
        raise
    except Exception as error:  # torch.export and the runtimes raise nearly anything
        raise ConfigError(f"{type(model).__name__} cannot be exported as {chosen}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """Return the first line of what an error, or the innermost one that caused it, says."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in _COLOURS.sub("", str(error)).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def input_names(inputs: Sequence[Tensor]) -> list[str]:
    """Return what the inputs are called in an exported folder."""
    return ["inputs"] if len(inputs) == 1 else [f"inputs_{k}" for k in range(len(inputs))]


def _difference(model: nn.Module, run: Run, inputs: Inputs) -> float:
    expected, found = _tensors(model(*inputs)), run(inputs)
    if [each.shape for each in expected] != [each.shape for each in found]:
        raise NumericsError(
            f"export: the written model gives shapes {[list(each.shape) for each in found]}; nothing kept"
        )
    worst = 0.0
    for ours, theirs in zip(expected, found, strict=True):
        difference = float((ours.double() - theirs.double()).abs().max())
        allowed = ABSOLUTE + RELATIVE * float(ours.abs().max())
        if not difference <= allowed:
            raise NumericsError(
                f"export: on {len(ours)} real rows the written model is off by {difference:.3g}, more than "
                f"{allowed:.3g}; nothing was kept"
            )
        worst = max(worst, difference)
    return worst


def _tensors(outputs: Any) -> list[Tensor]:
    found = [outputs] if isinstance(outputs, Tensor) else list(outputs) if isinstance(outputs, (tuple, list)) else []
    if not found or not all(isinstance(each, Tensor) for each in found):
        raise DataError(f"export: the model returns {type(outputs).__name__}; a tensor or a tuple of tensors is needed")
    return found


def _any_rows(inputs: Inputs) -> tuple[dict[int, Any], ...]:
    rows = torch.export.Dim("rows")
    return tuple({0: rows} for _ in inputs)


@contextmanager
def _needing(*packages: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise ConfigError(f"{not_installed('this format', *packages)} ({error})") from error
