"""Starting the processes of one run on this machine, through torch's elastic launcher."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path

from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from src.utils.errors import WorkerError
from src.utils.paths import has_checkpoint, shown_path
from src.utils.processes.notes import HEARD

STOPPED = (128 + int(signal.SIGINT), 128 + int(signal.SIGTERM))
"""Exit codes of runs that were asked to stop, and need no reason."""
STOP_S = 120
"""How long the processes may take to save after a signal, before they are killed."""


def launch(command: Sequence[str], num_processes: int, max_restarts: int) -> int:
    """Run `command` in so many processes that know each other as ranks, and return the exit code of the run.

    Args:
        command: Program and arguments.
        num_processes: On this machine; there are no others.
        max_restarts: How often all are started again after one has died.

    Raises:
        WorkerError: A process died without a word of its own.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // num_processes)))
    for name in ("torch.distributed.elastic", "torch.distributed.launcher"):
        _silence(name)  # the rank that failed speaks for itself
    with tempfile.TemporaryDirectory(prefix="keel-ranks-") as folder:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=num_processes,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",
            local_addr="127.0.0.1",
            max_restarts=max_restarts,
            monitor_interval=0.1,
            signals_to_handle="SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1",
            shutdown_timeout=STOP_S,
            logs_specs=DefaultLogsSpecs(log_dir=folder),
        )
        try:
            elastic_launch(config, command[0])(*command[1:])
        except SignalException as error:
            return STOPPED[0 if error.sigval == signal.SIGINT else 1]
        except ChildFailedError as error:
            return _exit_code(error, Path(folder))
    return 0


def _exit_code(error: ChildFailedError, folder: Path) -> int:
    """Return the exit code of the rank that failed first and told why.

    Args:
        error: What the launcher saw.
        folder: Where ranks leave notes.

    Raises:
        WorkerError: One was killed, or ended without a word; the agent's own SIGTERM, which ends the others, does not
            count.
    """
    failures = sorted(error.failures.items(), key=lambda failure: failure[1].timestamp)
    attempts = sorted(folder.rglob("attempt_*"), key=lambda each: int(each.name.removeprefix("attempt_")))
    silent = {each.parent.name for last in attempts[-1:] for each in last.rglob(HEARD)}
    failures = [each for each in failures if str(each[1].local_rank) not in silent] or failures
    codes = [failure.exitcode for _, failure in failures if failure.exitcode > 0]
    for rank, failure in failures:
        if failure.exitcode < 0 and -failure.exitcode != signal.SIGTERM:
            hint = "; often memory ran out: use a smaller loader.batch_size" if failure.exitcode == -9 else ""
            raise WorkerError(f"rank {rank} was killed by {failure.signal_name()}{hint}{_whereabouts(rank, folder)}")
        if failure.exitcode > 0 and failure.exitcode not in STOPPED and not Path(failure.error_file).is_file():
            told = f"rank {rank} ended with exit code {failure.exitcode} and told no reason"
            raise WorkerError(f"{told}{_whereabouts(rank, folder)}")
    return codes[0] if codes else STOPPED[1]


def _whereabouts(rank: int, folder: Path) -> str:
    """Return where to read on, and how to go on."""
    notes = [Path(each.read_text(encoding="utf-8")) for each in folder.rglob("run")]
    if not notes:
        return ""
    log = notes[-1] / (f"rank{rank}.log" if rank else "log.txt")
    logged = f"its log is {shown_path(log)}" if log.is_file() else "it has logged nothing"
    return f"; {logged}" + (f". Go on with -r {shown_path(notes[-1])}" if has_checkpoint(notes[-1]) else "")


def _silence(name: str) -> None:
    for module in [each for each in sys.modules if each.startswith(name)]:
        logging.getLogger(module).setLevel(logging.CRITICAL + 1)
