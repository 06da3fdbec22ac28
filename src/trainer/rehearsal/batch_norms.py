"""Batch norms that a last batch of one row would stop, told before the first step."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from torch import Tensor, nn

from src.data.loading.loader import Loader
from src.utils.errors import DataError


class BatchNorms:
    """Notes the batch norms that get one value a channel from each row: a batch of one row has no spread for them."""

    def __init__(self, model: nn.Module) -> None:
        self._found: list[str] = []
        self._hooks = [
            module.register_forward_pre_hook(partial(self._look, name))
            for name, module in model.named_modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm)
        ]

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _look(self, name: str, norm: nn.Module, inputs: Any) -> None:
        is_frozen = any(True for _ in norm.parameters()) and not any(each.requires_grad for each in norm.parameters())
        if isinstance(inputs[0], Tensor) and inputs[0].numel() == math.prod(inputs[0].shape[:2]) and not is_frozen:
            self._found.append(f"{name} ({type(norm).__name__})")

    def check(self, loader: Loader) -> None:
        """Refuse to train with a last batch of one row, at which torch would raise at the end of the first epoch.

        Raises:
            DataError: Names the layer, and what to change.
        """
        part = loader.part
        if not self._found or loader.batch_size is None or part.name != "train" or part.is_iterable:
            return
        settings = loader.settings
        is_plain = not settings.drop_last and settings.sampler is None and settings.batch_sampler is None
        if is_plain and len(part) % loader.batch_size == 1:
            raise DataError(
                f"{part.name}: {len(part)} rows in batches of {loader.batch_size} leave a last batch of 1 row, of "
                f"which {self._found[0]} can learn no spread; use loader.drop_last=true or another loader.batch_size"
            )
