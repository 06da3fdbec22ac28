"""A run that goes on with another config: which differences mean nothing, which are applied, which are refused."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from src.config.load import config_from_dict
from src.config.mistakes import KeyPath, dotted, found, printable
from src.config.settings import Config
from src.utils.errors import CheckpointError, ConfigError
from src.utils.secrets import masked

HARMLESS = (
    r"name|tune\b.*|logger\b.*|trainer\.(save_dir|device|keep|max_failed_saves|save_(every_\w+|in_background)|log_every_steps|init_from\b.*)"
    r"|loader\.(.*\.)?(num_workers|pin_memory|keep_on_device|timeout|prefetch_factor|persistent_workers|multiprocessing_context)"
    r"|data\..*args\.(\w+_)?(file|files|folder|path|root|dir)"
)
"""Keys that change nothing in what is trained: paths, logging, how fast batches are read."""

REFUSED = {
    r"model\b.*": "the weights are of another model",
    r"data(?!.*\btransforms\b)\b.*": "the run would go on with other rows",
    r"seed": "the order of the rows and all that is random would be another",
    r"loader\.(val|test)\w*\..*": "",
    r"loader\.(.*\.)?(batch_size|shuffle|drop_last|(batch_)?sampler\b.*)": "the epoch was begun with other batches",
    r"lr_scheduler\.(args\.(total_steps|T_max|total_iters|epochs)|warmup_steps|monitor)": "",
    r"(optimizer|lr_scheduler|parameters)\b.*": "the checkpoint holds the rates and moments of the old one",
    r"(loss|task)\b.*": "another quantity would be minimised, and old and new values would be compared",
    r"trainer\.ema_decay": "the checkpoint was made with other averages",
}
"""Patterns of keys that a run cannot change as it goes on, and why; first match wins, empty means it can."""

OF_ANOTHER_KIND = r"(optimizer|lr_scheduler)((\.\w+)?\.type)?"
"""Keys that say which optimizers and schedules there are."""


@dataclass(frozen=True)
class Change:
    """One key that differs."""

    path: KeyPath
    old: Any
    new: Any

    @property
    def is_harmless(self) -> bool:
        """Whether the same weights come out."""
        return re.fullmatch(HARMLESS, dotted(self.path)) is not None

    @property
    def is_of_another_kind(self) -> bool:
        """Whether what is in the checkpoint is the memory of something else, so that nobody can go on with it."""
        return re.fullmatch(OF_ANOTHER_KIND, dotted(self.path)) is not None

    @property
    def objection(self) -> str:
        """Why this key cannot change; empty when it can."""
        if self.is_harmless:
            return ""
        return next((why for pattern, why in REFUSED.items() if re.fullmatch(pattern, dotted(self.path))), "")

    def __str__(self) -> str:
        return f"{printable(dotted(self.path))}: {_shown(self.old)} -> {_shown(self.new)}"


def changes(before: Config, after: Config) -> list[Change]:
    """Returns what differs between two configs."""
    return list(differences(masked(before.as_dict()), masked(after.as_dict()), ()))


def check_changes(saved: Mapping[str, Any], config: Config, allowed: Sequence[str], where: str) -> list[str]:
    """Returns a table of what differs from the run that goes on: harmless changes are left out of it.

    Args:
        saved: The config in the checkpoint.
        config: The one to go on with.
        allowed: Keys, or sections, whose change is wanted all the same (`--allow-change`).
        where: What messages call the run.

    Raises:
        CheckpointError: Names every key that cannot change.
    """
    try:
        before = config_from_dict(saved, origin=f"{where}, the config in its checkpoint:")
    except ConfigError as error:
        raise CheckpointError(str(error)) from error
    found_changes = changes(before, config)
    refused = [each for each in found_changes if each.objection and not _is_allowed(each, allowed)]
    if refused:
        raise CheckpointError(_refusal(refused, where))
    told = [each for each in found_changes if not each.is_harmless]
    width = max((len(dotted(each.path)) for each in told), default=0)
    return [f"{dotted(each.path):<{width}}  {_shown(each.old)} -> {_shown(each.new)}" for each in told]


def _refusal(refused: Sequence[Change], where: str) -> str:
    """Returns at most three lines that name every key: two changes in full, or one and the keys of the others."""
    first, *others = (f"{where}: {each}: {each.objection}" for each in refused[:2])
    if len(refused) > 2:
        others = [f"{len(refused) - 1} more: {', '.join(printable(dotted(each.path)) for each in refused[1:])}"]
    keys = (_shortest(each, refused) for each in refused)
    allow = " ".join(f"--allow-change {key}" for key in dict.fromkeys(keys))
    way_out = "To start a new run from its weights use trainer.init_from"
    if not any(each.is_of_another_kind for each in refused):
        way_out += f"; to go on all the same, {allow}"
    return "\n".join([first, *others, way_out])


def _shortest(change: Change, refused: Sequence[Change]) -> str:
    """Returns the section of a change where several of it are refused, else its key."""
    section = str(change.path[0])
    return section if sum(each.path[0] == section for each in refused) > 1 else dotted(change.path)


def _is_allowed(change: Change, allowed: Sequence[str]) -> bool:
    return any(dotted(change.path) == key or dotted(change.path).startswith(f"{key}.") for key in allowed)


def differences(old: Any, new: Any, path: KeyPath) -> Iterator[Change]:
    """Yields what differs between two configs as plain data, below a key path."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in dict.fromkeys([*old, *new]):
            yield from differences(old.get(key), new.get(key), (*path, key))
    elif old != new and not (old != old and new != new):  # nan is nan here
        yield Change(path, old, new)


def _shown(value: Any) -> str:
    return found(value) if isinstance(value, str | bool | None) else printable(str(value))[:60]
