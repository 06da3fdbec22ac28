"""The section `loader` of a config -> loaders of its parts."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import torch
from torch.utils.data import RandomSampler

from src.config.build import build
from src.config.registry import find
from src.config.settings import Component, Config
from src.data.loader import Loader
from src.data.order import MakeSampler
from src.data.part import Part
from src.data.settings import LoaderSettings
from src.data.share import WHOLE, Share

log = logging.getLogger(__name__)


def training_loader(config: Config, part: Part, device: torch.device, share: Share = WHOLE) -> Loader:
    """Build the loader of a part as the config has it; `train` is shuffled unless it says otherwise."""
    settings = config.part_loaders.get(part.name, config.loader)
    if part.name != "train":
        return evaluation_loader(config, part, device, share)
    has_own_order = settings.sampler is not None or settings.batch_sampler is not None
    shuffle = settings.shuffle if settings.shuffle is not None else not (has_own_order or part.is_iterable)
    return _told(
        part,
        settings,
        shuffle=shuffle,
        seed=config.seed,
        pin_memory=_pins(settings, device),
        sampler=_build_sampler("sampler", settings.sampler),
        batch_sampler=_build_sampler("batch_sampler", settings.batch_sampler),
        share=share,
        device=device if device.type == "cuda" else None,
        **_functions(settings),
    )


def evaluation_loader(config: Config, part: Part, device: torch.device, share: Share = WHOLE) -> Loader:
    """Build a loader that gives every row once, in order."""
    given = config.part_loaders.get(part.name, config.loader)
    settings = replace(given, shuffle=None, sampler=None, batch_sampler=None, drop_last=False)
    return _told(
        part,
        settings,
        shuffle=False,
        seed=config.seed,
        pin_memory=_pins(settings, device),
        share=share,
        device=device if device.type == "cuda" else None,
        **_functions(settings),
    )


def _told(part: Part, settings: LoaderSettings, **others: Any) -> Loader:
    loader = Loader(part, settings, **others)
    log.debug(
        "loader %s: batches of %d, %s, loader.num_workers %s, %s",
        part.name, loader.batch_size, "shuffled" if others["shuffle"] else "in order", settings.num_workers,
        "whole batches are read at once" if part.reads_batches else "row by row",
    )  # fmt: skip
    return loader


def _pins(settings: LoaderSettings, device: torch.device) -> bool:
    return device.type == "cuda" and settings.pin_memory is not False


def _functions(settings: LoaderSettings) -> dict[str, Any]:
    named = {"collate_fn": settings.collate_fn, "worker_init_fn": settings.worker_init_fn}
    return {kind: find(kind, name) for kind, name in named.items() if name is not None}


def _build_sampler(kind: str, component: Component | None) -> MakeSampler | None:
    """Return what makes the sampler of an epoch from the part and the epoch's own random stream."""
    if component is None:
        return None

    def make(part: Part, generator: torch.Generator) -> Any:
        known: dict[str, Any] = {"part": part, "data_source": part, "num_samples": len(part), "generator": generator}
        if kind == "batch_sampler":
            known["sampler"] = RandomSampler(part, generator=generator)
        return build(kind, component, **known)

    return make
