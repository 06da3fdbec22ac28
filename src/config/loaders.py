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
from src.data.loading.loader import Loader
from src.data.loading.order import MakeSampler
from src.data.loading.share import WHOLE, Share
from src.data.parts.part import Part
from src.data.settings import LoaderSettings

log = logging.getLogger(__name__)


def training_loader(config: Config, part: Part, device: torch.device, share: Share = WHOLE) -> Loader:
    """Build the loader of a part as the config has it; `train` is shuffled unless it says otherwise."""
    if part.name != "train":
        return evaluation_loader(config, part, device, share)
    settings = config.loader_of("train")
    has_own_order = settings.sampler is not None or settings.batch_sampler is not None
    shuffle = settings.shuffle if settings.shuffle is not None else not (has_own_order or part.is_iterable)
    return _loader(config, part, settings, shuffle, device, share)


def evaluation_loader(config: Config, part: Part, device: torch.device, share: Share = WHOLE) -> Loader:
    """Build a loader that gives every row once, in order."""
    settings = replace(config.loader_of(part.name), shuffle=None, sampler=None, batch_sampler=None, drop_last=False)
    return _loader(config, part, settings, False, device, share)


def _loader(
    config: Config, part: Part, settings: LoaderSettings, shuffle: bool, device: torch.device, share: Share
) -> Loader:
    functions = {"collate_fn": settings.collate_fn, "worker_init_fn": settings.worker_init_fn}
    makers: dict[str, Any] = {kind: find(kind, name) for kind, name in functions.items() if name is not None}
    has_own_memory = device.type == "cuda"
    loader = Loader(
        part,
        settings,
        shuffle=shuffle,
        seed=config.seed,
        pin_memory=has_own_memory and settings.pin_memory is not False,
        sampler=_build_sampler("sampler", settings.sampler),
        batch_sampler=_build_sampler("batch_sampler", settings.batch_sampler),
        share=share,
        device=device if has_own_memory else None,
        **makers,
    )
    log.debug(
        "loader %s: batches of %d, %s, loader.num_workers %s, %s",
        part.name, loader.batch_size, "shuffled" if shuffle else "in order", settings.num_workers,
        "whole batches are read at once" if part.reads_batches else "row by row",
    )  # fmt: skip
    return loader


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
