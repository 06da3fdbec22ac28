"""Where the time of a run goes: shares for TensorBoard, and a line for the log that says what would help."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice, pairwise
from typing import Any

import torch

from src.data.loading.choose_workers import usable_cores
from src.data.loading.loader import Loader
from src.trainer.step import Step

SAMPLE_EVERY_STEPS = 31
"""Prime, so that what recurs every so many steps is met as often as it occurs."""
SAMPLE_EVERY_S = 0.05
"""And not before this has passed: a step of 70 us takes another 100 when it is measured."""
REPORT_EVERY_S = 5.0
MAX_STAMPS = 10_000
"""Kept until the device is waited for; steps are no longer sampled then."""
SHOWN_SHARE = 0.05
NAMES = {
    "data": "waiting for data",
    "copy": "copying to the device",
    "forward": "forward",
    "backward": "backward",
    "gradient": "forward and backward",
    "optimizer": "optimizer",
    "update": "the task's update",
    "metrics": "metrics",
    "hooks": "hooks, schedules and averages",
    "logging": "logging",
    "evaluation": "evaluation",
    "saving": "saving",
}
"""What time is spent on: the key of a share, and how the log calls it."""
OUTSIDE = ("logging", "evaluation", "saving")
ADVICE = {
    "data": (0.3, "raise loader.num_workers, or set it to auto"),
    "copy": (0.2, "send smaller types, such as uint8, and convert them in the model"),
    "metrics": (0.25, "use fewer metrics"),
    "hooks": (0.2, "do less in on_step_end of your hooks"),
    "logging": (0.1, "raise trainer.log_every_steps"),
    "evaluation": (0.5, "raise trainer.eval_every_epochs"),
    "saving": (0.15, "save less often: trainer.save_every_epochs, trainer.save_every_steps"),
}
"""From which share on something is worth a change, and which."""
log = logging.getLogger(__name__)


class Spending:
    """What is no part of an update: in `with account.logging:`, say, where the device may be waited for."""

    def __init__(self, account: Account, what: str) -> None:
        self.account, self.what = account, what

    def __enter__(self) -> None:
        account = self.account
        if account._is_sampling or account._is_cuda:
            account._open()
        self.began_s = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        account, what = self.account, self.what
        account._spent[what] = account._spent.get(what, 0.0) + time.perf_counter() - self.began_s
        if account._is_sampling:
            account._stamp("")


class Account:
    """Measures where time goes, at next to no cost.

    Waiting for data, logging, evaluation and saving are on the clock always; the parts of an update now and then. On
    CUDA, where the host runs ahead, events in the stream measure those steps, the wait for data among them, and are
    read when the host has waited for the device anyway. Shares differ from run to run, so they are in no checkpoint and
    not in `metrics.csv`.

    Args:
        step: Whose parts are measured.
        device: Where it computes.
        train_loader: For the advice.
    """

    def __init__(self, step: Step, device: torch.device, train_loader: Loader) -> None:
        self.step, self.device, self.train_loader = step, device, train_loader
        self._is_cuda = device.type == "cuda"
        self._num_steps = 0
        self._is_sampling, self._sampled_s = False, 0.0
        self._told: set[str] = set()
        self._parts: dict[str, float] = {}  # seconds of the parts of updates, in the newest samples there are
        self._whole: Counter[str] = Counter()  # seconds of the whole run
        self.logging, self.evaluation, self.saving = (Spending(self, name) for name in OUTSIDE)
        self._begin()

    def _begin(self) -> None:
        self._waited_s = 0.0  # for data, as the host sees it
        self._spent: dict[str, float] = {}  # seconds outside of updates
        self._stamps: list[tuple[str, Any]] = []  # of the updates that were sampled: what ended, and when
        self._began_s = time.perf_counter()

    def groups(self, batches: Iterable[Any], size: int) -> Iterator[tuple[Any, ...]]:
        """Yield the batches of one step at a time; on the way, measure the wait for them and, at times, the step."""
        clock, batches = time.perf_counter, iter(batches)
        while True:
            if self._num_steps % SAMPLE_EVERY_STEPS == 1:
                self._sample()
            began_s = clock()
            group = tuple(islice(batches, size))
            self._waited_s += clock() - began_s
            if not group:
                break
            self._num_steps += 1
            if not self._is_sampling:
                yield group
                continue
            self._stamp("data")
            try:
                yield group
            finally:
                self._end_sample("hooks")
        if self._is_sampling:
            self._end_sample("")

    def _sample(self) -> None:
        """Measure the parts of the step that comes.

        The account opens with the second step: what the first one compiles and allocates says nothing of the others.
        """
        now_s = time.perf_counter()
        if self._num_steps == 1:
            self._begin()
        elif now_s - self._sampled_s < SAMPLE_EVERY_S:
            return
        self._sampled_s = now_s
        self._is_sampling = len(self._stamps) < MAX_STAMPS
        if self._is_sampling:
            self._stamp("")
            self.step.watch(self._stamp)

    def _end_sample(self, ended: str) -> None:
        self._stamp(ended)
        self._is_sampling = False
        self.step.watch(None)

    def _stamp(self, ended: str) -> None:
        """Note that what is called so ends now, and began at the stamp before; without a name it does not count."""
        now: Any = _event() if self._is_cuda else time.perf_counter()
        self._stamps.append((ended, now))

    def _open(self) -> None:
        if self._is_sampling:
            self._stamp("hooks")
        if self._is_cuda:
            torch.cuda.synchronize(self.device)  # device sync: what is queued belongs to steps

    def report(self) -> dict[str, float]:
        """Return shares of the seconds since the last report, `time/share/forward` and so on; empty if it is too early.

        Tells the log, too. To be called after the host has waited for the device.
        """
        total_s = time.perf_counter() - self._began_s
        if total_s < REPORT_EVERY_S or self._is_sampling:
            return {}
        self._parts = self._sampled_parts() or self._parts
        if not self._parts:
            return {}
        seconds = self._seconds(total_s)
        self._whole.update(seconds)
        self._tell()
        self._begin()
        return {f"time/share/{name}": seconds[name] / total_s for name in NAMES if name in seconds}

    def _sampled_parts(self) -> dict[str, float]:
        parts: Counter[str] = Counter()
        for (_, began), (name, ended) in pairwise(self._stamps):
            if name and (name != "data" or self._is_cuda):  # the host's own waits are known, all of them
                parts[name] += began.elapsed_time(ended) / 1e3 if self._is_cuda else ended - began
        return dict(parts)

    def _seconds(self, total_s: float) -> dict[str, float]:
        spent = self._spent if self._is_cuda else {**self._spent, "data": self._waited_s}
        updates = max(0.0, total_s - sum(spent.values())) / (sum(self._parts.values()) or 1.0)
        return {name: updates * part_s for name, part_s in self._parts.items()} | spent

    def _tell(self) -> None:
        """Write a line on the run so far, the first time and whenever there is an advice not given before."""
        total_s = sum(self._whole.values())
        shares = {name: seconds / total_s for name, seconds in self._whole.items()}
        problem, line = verdict(shares, self.train_loader.num_workers)
        if problem not in self._told and (problem or not self._told):
            self._told.add(problem)
            log.info("time   %s", line)


def _event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def verdict(shares: Mapping[str, float], num_workers: int = 0) -> tuple[str, str]:
    """Return what takes more time than it should, empty if nothing does, and a line on where time went.

    Args:
        shares: Of the whole time, by the keys of `NAMES`.
        num_workers: Of the loader.
    """
    too_large = [name for name, (limit, _) in ADVICE.items() if shares.get(name, 0.0) >= limit]
    problem = max(too_large, key=lambda name: shares[name], default="")
    falling = sorted(shares, key=lambda name: shares[name], reverse=True)
    words = {name: f"{100 * shares[name]:.0f} % {NAMES[name]}" for name in falling if shares[name] >= SHOWN_SHARE}
    if not problem:
        return "", ", ".join(words.values())
    advice = ADVICE[problem][1]
    if problem == "data" and num_workers >= max(1, usable_cores() - 1):  # one core is the trainer's
        slow = "1 worker does not" if num_workers == 1 else f"{num_workers} workers do not"
        advice = f"{slow} keep up: make reading a row cheaper, or read whole batches (read_batch)"
    first = words.pop(problem)
    return problem, f"{first}: {advice}" + (f" ({', '.join(words.values())})" if words else "")
