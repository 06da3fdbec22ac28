"""The process of one trial: `python -m src.sweep.trial`. Its job comes as a line of JSON on standard input.

After every evaluation it writes a line of JSON to standard output and waits for an answer: `go`, or `prune`. When
nobody answers any more, the sweep is gone, and the run stops as on SIGTERM. What the run itself prints goes to
standard error, which lies in the trial's `output.txt`.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from src.config.load import config_from_dict, varied
from src.config.registry import trust, use_folder
from src.logger.console import setup_console
from src.sweep.record import measured
from src.sweep.train_in import train_in
from src.trainer.hooks import Hook
from src.utils.command import run_command
from src.utils.paths import shown_path

if TYPE_CHECKING:
    from src.trainer.trainer import Trainer

PR_SET_PDEATHSIG = 1


class Reports(Hook):
    """Tells the sweep every evaluation, those before a resume first, and ends the run when it is pruned.

    Args:
        metric: What is compared.
        run: Folder of the run.
        output: Where reports go.
        answers: Where answers come from.
    """

    def __init__(self, metric: str, run: Path, output: TextIO, answers: TextIO) -> None:
        self.metric, self.run, self.output, self.answers = metric, run, output, answers
        self.num_reported = 0
        self.is_over = False

    def on_fit_start(self, trainer: Trainer) -> None:
        if trainer.progress.step > 0:
            for _, value in measured(self.run, self.metric):
                self._report(trainer, value)

    def on_log(self, trainer: Trainer, values: Mapping[str, float], epoch: int | None = None) -> None:
        if epoch is not None and self.metric in values:
            trainer.logger.flush()  # what the sweep reads in `metrics.csv` is what it was told
            self._report(trainer, values[self.metric])

    def _report(self, trainer: Trainer, value: float) -> None:
        if self.is_over:
            return
        self.num_reported += 1
        try:
            print(json.dumps({"value": value, "evaluations": self.num_reported}), file=self.output, flush=True)
            answer = self.answers.readline().strip()
        except OSError:
            answer = ""
        if answer == "prune":
            trainer.stop(f"pruned after {self.num_reported} evaluations; other trials were better by then")
        elif not answer:
            os.kill(os.getpid(), signal.SIGTERM)
        self.is_over = answer != "go"


def main() -> int:
    """Make the run of one trial and return its exit code."""
    end_with_parent()
    output = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    setup_console()
    job: dict[str, Any] = json.loads(sys.stdin.readline())
    use_folder(Path(job["home"]))
    trust(job["trusted"])
    path = Path(job["folder"])
    config = varied(config_from_dict(job["config"], origin="sweep"), job["values"], path.name)
    command = ["train.py", "-c", shown_path(path / "config.yaml")]
    reports = Reports(job["metric"], path, output, sys.stdin)
    return train_in(path, config, command, watchers=[reports])


def end_with_parent() -> None:
    """Be sent SIGTERM when the process that started this one dies, however it dies. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(run_command(main))
