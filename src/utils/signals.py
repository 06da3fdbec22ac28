"""Stopping a program in good order when it is asked to."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType
from typing import Any

SECOND_PRESS_S = 5.0
"""A second Ctrl-C within this time leaves at once."""


class StopSignals:
    """Within the `with` block, SIGINT and SIGTERM only set `received`; the loop stops where it is safe.

    A second SIGINT within 5 s raises `KeyboardInterrupt` at once. Processes forked inside the block (loader workers)
    ignore the signals: their parent ends them.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._received_at = 0.0
        self._pid = os.getpid()
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._receive)
        except ValueError:  # not in the main thread, where Python allows no handlers
            pass
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            return
        is_second = number == signal.SIGINT == self.received and time.monotonic() - self._received_at < SECOND_PRESS_S
        self.received, self._received_at = number, time.monotonic()
        if is_second:
            raise KeyboardInterrupt
