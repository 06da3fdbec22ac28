"""Starting a model from weights that are there already, and saying which of them were taken."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from fnmatch import fnmatchcase

from torch import Tensor, nn

from src.trainer.checkpoints.resume import strip_prefixes
from src.trainer.checkpoints.weight_file import read_weights
from src.trainer.parallel.hollow import is_hollow
from src.trainer.settings import InitFrom
from src.utils.errors import CheckpointError
from src.utils.paths import project_path, shown_path

log = logging.getLogger(__name__)


def init_weights(model: nn.Module, given: str | InitFrom) -> None:
    """Start `model` from the weights of a run, checkpoint or file of weights, taking nothing else from it.

    A model without values will get those of rank 0, which does the same.

    Args:
        model: Gets the weights.
        given: A path, or which weights of it to take.

    Raises:
        CheckpointError: There is no such checkpoint, nothing of it fits, or with `strict` something does not.
    """
    if is_hollow(model):
        return
    settings = InitFrom(given) if isinstance(given, str) else given
    path = project_path(settings.path)
    try:
        weights = read_weights(path)
    except CheckpointError as error:
        raise CheckpointError(f"trainer.init_from: {error}") from error
    take_weights(model, weights, settings, f"init_from {shown_path(path)}")


def take_weights(model: nn.Module, weights: Mapping[str, Tensor], settings: InitFrom, where: str) -> None:
    """Copy what `settings` choose of `weights` into `model`, and log what was taken and what was not."""
    renamed = {_renamed(strip_prefixes(name), settings.rename): value for name, value in weights.items()}
    given = {name: value for name, value in renamed.items() if _is_chosen(name, settings)}
    own = {name: value for name, value in model.state_dict().items() if _is_chosen(name, settings)}
    matched = {name: value for name, value in given.items() if name in own and own[name].shape == value.shape}
    rest = {
        "missing there": [name for name in own if name not in given],
        "unexpected here": [name for name in given if name not in own],
        "of another shape": [
            f"{name} {list(given[name].shape)} there, {list(value.shape)} here"
            for name, value in own.items()
            if name in given and name not in matched
        ],
    }
    table = [f"{len(names)} {what}: {_listed(names)}" for what, names in rest.items() if names]
    if not matched or (settings.strict and table):
        reason = "; ".join(table) or "no name is chosen by include and exclude"
        hint = "fix `rename`, `include`, `exclude`" + (", or set `strict: false`" if matched else "")
        raise CheckpointError(f"{where}: {len(matched)} weights match, {reason}. Nothing was loaded; {hint}")
    model.load_state_dict(matched, strict=False)
    log.info("%s: %d weights taken", where, len(matched))
    for line in table:
        log.warning("%s: %s", where, line)


def _renamed(name: str, rename: Mapping[str, str]) -> str:
    """Return a name with the first prefix that matches replaced."""
    old = next((old for old in rename if name.startswith(old)), None)
    return name if old is None else rename[old] + name.removeprefix(old)


def _is_chosen(name: str, settings: InitFrom) -> bool:
    is_included = not settings.include or any(fnmatchcase(name, pattern) for pattern in settings.include)
    return is_included and not any(fnmatchcase(name, pattern) for pattern in settings.exclude)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
