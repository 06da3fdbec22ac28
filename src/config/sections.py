"""Merged values -> `Config`: the sections whose YAML form differs from their settings, and hints for unknown keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from src.config.mistakes import KeyPath, Mistakes, did_you_mean, dotted, found, nearest
from src.config.schema import INVALID, annotations_of, read, read_fields
from src.config.settings import UNNAMED, Component, Config, DataSettings, PartSettings, common_loader
from src.data.settings import LoaderSettings, SplitSettings
from src.logger.settings import LoggerSettings
from src.trainer.settings import TrainerSettings

SECTIONS = tuple(each.name for each in fields(Config) if each.name not in ("part_loaders", "places"))
PART_NAMES = ("train", "val", "test")
_DATA_KEYS = {"type", "args", "split", "transforms", *PART_NAMES}
_OWNERS: dict[str, KeyPath] = {each.name: ("trainer",) for each in fields(TrainerSettings)}
_OWNERS |= {each.name: ("logger",) for each in fields(LoggerSettings)}
_OWNERS |= {each.name: ("loader",) for each in fields(LoaderSettings)}
_OWNERS |= {"stratify": ("data", "split"), "split": ("data",), "transforms": ("data",), "every": ("lr_scheduler",)}
_OWNERS |= {"warmup_steps": ("lr_scheduler",), "lr": ("optimizer", "args"), "weight_decay": ("optimizer", "args")}
_OWNERS |= dict.fromkeys(SECTIONS, ())
_OTHER_WORDS = {
    "learning_rate": "optimizer.args.lr",
    "arch": "model",
    "criterion": "loss",
    "data_loader": "loader",
    "dataset": "data",
    "scheduler": "lr_scheduler",
    "max_epochs": "trainer.epochs",
    "num_epochs": "trainer.epochs",
    "early_stop": "trainer.patience",
    "validation_split": "data.split.val",
    "save_period": "trainer.save_every_epochs",
    "save_freq": "trainer.save_every_epochs",
    "grad_clip": "trainer.max_grad_norm",
    "n_gpu": "trainer.device",
}


def read_config(values: Mapping[Any, Any], mistakes: Mistakes) -> Config | None:
    """Reads all sections. Returns `None` when there is too little to go on; then a mistake is noted."""
    ready: dict[str, Any] = {}
    annotations = annotations_of(Config)
    for key, value in values.items():
        if key not in SECTIONS:
            mistakes.add((key,), f"unknown key{hint(str(key), (), set(SECTIONS))}")
        elif key == "data":
            ready["data"] = _read_data(value, mistakes)
        elif key == "loader":
            ready["loader"], ready["part_loaders"] = _read_loaders(value, mistakes)
        elif key == "metrics":
            ready["metrics"] = _read_metrics(value, mistakes)
        else:
            if key == "task" and isinstance(value, Mapping) and "type" not in value:
                value = {"type": "Task", **value}
            ready[key] = read(annotations[key], value, (key,), mistakes, hint)
        if key == "logger" and ready[key] is not INVALID:
            sinks = read(tuple[Component, ...], ready[key].sinks, (key, "sinks"), mistakes, hint)
            ready[key] = replace(ready[key], sinks=() if sinks is INVALID else sinks)
    meant = {_OTHER_WORDS.get(key) or nearest(str(key), SECTIONS) for key in values if key not in SECTIONS}
    for name in ("name", "data", "model"):
        if name not in values and name not in meant:  # of what is meant the place is told
            mistakes.add((name,), "missing")
    if ready.get("data", INVALID) is INVALID:
        return None
    kept = {key: value for key, value in ready.items() if value is not INVALID}
    # Stand-ins for what is missing let the other sections be checked; the noted mistakes stop the config later.
    return Config(**{"name": "unnamed", "model": UNNAMED, **kept}, places=mistakes.places)


def hint(key: str, path: KeyPath, known: set[str]) -> str:
    """Says what an unknown key may have been meant to be: a key of another section, or a near spelling here."""
    if path[:2] == ("tune", "space"):
        whole = "" if nearest(key, known) else f"; a key to search is written in one: `{dotted((*path[2:], key))}`"
        return f"{did_you_mean(key, known)}{whole}"
    owner = _OWNERS.get(key)
    if "args" in known and key not in SECTIONS and not nearest(key, known):
        below = dotted((*path, "args", "lr" if key == "learning_rate" else key))
        if owner is None or owner[:1] == path[:1]:
            return f"; arguments of a component belong below `args`: {below}"
    if owner is not None and owner != path:
        return f"; `{key}` belongs to `{dotted(owner)}`" if owner else f"; `{key}` belongs to the top level"
    if key in _OTHER_WORDS and _OTHER_WORDS[key] != dotted((*path, key)):
        return f"; write `{_OTHER_WORDS[key]}`"
    return did_you_mean(key, known if path else {*known, "base"})


def is_part_name(name: str) -> bool:
    """Says whether `name` may name a part of the data."""
    return name in PART_NAMES or name.startswith(("val_", "test_"))


def _read_data(value: Any, mistakes: Mistakes) -> Any:
    path: KeyPath = ("data",)
    if isinstance(value, str):
        value = {"type": value}
    if not isinstance(value, Mapping):
        mistakes.add(path, f"a name or a mapping is needed, found {found(value)}")
        return INVALID
    parts: dict[str, PartSettings] = {}
    rest: dict[Any, Any] = {}
    for key, item in value.items():
        if isinstance(key, str) and is_part_name(key):
            parts[key] = _read_part(item, (*path, key), mistakes)
        elif key in _DATA_KEYS:
            rest[key] = item
        else:
            mistakes.add((*path, key), f"unknown key{hint(str(key), path, _DATA_KEYS)}")
    settings = {
        "source": _read_component(rest, path, mistakes),
        "split": read(SplitSettings | None, rest.get("split"), (*path, "split"), mistakes, hint),
        "transforms": read(tuple[Component, ...], rest.get("transforms") or [], (*path, "transforms"), mistakes, hint),
        "parts": parts,
    }
    if INVALID in parts.values() or any(each is INVALID for each in settings.values()):
        return INVALID
    return DataSettings(**settings)


def _read_part(value: Any, path: KeyPath, mistakes: Mistakes) -> Any:
    if isinstance(value, str):
        value = {"type": value}
    if not isinstance(value, Mapping):
        mistakes.add(path, f"a name or a mapping is needed, found {found(value)}")
        return INVALID
    known = {"type", "args", "transforms"}
    for key in value:
        if key not in known:
            mistakes.add((*path, key), f"unknown key{hint(str(key), path, known)}")
    source = _read_component(value, path, mistakes)
    transforms = read(tuple[Component, ...] | None, value.get("transforms"), (*path, "transforms"), mistakes, hint)
    return INVALID if source is INVALID or transforms is INVALID else PartSettings(source, transforms)


def _read_component(value: Mapping[Any, Any], path: KeyPath, mistakes: Mistakes) -> Any:
    """Reads `type` and `args` from among the other keys of a section; `None` when neither is there."""
    own = {key: value[key] for key in ("type", "args") if key in value}
    return read_fields(Component, own, path, mistakes, hint) if own else None


def _read_loaders(value: Any, mistakes: Mistakes) -> tuple[Any, Any]:
    path: KeyPath = ("loader",)
    if not isinstance(value, Mapping):
        mistakes.add(path, f"a mapping is needed, found {found(value)}")
        return INVALID, INVALID
    special = {key: item for key, item in value.items() if isinstance(key, str) and is_part_name(key)}
    common = {key: item for key, item in value.items() if key not in special}
    loader = _read_loader(common, path, mistakes)
    loaders: dict[str, LoaderSettings] = {}
    for name, item in special.items():
        part_path = (*path, name)
        if not isinstance(item, Mapping):
            mistakes.add(part_path, f"a mapping is needed, found {found(item)}")
            continue
        own = _read_loader(item, part_path, mistakes)
        keys = [each.name for each in fields(LoaderSettings) if each.name in item]
        loaders[name] = replace(common_loader(loader, name), **{key: getattr(own, key) for key in keys})
    return loader, loaders


def _read_loader(value: Mapping[Any, Any], path: KeyPath, mistakes: Mistakes) -> LoaderSettings:
    def hint_with_parts(key: str, path: KeyPath, known: set[str]) -> str:
        return hint(key, path, known | set(PART_NAMES) if len(path) == 1 else known)

    loader: LoaderSettings = read_fields(LoaderSettings, value, path, mistakes, hint_with_parts)
    samplers: dict[str, Any] = {}
    for key in ("sampler", "batch_sampler"):
        component = read(Component | None, getattr(loader, key), (*path, key), mistakes, hint)
        samplers[key] = None if component is INVALID else component
    return replace(loader, **samplers)


def _read_metrics(value: Any, mistakes: Mistakes) -> Any:
    """Reads the list of metrics into a mapping by the name each is logged under."""
    path: KeyPath = ("metrics",)
    if value is None:
        return {}
    if not isinstance(value, list):
        mistakes.add(path, f"a list of names or mappings is needed, found {found(value)}")
        return INVALID
    metrics: dict[str, Component] = {}
    for index, item in enumerate(value):
        own = dict(item) if isinstance(item, Mapping) else item
        name = own.pop("name", None) if isinstance(own, dict) else None
        metric = read(Component, own, (*path, index), mistakes, hint)
        if metric is INVALID:
            continue
        name = metric.type.rpartition(".")[2] if name is None else name
        if not isinstance(name, str) or not name or "/" in name or name == "loss":
            mistakes.add((*path, index, "name"), f"text without `/`, other than `loss`, is needed, found {found(name)}")
        elif name in metrics:
            mistakes.add((*path, index), f"two metrics are logged as `{name}`; give one a `name` of its own")
        else:
            metrics[name] = metric
    return metrics
