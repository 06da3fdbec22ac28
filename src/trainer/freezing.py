"""Which parameters rest: for the whole run, or in some of its epochs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from src.trainer.groups import matched
from src.trainer.settings import FreezeSettings
from src.utils.errors import ConfigError

MAX_EPOCHS_TRIED = 1000


class Freezing:
    """Takes parameters out of training and lets them in again.

    What is frozen for good is so at once, and gets into no optimizer; what rests for a while is in its optimizer all
    the time. A batch norm whose scale is frozen stays in evaluation mode, so that its statistics rest as well.
    What is frozen is a function of the epoch: there is nothing to save.

    Args:
        model: Whose parameters are meant.
        entries: Patterns of their names, with or without epochs.

    Raises:
        ConfigError: A pattern matches nothing; names near ones. Or an epoch would train nothing.
    """

    def __init__(self, model: nn.Module, entries: Sequence[str | FreezeSettings] = ()) -> None:
        self._entries = [FreezeSettings(entry) if isinstance(entry, str) else entry for entry in entries]
        for entry in self._entries:
            matched(model, entry.match, "parameters.freeze")
        for_good = [entry.match for entry in self._entries if entry.is_for_good]
        for name, parameter in model.named_parameters():
            if _any_matches(for_good, name):
                parameter.requires_grad_(False)
        patterns = [entry.match for entry in self._entries]
        named, modules = model.named_parameters(), model.named_modules()
        self._parameters = {name: each for name, each in named if each.requires_grad and _any_matches(patterns, name)}
        self._norms = {
            name: each
            for name, each in modules
            if isinstance(each, _BatchNorm) and _any_matches(patterns, f"{name}.weight")
        }
        self._handles: dict[str, RemovableHandle] = {}
        self._hold_norms(for_good)
        self._always_trained = sum(each.numel() for each in model.parameters() if each.requires_grad) - self._sum()
        self._check_epochs()

    def begin(self, epoch: int) -> None:
        """Freeze what rests in an epoch, counted from 0, and nothing else."""
        if not self._parameters and not self._norms:
            return
        patterns = self._patterns(epoch)
        for name, parameter in self._parameters.items():
            is_frozen = _any_matches(patterns, name)
            parameter.requires_grad_(not is_frozen)
            if is_frozen:
                parameter.grad = None  # an optimizer would apply what is left of the last epoch
        self._hold_norms(patterns)

    def phases(self, num_epochs: float) -> Iterator[tuple[int, list[str], int]]:
        """Yield (first epoch, patterns frozen from there on, parameters trained) for each change in `num_epochs`."""
        before: list[str] | None = None
        for epoch in range(int(min(num_epochs, self._cycle()))):
            patterns = self._patterns(epoch)
            if patterns != before:
                yield epoch, patterns, self._always_trained + self._sum(patterns)
            before = patterns

    def misfits(self, num_epochs: float) -> Iterator[str]:
        """Yield which entries never begin, or never end, in a run of so many epochs."""
        for index, entry in enumerate(self._entries):
            key, length = f"parameters.freeze.{index}", f"the run has {num_epochs:g} epochs"
            if entry.from_epoch >= num_epochs:
                yield f"{key}.from_epoch: is {entry.from_epoch} and {length}: {entry.match} is never frozen"
            elif entry.until_epoch is not None and entry.until_epoch >= num_epochs:
                again = " again" if entry.from_epoch else ""
                yield f"{key}.until_epoch: is {entry.until_epoch} and {length}: {entry.match} is never trained{again}"

    def resting(self, num_epochs: float) -> set[int]:
        """Return the `id` of each parameter that rests in all of so many epochs, though not for good."""
        patterns = [frozen for _, frozen, _ in self.phases(num_epochs)]
        named = self._parameters.items()
        return {id(each) for name, each in named if patterns and all(_any_matches(frozen, name) for frozen in patterns)}

    @property
    def has_phases(self) -> bool:
        """Whether it is not the same in all epochs."""
        return any(not entry.is_for_good for entry in self._entries)

    def _patterns(self, epoch: int) -> list[str]:
        return [entry.match for entry in self._entries if entry.holds(epoch)]

    def _sum(self, frozen: Sequence[str] = ()) -> int:
        return sum(each.numel() for name, each in self._parameters.items() if not _any_matches(frozen, name))

    def _hold_norms(self, patterns: Sequence[str]) -> None:
        for name, module in self._norms.items():
            if not _any_matches(patterns, f"{name}.weight"):
                if name in self._handles:
                    self._handles.pop(name).remove()
            elif name not in self._handles:
                self._handles[name] = module.register_forward_pre_hook(_stay)

    def _cycle(self) -> int:
        """Return epochs after which nothing new comes."""
        ends = [max(entry.from_epoch, entry.until_epoch or 0) for entry in self._entries]
        return min(max(ends, default=0) + math.lcm(*(entry.every or 1 for entry in self._entries)), MAX_EPOCHS_TRIED)

    def _check_epochs(self) -> None:
        if not self._entries:
            return
        for epoch, patterns, num_trained in self.phases(math.inf):
            if num_trained == 0:
                frozen = ", ".join(patterns)
                raise ConfigError(f"parameters.freeze: with {frozen} nothing is left to train in epoch {epoch + 1}")


def _any_matches(patterns: Sequence[str], name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _stay(module: nn.Module, inputs: Any) -> None:
    """Keep the statistics as they are, whatever `model.train()` says."""
    module.eval()
