"""One aligned line per evaluation."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

from src.logger.console import number, shown

MAX_WIDTH = 200
"""Of a line in a file."""
BEST = "   * best"
TOGETHER = 3
"""How often something is left out before numbers move together."""

_SHOULD_FALL = re.compile(r"loss|error|mae|mse|perplexity|deviance", re.IGNORECASE)
_SHOULD_RISE = re.compile(r"acc|precision|recall|f1|auc|r2|score|iou|dice|bleu|psnr|corr", re.IGNORECASE)


class EpochLines:
    """Makes one aligned line per evaluation. A sign behind each number compares it with the line before.

    A filled triangle is better and a hollow one worse; it points where the number went. A plain arrow stands where
    nobody said which way is better: losses and errors should fall, accuracies and scores rise.

    A line that is wider than the terminal leaves the numbers of training out, but for its loss; if need be, all but
    that and those of the val parts; then numbers move together, and the last of them go, but not the one that is
    watched. What is left out once stays so, for the lines to be alike.

    Args:
        epochs: How many there will be, if that is known.
        monitor: As in the settings: `max val/reward` says that more of it is better.
    """

    def __init__(self, epochs: int | None = None, monitor: str | None = None) -> None:
        self._epochs = epochs
        self._mode, _, self._monitored = (monitor or "").partition(" ")
        self._before: dict[str, float] = {}
        self._left_out = 0
        self._layouts: dict[tuple[int, tuple[str, ...]], list[tuple[str, str, bool]]] = {}
        is_terminal = sys.stdout is not None and sys.stdout.isatty()
        self._width = shutil.get_terminal_size().columns if is_terminal else MAX_WIDTH

    def line(self, values: Mapping[str, float], step: int, epoch: int | None = None, is_best: bool = False) -> str:
        """The line of an evaluation.

        Args:
            values: What the logger is given: `train/loss`, `val/accuracy`, `lr`, `time/samples_per_s`, ...
            step: Optimizer updates finished.
            epoch: Epochs finished; None when the numbers don't stand for whole epochs.
            is_best: Mark the line with `* best`.
        """
        place = f"step {step:>7}"
        if epoch is not None:
            place = f"epoch {epoch:>{len(str(self._epochs or 999))}}" + (f"/{self._epochs}" if self._epochs else "")
        text = place + self._numbers(values)
        while len(text) + len(BEST) > self._width and self._left_out < _most_left_out(values):
            self._left_out += 1
            text = place + self._numbers(values)
        self._before = dict(values)
        return text + (BEST if is_best else "")

    def _numbers(self, values: Mapping[str, float]) -> str:
        names = tuple(values)
        layout = self._layouts.get((self._left_out, names))
        if layout is None:
            layout = self._layouts[self._left_out, names] = list(self._layout(names))
        width = 9 if self._left_out < TOGETHER else 6
        words = []
        for name, head, is_compared in layout:
            value = values[name]
            words.append(
                f"{head} {number(value):<{width}}{self._sign(name, value)}"
                if is_compared
                else f"  {shown(head, value)}"
            )
        return "".join(words).rstrip()

    def _layout(self, names: Sequence[str]) -> Iterator[tuple[str, str, bool]]:
        """Yield the names that are shown, with what stands before the number, and whether it is compared."""
        gap = "  " if self._left_out < TOGETHER else " "
        part_before = ""
        for name in self._kept(names):
            part, _, rest = name.partition("/")
            if not rest or part in ("time", "step", "lr"):
                yield name, name.removeprefix("time/").removeprefix("step/"), False
                continue
            yield name, f"  {part + gap if part != part_before else ''}{rest}", True
            part_before = part

    def _kept(self, names: Sequence[str]) -> list[str]:
        """Return the names of what is shown, as much as has been left out."""
        kept = list(names)
        if self._left_out:
            kept = [name for name in kept if name == "train/loss" or name.partition("/")[0] != "train"]
        if self._left_out > 1:
            kept = [name for name in kept if name == "train/loss" or name[:3] == "val"]
        may_go = [name for name in kept if name not in ("train/loss", self._monitored)]
        gone = may_go[len(may_go) - max(0, self._left_out - TOGETHER) :]
        return [name for name in kept if name not in gone]

    def _sign(self, name: str, value: float) -> str:
        before = self._before.get(name)
        if before is None or value == before or value != value or before != before:
            return " "
        has_risen = value > before
        should_rise = self._mode == "max" if name == self._monitored else _should_rise(name)
        if should_rise is None:
            return "↑" if has_risen else "↓"
        return ("▲" if has_risen else "▼") if has_risen == should_rise else ("△" if has_risen else "▽")


@lru_cache(maxsize=1024)
def _should_rise(name: str) -> bool | None:
    """Say which way is better for a value of this name; None where nobody said."""
    return False if _SHOULD_FALL.search(name) else True if _SHOULD_RISE.search(name) else None


def _most_left_out(values: Mapping[str, float]) -> int:
    """How often something may be left out: one number after the other goes only from lines with val parts."""
    num_val = sum(name[:3] == "val" for name in values)
    return TOGETHER + num_val if num_val else 0
