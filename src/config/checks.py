"""What sections must say about each other: parts that exist, a monitor that is logged, a rate that is a rate."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

from src.config.kinds import is_module
from src.config.mistakes import KeyPath, Mistakes, did_you_mean, found, nearest, unquoted
from src.config.references import Reference
from src.config.settings import Component, Config, ScheduleSettings
from src.config.tune import check_tune
from src.data.settings import LoaderSettings, SplitSettings

_NAME = re.compile(r"[A-Za-z0-9._][A-Za-z0-9._-]{0,63}")
_DEVICE_NAMES = {"CON", "PRN", "AUX", "NUL", *(f"{port}{n}" for port in ("COM", "LPT") for n in range(10))}
_CODE_LOADING = {"trust_remote_code": True, "allow_pickle": True, "weights_only": False}


def check_sections(config: Config, mistakes: Mistakes) -> None:
    """Notes what contradicts itself between otherwise well-formed sections."""
    _check_name(config.name, mistakes)
    _check_parts(config, mistakes)
    _check_loaders(config, mistakes)
    _check_names(config, mistakes)
    _check_rates(config, mistakes)
    if not mistakes.touch("data", "loss", "metrics"):
        _check_monitors(config, mistakes)
    if config.data.split is not None:
        _check_shares(config.data.split, mistakes)
    for path, component in components(config):
        _check_no_code_loading(component.args, (*path, "args"), mistakes)


def components(config: Config) -> Iterable[tuple[KeyPath, Component]]:
    """Yields every component of the config and where it is written, in reading order."""
    if config.data.source is not None:
        yield from _dataset(("data",), config.data.source)
    yield from _listed(("data", "transforms"), config.data.transforms)
    for name, part in config.data.parts.items():
        if part.type is not None:
            yield from _dataset(("data", name), part.type)
        yield from _listed(("data", name, "transforms"), part.transforms or ())
    for section in ("model", "loss", "optimizer", "lr_scheduler", "task"):
        yield from named(getattr(config, section), section)
    yield from _listed(("metrics",), config.metrics.values())
    yield from _loader_components(config)
    yield from _listed(("hooks",), config.hooks)
    yield from _listed(("logger", "sinks"), config.logger.sinks)


def _dataset(path: KeyPath, dataset: Component) -> Iterable[tuple[KeyPath, Component]]:
    """Yields a dataset and the tokenizer among its arguments."""
    yield path, dataset
    if (tokenizer := tokenizer_of(dataset)) is not None:
        yield (*path, "args", "tokenizer"), tokenizer


def tokenizer_of(dataset: Component) -> Component | None:
    """Returns what the argument `tokenizer` of a dataset names, if it has one."""
    given = dataset.args.get("tokenizer")
    if isinstance(given, str):
        return Component(given)
    if isinstance(given, Mapping) and is_module(given):
        return Component(given["type"], given.get("args") or {})
    return None


def _loaders(config: Config) -> Iterable[tuple[KeyPath, LoaderSettings]]:
    yield ("loader",), config.loader
    yield from ((("loader", name), settings) for name, settings in config.part_loaders.items())


def _loader_components(config: Config) -> Iterable[tuple[KeyPath, Component]]:
    for path, loader in _loaders(config):
        for key in ("sampler", "batch_sampler", "collate_fn", "worker_init_fn"):
            component = getattr(loader, key)
            is_own = len(path) == 1 or component != getattr(config.loader, key)
            if component is not None and is_own:
                yield (*path, key), Component(component) if isinstance(component, str) else component


def named(section: Any, name: str) -> Iterable[tuple[KeyPath, Any]]:
    """Yields the one component of a section, or its several by name."""
    if isinstance(section, Mapping):
        yield from (((name, key), component) for key, component in section.items())
    elif section is not None:
        yield (name,), section


def _listed(path: KeyPath, items: Iterable[Component]) -> Iterable[tuple[KeyPath, Component]]:
    return (((*path, index), component) for index, component in enumerate(items))


def _check_name(name: str, mistakes: Mistakes) -> None:
    is_reserved = name.split(".")[0].upper() in _DEVICE_NAMES or name.strip(".") == ""
    if not _NAME.fullmatch(name) or is_reserved:
        why = "is reserved" if is_reserved and name else "letters, digits, . _ - (1-64, no - in front) are needed"
        mistakes.add(("name",), f"{why}, found {found(name)}")


def _check_parts(config: Config, mistakes: Mistakes) -> None:
    data, split = config.data, config.data.split
    train = data.parts.get("train")
    has_train = train is not None and train.type is not None
    if data.source is None and not has_train:
        mistakes.add(("data",), "no training data; give `data.type` (a dataset to split) or `data.train.type`")
    if data.source is not None and has_train:
        mistakes.add(("data", "train"), "training data given twice: by `data.type` and by `data.train.type`")
    if split is not None:
        for name in ("val", "test"):
            part = data.parts.get(name)
            if name in split.part_names and part is not None and part.type is not None:
                mistakes.add(("data", name), f"given twice: by `data.split.{name}` and by a dataset of its own")
    names = data.part_names()
    for name in data.parts:
        if name not in names:
            mistakes.add(("data", name), f"has no dataset; give it a `type`{_or_split(name)}")
    for name in config.part_loaders:
        if name not in names:
            mistakes.add(("loader", name), f"there is no such part{did_you_mean(name, names)}")


def _check_shares(split: SplitSettings, mistakes: Mistakes) -> None:
    """Notes wrong shares; which parts there are is known all the same."""
    shares = {"val": split.val, "test": split.test}
    for name, share in shares.items():
        if isinstance(share, float) and share >= 1:
            what = f"a share below 1, or a whole number of rows, is needed, found {share}"
            mistakes.add(("data", "split", name), what)
    total = sum(share for share in shares.values() if share < 1)
    if total >= 1:
        mistakes.add(("data", "split"), f"val and test sum to {total:g}; train would have 0 rows")
    for key, what in split.contradictions():
        mistakes.add(("data", "split", key), what)


def _or_split(name: str) -> str:
    return f", or rows through `data.split.{name}`" if name in ("val", "test") else ""


def _check_loaders(config: Config, mistakes: Mistakes) -> None:
    cores = os.cpu_count() or 1
    for path, loader in _loaders(config):
        most = max(8 * cores, 64)
        if loader.num_workers != "auto" and loader.num_workers > most:
            what = f"must be <= {most}, found {loader.num_workers}; this machine has {cores} cores"
            mistakes.add((*path, "num_workers"), what)
        if loader.batch_sampler is not None and loader.sampler is not None:
            mistakes.add((*path, "sampler"), "`batch_sampler` decides the rows already; leave one out")
        elif loader.sampler is not None and loader.shuffle:
            mistakes.add((*path, "shuffle"), "`sampler` decides the order already; leave one out")


def _check_names(config: Config, mistakes: Mistakes) -> None:
    """Notes optimizers of models that there are not, and schedules of optimizers that there are not."""
    if isinstance(config.model, Mapping) and isinstance(config.optimizer, Mapping):
        for name in config.optimizer:
            if name.partition(".")[0] not in config.model:
                mistakes.add(("optimizer", name), f"there is no model `{name}`{did_you_mean(name, config.model)}")
    if isinstance(config.lr_scheduler, Mapping) and isinstance(config.optimizer, Mapping):
        for name in config.lr_scheduler.keys() - config.optimizer.keys():
            what = f"there is no optimizer `{name}`{did_you_mean(name, config.optimizer)}"
            mistakes.add(("lr_scheduler", name), what)


def _check_rates(config: Config, mistakes: Mistakes) -> None:
    for path, optimizer in named(config.optimizer, "optimizer"):
        lr = optimizer.args.get("lr")
        if "lr" not in optimizer.args or isinstance(lr, Reference):
            continue
        where = (*path, "args", "lr")
        if isinstance(lr, bool) or not isinstance(lr, int | float):
            mistakes.add(where, f"a number > 0 is needed, found {found(lr)}{unquoted(lr)}")
        elif not math.isfinite(lr):
            mistakes.add(where, f"must be finite, found {lr}")
        elif lr <= 0:
            mistakes.add(where, f"must be > 0, found {lr}")


def _check_monitors(config: Config, mistakes: Mistakes) -> None:
    if config.trainer.monitor is not None:
        _check_monitor(config.trainer.monitor, ("trainer", "monitor"), config, mistakes)
    elif config.trainer.patience > 0 and "val" not in config.data.part_names():
        mistakes.add(("trainer", "patience"), "nothing to watch; give data.val, data.split.val or trainer.monitor")
    for path, schedule in named(config.lr_scheduler, "lr_scheduler"):
        if isinstance(schedule, ScheduleSettings) and schedule.monitor is not None:
            # The direction is the `mode` of its args, so it may be left out here.
            monitor = schedule.monitor if " " in schedule.monitor else f"min {schedule.monitor}"
            _check_monitor(monitor, (*path, "monitor"), config, mistakes)
    if config.tune is not None:
        default = "min val/loss" if "val" in config.data.part_names() else None
        compared = check_tune(config.tune, config.trainer.monitor, default, mistakes)
        if compared is not None:
            _check_monitor(compared, ("tune", "metric"), config, mistakes)
        if not config.logger.csv:
            mistakes.add(("logger", "csv"), "a sweep reads what its trials write there; leave it true")


def _check_monitor(monitor: str, path: KeyPath, config: Config, mistakes: Mistakes) -> None:
    words = monitor.split()
    terms = [*config.loss] if isinstance(config.loss, Mapping) else []
    metrics = ["loss", *terms, *config.metrics]
    parts = [name for name in config.data.part_names() if name == "train" or name.startswith("val")]
    if len(words) != 2 or "/" not in words[1]:
        example = f"min {'val' if 'val' in parts else parts[-1]}/loss"
        mistakes.add(path, f"`min` or `max` and a part/metric is needed, e.g. `{example}`, found {found(monitor)}")
        return
    mode, (part, _, metric) = words[0], words[1].partition("/")
    if mode not in ("min", "max"):
        close = nearest(mode, ["min", "max"])
        hint = f"; did you mean `{close}`?" if close else ""
        mistakes.add(path, f"min or max is needed, found {found(mode)}{hint}")
    if part not in parts:
        hint = f"; needs data.{part} or data.split.{part}" if part == "val" else did_you_mean(part, parts)
        mistakes.add(path, f"this run evaluates no part `{part}`{hint}")
    # A task of the user's own may log more than we can know: a step that is tried tells. The default one logs these.
    if config.task.type == "Task" and metric.split("/")[0] not in metrics:
        mistakes.add(path, f"this run logs no metric `{metric}`{did_you_mean(metric, metrics)}")


def _check_no_code_loading(value: Any, path: KeyPath, mistakes: Mistakes) -> None:
    children = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        if key in _CODE_LOADING and child != (not _CODE_LOADING[key]):
            mistakes.add((*path, key), f"is not allowed to be {found(child)}: a config must not load code")
        _check_no_code_loading(child, (*path, key), mistakes)
