"""Older spellings of their keys: translated where the meaning is certain, refused with the right spelling where not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from src.config.mistakes import Mistakes, found, misspelt, unquoted

Section = dict[str, Any]

RENAMED = {"save_freq": "save_period", "tensorboardX": "tensorboard", "early_stopping": "early_stop"}
"""Keys of `trainer` under older names."""

VALID_LOADERS = ("valid_data_loader", "val_data_loader", "valid_loader", "val_loader", "validation_loader")
"""Sections that name a loader of their own for validation; the first is what they become."""

SECTIONS = (
    "name", "n_gpu", "arch", "data_loader", VALID_LOADERS[0], "optimizer", "loss", "metrics", "lr_scheduler", "trainer",
    "save_dir",
)  # fmt: skip
"""Sections that mean something to a run; all others are the project's own."""

TRAINER_KEYS = (
    "epochs", "save_dir", "save_period", "verbosity", "monitor", "early_stop", "tensorboard", "len_epoch", "log_step",
    "log_dir",
)  # fmt: skip
"""Keys that a section `trainer` usually has."""

REFUSED = {
    "validation": "write data_loader.args.validation_split",
    "lr_scheduler_freq": "the schedule moves once per epoch; give the scheduler itself longer steps",
    "model": 'write arch: {"type": ..., "args": {...}}',
}
"""Sections of the oldest versions whose meaning depended on the code of the project."""


def modernised(config: Mapping[str, Any], where: str) -> tuple[Section, list[str]]:
    """Return the config in the newest spelling, and what was changed, one sentence each. Unknown keys are kept.

    Raises:
        ConfigError: Lists every key that is missing, misspelt, or cannot be translated.
    """
    mistakes = Mistakes({(): where})
    result = modernise(config, mistakes)
    mistakes.stop_if_any()
    return result


def modernise(config: Mapping[str, Any], mistakes: Mistakes) -> tuple[Section, list[str]]:
    """Return what `modernised` does, also where something is wrong: `mistakes` receives it."""
    new: Section = {**config}
    notes: list[str] = []
    for name, advice in REFUSED.items():
        if name in new and not _is_new(name, new):
            mistakes.add((name,), advice)
    _sections(new, notes, mistakes)
    if not isinstance(new.get("trainer") or {}, Mapping):
        mistakes.add(("trainer",), f"a mapping is needed, found {found(new['trainer'])}")
        return new, notes
    trainer = new["trainer"] = dict(new.get("trainer") or {})
    for old, key in RENAMED.items():
        if old in trainer:
            trainer.setdefault(key, trainer.pop(old))
            notes.append(f"trainer.{old} is now trainer.{key}")
    if "save_dir" in new and "save_dir" not in trainer:
        trainer["save_dir"] = new["save_dir"]
    _monitor(trainer, notes, mistakes)
    _check(new, trainer, mistakes)
    return new, notes


def note_slips(config: Mapping[str, Any], mistakes: Mistakes) -> list[str]:
    """Note keys that must be slips for one that is not there; return those that may be the project's own, as warnings.

    Any other key is the project's own affair. On the command line a slip is one whatever the file holds.
    """
    notes: list[str] = []
    trainer, components = config.get("trainer"), ("arch", "data_loader", VALID_LOADERS[0], "optimizer", "lr_scheduler")
    known: dict[tuple[str, ...], Sequence[str]] = {(): SECTIONS}
    known |= {("trainer",): TRAINER_KEYS} if isinstance(trainer, Mapping) else {}
    known |= {(name,): ("type", "args") for name in components if isinstance(config.get(name), Mapping)}
    for path, names in known.items():
        section = config[path[0]] if path else config
        for key in section:
            meant = misspelt(str(key), names) if key not in names else None
            if meant is None:
                continue
            where = (*path, str(key))
            is_absent = section.get(meant) in (None, "off")  # an absent monitor is off
            if is_absent or mistakes.place(where).startswith("command line"):
                mistakes.add(where, f"unknown key; did you mean `{meant}`?")
            else:
                notes.append(f"{mistakes.at(where)}: is kept for the project's own code, or did you mean `{meant}`?")
    return notes


def _is_new(name: str, config: Section) -> bool:
    """`model` is an unknown section of the user's own where `arch` is in the new form."""
    return name == "model" and isinstance(config.get("arch"), dict)


def _sections(new: Section, notes: list[str], mistakes: Mistakes) -> None:
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
            mistakes.add(
                (name,),
                f"several of a kind need a task of their own; in the native form write "
                f"{'model' if base == 'arch' else base}: {{{suffix}: ...}} with a `task`",
            )


def _monitor(trainer: Section, notes: list[str], mistakes: Mistakes) -> None:
    """Bring `monitor` to `min NAME`, `max NAME` or `off`."""
    spec, mode = trainer.get("monitor") or "off", trainer.pop("monitor_mode", None)
    if mode is not None:
        spec = "off" if mode == "off" else f"{mode} {spec.split()[-1]}"
        notes.append(f"trainer.monitor and monitor_mode are now monitor: {spec!r}")
    words = str(spec).split()
    if words != ["off"] and (len(words) != 2 or words[0] not in ("min", "max")):
        mistakes.add(("trainer", "monitor"), f"{spec!r}; write 'min val_loss', 'max val_accuracy' or 'off'")
    trainer["monitor"] = spec


def _check(config: Section, trainer: Section, mistakes: Mistakes) -> None:
    for name in ("arch", "data_loader", "optimizer"):
        section = config.get(name)
        if not (isinstance(section, dict) and isinstance(section.get("type"), str)):
            mistakes.add((name,), f'write {{"type": NAME, "args": {{...}}}}, found {section!r}')
        elif not isinstance(section.get("args", {}), dict):
            mistakes.add((name, "args"), f"arguments by name are needed, found {section['args']!r}")
        elif name == "data_loader" and "args" not in section:
            mistakes.add((name, "args"), "missing; the arguments of the loader stand there, not beside `type`")
    if not isinstance(config.get("name"), str):
        mistakes.add(("name",), f"a name of the experiment is needed, found {config.get('name')!r}")
    if not config.get("loss"):
        mistakes.add(("loss",), "name a function of model/loss.py")
    for key, least in (("epochs", 1), ("save_period", 1), ("n_gpu", 0)):
        path, holder = ((key,), config) if key == "n_gpu" else (("trainer", key), trainer)
        value = holder.get(key)
        is_right = isinstance(value, int) and not isinstance(value, bool) and value >= least
        if not is_right and (key == "epochs" or key in holder):
            what = f"a whole number above {least - 1}" if least else "a whole number of GPUs"
            mistakes.add(path, f"{what} is needed, found {value!r}{unquoted(value)}")
    if not isinstance(trainer.get("early_stop") or 0, int | float):
        mistakes.add(("trainer", "early_stop"), f"a number is needed, found {trainer['early_stop']!r}")
    if trainer.get("len_epoch"):
        mistakes.add(("trainer", "len_epoch"), "epochs of a fixed length are trainer.max_steps in the native form")


def patience(trainer: Mapping[str, Any]) -> int:
    """Return after how many evaluations without improvement to stop; 0 for never."""
    value = trainer.get("early_stop") or 0
    return int(value) if math.isfinite(value) and value > 0 else 0
