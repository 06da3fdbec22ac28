"""Kills a real run at random instants, resumes it with `-r auto` to its end, and compares it with one left alone.

    python -m tests.chaos --seed 7 --kills 25

Each start is a process of its own, forked from one that has imported everything, in a session of its own, with 0, 1 or
2 loader workers, saving in the background or not. Equal must be: all weights (averaged ones too), optimizer, random
streams, `metrics.csv` byte for byte, and every (folder, tag, step) of the event files, none twice. Prints one line as
JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tensorboard.util import tb_logging

import src.run.experiment
import src.trainer.rehearsal.rehearse  # noqa: F401  imported here once, so that no child has to
from src.utils.command import run_command
from train import main as train

CONFIG: dict[str, Any] = {
    "name": "chaos",
    "seed": 5,
    "data": {"type": "noisy.NoisyRows", "args": {"num_rows": 240}, "split": {"val": 0.2}},
    "loader": {"batch_size": 8},
    "model": {"type": "noisy.DropoutNet"},
    "loss": "CrossEntropyLoss",
    "metrics": ["accuracy", "f1"],
    "optimizer": {"type": "AdamW", "args": {"lr": 0.01}},
    "lr_scheduler": {"type": "OneCycleLR", "args": {"max_lr": 0.05}},
    "trainer": {"epochs": 3, "save_every_steps": 4, "log_every_steps": 3, "ema_decay": 0.9, "accumulate_steps": 2},
}
COMPONENTS = """
from tests import trainer_kit

class NoisyRows(trainer_kit.NoisyRows):
    pass

class DropoutNet(trainer_kit.DropoutNet):
    pass
"""
LIMIT_S = 60


def start(folder: Path, workers: int, in_background: bool = False) -> int:
    """Start `train.py -r auto` in a process of its own and return its id."""
    words = ["-c", folder / "chaos.yaml", "-r", "auto", f"trainer.save_dir={folder}", f"loader.num_workers={workers}"]
    words.append(f"trainer.save_in_background={str(in_background).lower()}")
    pid = os.fork()
    if pid:
        return pid
    sys.modules.pop("noisy", None)  # of another folder, if a test before this one trained there
    os.setsid()
    output = os.open(folder / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(output, 1)
    os.dup2(output, 2)
    torch.set_num_threads(1)
    code = 1
    try:
        code = run_command(lambda: train([str(word) for word in words]))
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def finish(pid: int, within_s: float) -> int | None:
    """Wait for a process; None when it still runs after that time."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    return None


def prepare(folder: Path) -> Path:
    folder.mkdir()
    (folder / "noisy.py").write_text(COMPONENTS)
    (folder / "chaos.yaml").write_text(yaml.safe_dump(CONFIG))
    return folder


def run_undisturbed(folder: Path) -> float:
    """Return the seconds that the run took."""
    started_s = time.monotonic()
    code = finish(start(folder, workers=0), LIMIT_S)
    if code != 0:
        raise SystemExit(f"the undisturbed run ended with {code}:\n{output_of(folder)}")
    return time.monotonic() - started_s


def run_with_kills(folder: Path, num_kills: int, length_s: float, draw: random.Random) -> int:
    """Kill and resume until the run has ended; return the number of kills, at most `num_kills`."""
    kills = 0
    while True:
        pid = start(folder, workers=draw.choice([0, 0, 1, 2]), in_background=draw.random() < 0.5)
        is_killed = kills < num_kills
        code = finish(pid, draw.uniform(0.02, length_s) if is_killed else LIMIT_S)
        if code is None and is_killed:
            os.kill(pid, signal.SIGKILL)  # its workers are left to find that out by themselves
            os.waitpid(pid, 0)
            kills += 1
        elif code == 0:
            return kills
        else:
            os.killpg(pid, signal.SIGKILL) if code is None else None
            raise SystemExit(f"{'hangs' if code is None else f'ended with {code}'}:\n{output_of(folder)[-3000:]}")


def output_of(folder: Path) -> str:
    return (folder / "output.txt").read_text()


def count_orphans(folder: Path) -> int:
    """Return how many processes still write to the output of the runs, after giving them time to end."""
    deadline = time.monotonic() + 12  # torch's workers look for their parent every five seconds
    while (found := sum(is_open(folder / "output.txt", process) for process in Path("/proc").glob("[0-9]*"))) and (
        time.monotonic() < deadline
    ):
        time.sleep(0.1)
    return found


def is_open(path: Path, process: Path) -> bool:
    try:
        return (process / "fd" / "1").readlink() == path
    except OSError:
        return False


def final_run(folder: Path) -> Path:
    """Return the run that came to its end; those killed before their first checkpoint stay behind it."""
    return max((folder / "chaos").iterdir(), key=lambda run: (run / "checkpoints" / "last.pt").exists())


def differences(first: Path, second: Path) -> list[str]:
    """Return what differs between two finished runs, of which the first went on to its end undisturbed.

    The second may have no speed of an epoch in which it was stopped after the last batch.
    """
    found = []
    for name in ("last.pt", "best.pt"):
        one, two = (torch.load(run / "checkpoints" / name, weights_only=True) for run in (first, second))
        for key in ("model", "ema", "optimizer", "lr_scheduler", "progress", "meters", "monitor", "rng"):
            found += [f"{name} {key}{path}" for path in unequal(one[key], two[key])]
    if (first / "metrics.csv").read_bytes() != (second / "metrics.csv").read_bytes():
        found.append("metrics.csv")
    one, two = event_points(first), event_points(second)
    lost = [point for point in (one - two).elements() if point[1] != "time/samples_per_s"]
    found += [f"events {point}" for point in (*lost, *(two - one).elements())]
    return found


def unequal(one: Any, two: Any, path: str = "") -> Iterator[str]:
    """Yield the places at which two nested states differ."""
    if type(one) is not type(two):
        yield path
    elif isinstance(one, dict):
        if one.keys() != two.keys():
            yield path
        for key in one.keys() & two.keys():
            yield from unequal(one[key], two[key], f"{path}.{key}")
    elif isinstance(one, (list, tuple)):
        for index, (left, right) in enumerate(zip(one, two, strict=True)):
            yield from unequal(left, right, f"{path}[{index}]")
    elif not (torch.equal(one, two) if isinstance(one, torch.Tensor) else one == two):
        yield path


def event_points(run: Path) -> Counter[tuple[str, str, int]]:
    """Return how often each (folder, tag, step) was logged."""
    points: Counter[tuple[str, str, int]] = Counter()
    for path in (run / "events").rglob("events.out.tfevents.*"):
        for event in LegacyEventFileLoader(str(path)).Load():
            for value in event.summary.value:
                points[path.parent.relative_to(run).as_posix(), value.tag, event.step] += 1
    return points


def chaos(folder: Path, seed: int, num_kills: int) -> dict[str, Any]:
    """Return what was done and what differs; nothing may."""
    tb_logging.get_logger().setLevel("ERROR")
    length_s = run_undisturbed(prepare(folder / "straight"))
    straight, draw = final_run(folder / "straight"), random.Random(seed)
    report: dict[str, Any] = {"seed": seed, "runs": 0, "kills": 0, "unreadable": 0, "litter": [], "differences": []}
    while report["kills"] < num_kills:
        killed_folder = prepare(folder / f"killed-{report['runs']}")
        report["kills"] += run_with_kills(killed_folder, num_kills - report["kills"], length_s, draw)
        report["runs"] += 1
        killed = final_run(killed_folder)
        report["unreadable"] += output_of(killed_folder).count("skipped a checkpoint")
        report["litter"] += [str(path) for path in killed.rglob("*tmp*")]
        report["differences"] += differences(straight, killed)
    orphans = sum(count_orphans(path) for path in folder.glob("killed-*"))
    return {**report, "orphans": orphans, "points": sum(event_points(straight).values())}


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--kills", type=int, default=25)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        report = chaos(Path(folder).resolve(), options.seed, options.kills)
    print(json.dumps(report))
    return 1 if report["differences"] or report["unreadable"] or report["orphans"] or report["litter"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
