"""What people read while a model trains: lines on the console and in `log.txt`, and one progress bar."""

from __future__ import annotations

import copy
import logging
import os
import re
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, TextIO

from tqdm import tqdm

from src.utils.paths import shown_path
from src.utils.secrets import masked_text

LOG = logging.getLogger("src")
"""Parent of the loggers of all rooms; entry scripts write to it."""

LINES = "lines_with_times"
"""What a record has that holds several lines: each with its time, in seconds since 1970."""

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class PlainFormatter(logging.Formatter):
    """Shows control characters as text, so that no name can move the cursor or pretend to be another line."""

    is_timed = False
    """Whether a line begins with the seconds since the program did."""

    _stamp = (0, "")  # the second of the newest line, as a number and in words

    def format(self, record: logging.LogRecord) -> str:
        together, record = getattr(record, LINES, None), copy.copy(record)
        if together is None:
            texts = [self._led(record, super().format(record))]
        else:
            texts = [self._line_at(record, *each) for each in together]
        return _CONTROL.sub(lambda sign: repr(sign.group())[1:-1], masked_text("\n".join(texts)))

    def _line_at(self, record: logging.LogRecord, at: float, text: str) -> str:
        record.relativeCreated += (at - record.created) * 1000
        record.created, record.msecs, record.message = at, at % 1 * 1000 // 1, text
        if self.usesTime():
            record.asctime = self.formatTime(record)
        return self._led(record, self.formatMessage(record))

    def _led(self, record: logging.LogRecord, text: str) -> str:
        if record.levelno >= logging.WARNING and self._fmt == "%(message)s":
            text = f"{record.levelname.lower()}: {text}"
        if self.is_timed:
            text = f"{record.relativeCreated / 1000:6.2f} s  {text}"
        return text.replace("\n", "\n  ")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802
        """Return what `logging` does without a format of dates; the words for a second are made once."""
        del datefmt
        second = int(record.created)
        if second != self._stamp[0]:
            self._stamp = second, time.strftime(self.default_time_format, self.converter(second))
        return f"{self._stamp[1]},{record.msecs:03.0f}"


class ConsoleHandler(logging.Handler):
    """Prints lines above the progress bar. When nobody reads them any more (`| head`), it falls silent.

    Args:
        level: The lowest that is printed.
        where: `stdout` or `stderr`.
    """

    def __init__(self, level: int, where: Literal["stdout", "stderr"]) -> None:
        super().__init__(level)
        self._where = where

    def emit(self, record: logging.LogRecord) -> None:
        """Print the record to what `sys.stdout` or `sys.stderr` is now."""
        stream = getattr(sys, self._where)
        if stream is None:
            return
        try:
            with bar_aside():
                stream.write(self.format(record) + "\n")
                stream.flush()
        except (OSError, ValueError):  # a closed pipe; a closed file
            self.setLevel(logging.CRITICAL + 1)
            _silence(stream)


@contextmanager
def bar_aside() -> Iterator[None]:
    """Let lines be printed where the bar is. Drawing it anew takes longer than a line."""
    with tqdm.external_write_mode(file=sys.stdout):
        yield


def _silence(stream: TextIO) -> None:
    """Lead a broken stream to nowhere, so that neither later prints nor the interpreter's last flush fail on it."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def setup_console(
    quiet: bool = False, verbose: bool = False, where: Literal["stdout", "stderr"] = "stdout", is_timed: bool = True
) -> None:
    """Send the log to standard output. Call it once, at the start of an entry script.

    Args:
        quiet: Warnings and errors only; `log.txt` still gets everything.
        verbose: Debugging lines too: what was built, on which device, how the data are read.
        where: `stderr` where standard output is for results.
        is_timed: Whether lines of `verbose` say when they were written.
    """
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")  # an ASCII terminal shows arrows as \u2193 instead of failing
    root = logging.getLogger()
    _remove_handlers(ConsoleHandler, RunFileHandler)
    console = ConsoleHandler(logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO, where)
    console.setFormatter(lines := PlainFormatter("%(message)s"))
    lines.is_timed = verbose and is_timed
    root.addHandler(console)
    LOG.setLevel(logging.DEBUG if verbose else logging.INFO)
    logging.captureWarnings(True)


def is_quiet() -> bool:
    """Whether the console shows warnings and errors only."""
    handlers = [handler for handler in logging.getLogger().handlers if isinstance(handler, ConsoleHandler)]
    return bool(handlers) and all(handler.level > logging.INFO for handler in handlers)


def say(text: str) -> None:
    """Print a line of a result, unless only warnings and errors are asked for."""
    if not is_quiet():
        print(text)


def setup_silence(path: Path) -> None:
    """Print nothing from now on, as only one of several processes should; keep warnings and errors in a file.

    Args:
        path: Is made when there is something to keep.
    """
    sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  as long as this process lives
    handler = RunFileHandler(path, encoding="utf-8", delay=True)
    handler.setLevel(logging.WARNING)
    handler.setFormatter(PlainFormatter("%(asctime)s %(levelname)-7s %(message)s"))
    logging.getLogger().addHandler(handler)
    logging.captureWarnings(True)


class RunFileHandler(logging.FileHandler):
    """Appends to `log.txt`; a full disk ends the file, not the training."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Fall silent instead of printing a traceback for every line."""
        del record
        self.setLevel(logging.CRITICAL + 1)


def _remove_handlers(*kinds: type[logging.Handler]) -> None:
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, kinds)]:
        root.removeHandler(handler)
        handler.close()


def log_to_file(path: Path | None) -> None:
    """Keep all further lines of the log in this file too, with time and level, and in none of a run before.

    None ends the file of the last run.
    """
    _remove_handlers(RunFileHandler)
    if path is None:
        return
    handler = RunFileHandler(path, encoding="utf-8")
    handler.setFormatter(PlainFormatter("%(asctime)s %(levelname)-7s %(message)s"))
    logging.getLogger().addHandler(handler)


def progress_bar(total_steps: int | None, done_steps: int = 0, enabled: bool = True) -> tqdm[Any]:
    """One bar for the whole run: steps, time left, steps per second, and what `bar_text` says.

    It is invisible unless standard error is a terminal; `bar.update(1)` then costs 0.1 microseconds.

    Example:
        `bar.set_postfix_str(bar_text({"loss": 0.31, "lr": 1e-3, "samples_per_s": 5210}), refresh=False)`
    """
    is_terminal = sys.stderr is not None and sys.stderr.isatty() and not is_quiet()
    return tqdm(
        total=total_steps,
        initial=done_steps,
        disable=not (enabled and is_terminal),
        leave=False,
        dynamic_ncols=True,
        unit="step",
        mininterval=0.2,
    )


def bar_text(values: Mapping[str, float]) -> str:
    """`loss 0.3121  lr 1e-03  5,210/s` of values by name, whatever part they are of."""
    return "  ".join(shown(name.rsplit("/", 1)[-1], value) for name, value in values.items())


def shown(name: str, value: float) -> str:
    """Return a value behind its name, or with its unit: `5,210/s`."""
    if name.endswith("_per_s"):
        return f"{value:,.0f}/s"
    if name.endswith("_s"):
        return f"{name[:-2]} {value:.1f} s"
    if name == "lr" or name.startswith("lr/"):
        return f"{name} {value:.1e}"
    return f"{name} {number(value)}"


def number(value: float) -> str:
    """Four digits that count: `0.01230`, `12.35`, `1.235e+06`."""
    return f"{value:#.4g}".rstrip(".")


def closing_summary(
    run_path: Path,
    *,
    seconds: float,
    best: Mapping[str, float] | None = None,
    best_at: str = "",
    commands: Sequence[str] = (),
    has_ended: bool = True,
) -> str:
    """The last lines of a run: how long it took, what was best and where it is, and what to type next.

    Args:
        run_path: The run's folder.
        seconds: Time the run took.
        best: Monitored value by name, e.g. `{"val/loss": 0.12}`.
        best_at: When it was measured: `epoch 7` or `step 130`.
        commands: What to type next, ready for a shell.
        has_ended: Whether nothing of it is left to do.
    """
    run = shlex.quote(shown_path(run_path))
    lines = [f"{'done in' if has_ended else 'stopped after'} {duration(seconds)}"]
    if best:
        named = ", ".join(f"{name} {number(value)}" for name, value in best.items())
        when = f" after {best_at}" if best_at else ""
        lines.append(f"best:  {named}{when}, in {run}/checkpoints")
    else:
        lines.append(f"saved: {run}")
    heads = ["next:  ", *["       "] * len(commands)]
    lines += [head + command for head, command in zip(heads, commands, strict=False)]
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """`4.2 s`, `3 min 07 s`, `2 h 05 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
