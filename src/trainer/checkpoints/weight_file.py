"""Weights that other programs wrote: files of names and tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from src.trainer.checkpoints.resume import best_weights, open_checkpoint
from src.utils.errors import CheckpointError, ConfigError, first_line
from src.utils.packages import not_installed
from src.utils.paths import shown_path

WRAPPERS = ("state_dict", "model_state_dict", "model", "weights")
"""Under which of these names programs put the weights into their checkpoints."""


def read_weights(path: Path) -> Mapping[str, Tensor]:
    """Return the weights of a run, of a checkpoint, or of a file of another program: `.pth`, `.safetensors`.

    Nothing but tensors and plain data is ever read.

    Raises:
        CheckpointError: There are none, or the file is damaged.
    """
    is_foreign = path.is_file() and path.parent.name != "checkpoints" and not path.with_suffix(".json").exists()
    if not is_foreign:
        return best_weights(open_checkpoint(path, "best")[1])
    content = _read(path)
    if isinstance(content, Mapping) and "format" in content and "model" in content:
        return best_weights(open_checkpoint(path)[1])
    found = next((weights for weights in map(_weights, _candidates(content)) if weights), None)
    if found is None:
        raise CheckpointError(
            f"{shown_path(path)}: holds no weights; names and tensors are needed, alone or under {', '.join(WRAPPERS)}"
        )
    return found


def _read(path: Path) -> Any:
    try:
        if path.suffix != ".safetensors":
            return torch.load(path, map_location="cpu", weights_only=True)
        from safetensors.torch import load_file

        return load_file(path)
    except ImportError:
        raise ConfigError(not_installed(f"{shown_path(path)}:", "safetensors")) from None
    except Exception as error:  # a damaged or hostile file may fail in any way
        is_refused = type(error).__name__ == "UnpicklingError"
        reason = "it holds more than tensors and plain data" if is_refused else first_line(error)
        raise CheckpointError(f"{shown_path(path)}: cannot be read as weights: {reason}") from error


def _candidates(content: Any) -> list[Any]:
    return [content, *(content.get(name) for name in WRAPPERS)] if isinstance(content, Mapping) else []


def _weights(content: Any) -> dict[str, Tensor]:
    """Return the tensors of a mapping by name; nothing when it holds anything else."""
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        return {}
    return {str(name): value for name, value in content.items()}
