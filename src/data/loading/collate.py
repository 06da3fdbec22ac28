"""Putting samples together to a batch, where no function of the user's does."""

from __future__ import annotations

import copy
from dataclasses import fields, is_dataclass
from typing import Any

from torch.utils.data import default_collate


def collate_samples(samples: list[Any]) -> Any:
    """Do what torch does by default; dataclasses are put together field by field, and stay dataclasses."""
    first = samples[0]
    if not is_dataclass(first):
        return default_collate(samples)
    batch = copy.copy(first)
    for each in fields(first):
        object.__setattr__(batch, each.name, collate_samples([getattr(sample, each.name) for sample in samples]))
    return batch
