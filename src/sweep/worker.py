"""What runs inside Ray for each trial: it starts the trial's own process, and passes on what that reports.

A process of its own makes the trial exactly the run that `train.py` would make: signals, threads and memory are its
own, and what kills it kills nothing else.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from ray import tune

from src.utils.paths import PROJECT_ROOT

MAX_RESTARTS = 2
"""A trial whose process was killed goes on from its checkpoint so often, and not more."""


class Worker(tune.Trainable):  # type: ignore[misc]
    """One trial; each step is one evaluation of it."""

    def setup(self, config: dict[str, Any], common: dict[str, Any] | None = None) -> None:
        """Start the trial's process.

        Args:
            config: `folder` and `values` of the trial.
            common: What all trials share: `config`, `metric`, `home`, `trusted`.
        """
        self.job = {**(common or {}), **config}
        self.last: dict[str, Any] = {}
        self.num_restarts = 0
        self._start()

    def _start(self) -> None:
        with (Path(self.job["folder"]) / "output.txt").open("ab") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "src.sweep.trial"],
                cwd=PROJECT_ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": str(self.job["config"]["trainer"]["threads"])},
            )
        self.is_waiting = False
        self._say(json.dumps(self.job))

    def _say(self, line: str) -> None:
        assert self.process.stdin is not None
        with suppress(OSError):  # it has ended; its exit code tells
            self.process.stdin.write(f"{line}\n")
            self.process.stdin.flush()

    def step(self) -> dict[str, Any]:
        """Let the run go on to its next evaluation, and return that; with `done` and `code` after the last."""
        assert self.process.stdout is not None
        while True:
            if self.is_waiting:
                self._say("go")
            line = self.process.stdout.readline()
            if line:
                self.is_waiting = True
                report = json.loads(line)
                if report["evaluations"] > self.last.get("evaluations", 0):
                    self.last = report
                    return dict(report)
                continue  # told again after a restart
            code = self.process.wait()
            if code >= 0 or self.num_restarts == MAX_RESTARTS:
                return {**self.last, "done": True, "code": code}
            self.num_restarts += 1
            self._start()

    def cleanup(self) -> None:
        """End the run, if it has not ended, and wait until all is saved: the scheduler has stopped it."""
        if self.is_waiting:
            self._say("prune")
        assert self.process.stdin is not None
        with suppress(OSError):
            self.process.stdin.close()
        self.process.wait()
