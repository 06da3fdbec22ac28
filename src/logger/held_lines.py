"""Lines that may come faster than anybody reads, as those of short epochs do."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

from src.logger.console import LINES, PlainFormatter

HELD_S = 0.1
"""A line is told at once if none was told for so long, and after this otherwise."""


class HeldLines(logging.Handler):
    """Tells lines to a log, each at its own time; those that come fast are made and written together.

    None is overtaken: as the first handler of the log, this one tells what it holds before any other line is.

    Args:
        log: Takes the lines.
    """

    def __init__(self, log: logging.Logger) -> None:
        super().__init__()
        self.lines: list[tuple[float, Callable[[], str]]] = []
        """Those that are held, and since when."""
        self._log, self._process = log, os.getpid()
        self._told_s = -math.inf
        logging.getLogger().handlers.insert(0, self)

    def tell(self, line: Callable[[], str]) -> None:
        """Tell what `line` will give."""
        self.lines.append((time.time(), line))
        self.tell_what_is_due()

    def tell_what_is_due(self) -> None:
        """Tell what was held for long enough."""
        if self.lines and time.monotonic() - self._told_s > HELD_S:
            self.flush()

    def emit(self, record: logging.LogRecord) -> None:
        """Let another line wait for those that are held."""
        del record
        self.flush()

    def flush(self) -> None:
        """Tell what is held; a worker that was forked has it from its parent, which tells it itself."""
        lines, self.lines = self.lines, []
        if not lines or os.getpid() != self._process:
            return
        made = [(at, line()) for at, line in lines]
        if all(handler is self or isinstance(handler.formatter, PlainFormatter) for handler in self._handlers()):
            text = "\n".join(line for _, line in made)
            self._log.handle(self._record(made[0][0], text, {LINES: made}))
        else:  # whose may take a record for a line
            for at, text in made:
                self._log.handle(self._record(at, text))
        self._told_s = time.monotonic()

    def _handlers(self) -> Iterator[logging.Handler]:
        log: logging.Logger | None = self._log
        while log is not None:
            yield from log.handlers
            log = log.parent if log.propagate else None

    def _record(self, at: float, text: str, extra: dict[str, Any] | None = None) -> logging.LogRecord:
        record = self._log.makeRecord(self._log.name, logging.INFO, __file__, 0, "%s", (text,), None, extra=extra)
        record.relativeCreated -= (record.created - at) * 1000
        record.created, record.msecs = at, at % 1 * 1000 // 1
        return record

    def close(self) -> None:
        """Tell what is held, and stand before the log no more."""
        self.flush()
        logging.getLogger().removeHandler(self)
        super().close()
