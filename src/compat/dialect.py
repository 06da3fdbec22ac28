"""Older spellings of their keys: translated where the meaning is certain, refused with the right spelling where not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from src.utils.errors import ConfigError

Section = dict[str, Any]

RENAMED = {"save_freq": "save_period", "tensorboardX": "tensorboard", "early_stopping": "early_stop"}
"""Keys of `trainer` under older names."""

VALID_LOADERS = ("valid_data_loader", "val_data_loader", "valid_loader", "val_loader", "validation_loader")
"""Sections that name a loader of their own for validation; the first is what they become."""

REFUSED = {
    "validation": "write data_loader.args.validation_split",
    "lr_scheduler_freq": "the schedule moves once per epoch; give the scheduler itself longer steps",
    "model": 'write arch: {"type": ..., "args": {...}}',
}
"""Sections of the oldest versions whose meaning depended on the code of the project."""


def modernised(config: Mapping[str, Any], where: str) -> tuple[Section, list[str]]:
    """Return the config in the newest spelling, and what was changed, one sentence each. Unknown keys are kept.

    Raises:
        ConfigError: Lists every key that is missing or cannot be translated.
    """
    new: Section = {**config}
    notes: list[str] = []
    wrong = [f"{name}: {advice}" for name, advice in REFUSED.items() if name in new and not _is_new(name, new)]
    _sections(new, notes, wrong)
    trainer = new["trainer"] = dict(new.get("trainer") or {})
    for old, key in RENAMED.items():
        if old in trainer:
            trainer.setdefault(key, trainer.pop(old))
            notes.append(f"trainer.{old} is now trainer.{key}")
    if "save_dir" in new and "save_dir" not in trainer:
        trainer["save_dir"] = new["save_dir"]
    _monitor(trainer, notes, wrong)
    _check(new, trainer, wrong)
    if wrong:
        raise ConfigError("\n".join(f"{where}: {line}" for line in wrong))
    return new, notes


def _is_new(name: str, config: Section) -> bool:
    """`model` is an unknown section of the user's own where `arch` is in the new form."""
    return name == "model" and isinstance(config.get("arch"), dict)


def _sections(new: Section, notes: list[str], wrong: list[str]) -> None:
    for name in ("optimizer", "lr_scheduler"):
        kind = new.pop(f"{name}_type", None)
        if kind is not None:
            new[name] = {"type": kind, "args": dict(new.get(name) or {})}
            notes.append(f"{name}_type is now {name}.type")
    if "n_gpu" not in new and ("cuda" in new or "gpu" in new):
        new["n_gpu"] = int(bool(new.get("cuda", True)))
        notes.append(f"cuda and gpu are now n_gpu: {new['n_gpu']}; choose which with -d")
    visual = new.get("visualization")
    if isinstance(visual, dict) and "tensorboardX" in visual:
        new["visualization"] = {key: value for key, value in visual.items() if key != "tensorboardX"}
        new["trainer"] = {"tensorboard": visual["tensorboardX"], **(new.get("trainer") or {})}
        notes.append("visualization.tensorboardX is now trainer.tensorboard")
    for name in VALID_LOADERS[1:]:
        if isinstance(new.get(name), dict) and "type" in new[name]:
            new[VALID_LOADERS[0]] = new.pop(name)
            notes.append(f"{name} is now {VALID_LOADERS[0]}")
    for name in new:
        base, _, suffix = name.partition("_")
        if base in ("optimizer", "arch") and suffix and isinstance(new[name], dict) and "type" in new[name]:
            wrong.append(
                f"{name}: several of a kind need a task of their own; in the native form write "
                f"{'model' if base == 'arch' else base}: {{{suffix}: ...}} with a `task`"
            )


def _monitor(trainer: Section, notes: list[str], wrong: list[str]) -> None:
    """Bring `monitor` to `min NAME`, `max NAME` or `off`."""
    spec, mode = trainer.get("monitor") or "off", trainer.pop("monitor_mode", None)
    if mode is not None:
        spec = "off" if mode == "off" else f"{mode} {spec.split()[-1]}"
        notes.append(f"trainer.monitor and monitor_mode are now monitor: {spec!r}")
    words = str(spec).split()
    if words != ["off"] and (len(words) != 2 or words[0] not in ("min", "max")):
        wrong.append(f"trainer.monitor: {spec!r}; write 'min val_loss', 'max val_accuracy' or 'off'")
    trainer["monitor"] = spec


def _check(config: Section, trainer: Section, wrong: list[str]) -> None:
    for name in ("arch", "data_loader", "optimizer"):
        section = config.get(name)
        if not (isinstance(section, dict) and isinstance(section.get("type"), str)):
            wrong.append(f'{name}: write {{"type": NAME, "args": {{...}}}}, found {section!r}')
        elif not isinstance(section.get("args", {}), dict):
            wrong.append(f"{name}.args: arguments by name are needed, found {section['args']!r}")
        elif name == "data_loader" and "args" not in section:
            wrong.append("data_loader.args: missing; the arguments of the loader stand there, not beside `type`")
    if not isinstance(config.get("name"), str):
        wrong.append(f"name: a name of the experiment is needed, found {config.get('name')!r}")
    if not config.get("loss"):
        wrong.append("loss: name a function of model/loss.py")
    epochs = trainer.get("epochs")
    if not (isinstance(epochs, int) and epochs > 0):
        wrong.append(f"trainer.epochs: a whole number above 0 is needed, found {epochs!r}")
    if trainer.get("len_epoch"):
        wrong.append("trainer.len_epoch: epochs of a fixed length are trainer.max_steps in the native form")


def patience(trainer: Mapping[str, Any]) -> int:
    """Return after how many evaluations without improvement to stop; 0 for never."""
    value = trainer.get("early_stop") or 0
    return int(value) if math.isfinite(value) and value > 0 else 0
