"""Whatever is changed in the tree of a checkpoint: a run goes on, or ends with a message and its code."""

from __future__ import annotations

import copy
import logging
import random
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
import yaml

from src.config.registry import use_folder
from src.logger.console import log_to_file
from src.trainer.checkpoints.store import CheckpointStore, load_checkpoint
from src.utils.command import run_command
from tests.chaos import COMPONENTS, CONFIG
from train import main

LIMIT_S = 60
CODES = (0, 4, 6)
"""It went on, it was refused, or its numbers went wrong in the first steps."""
STRANGE: list[Any] = [
    None, True, "", "x", "../../x", -1, -(2**40), 0, 1, 2**31, 2**70, 0.5, -0.5, float("nan"), float("inf"), 1e300,
    [], [1], ["a", 2.5], (), (0.5, "b"), {}, {"a": 1}, {1: "b"}, b"bytes", torch.float16,
    torch.zeros(0), torch.zeros(2, 3), torch.tensor(-1), torch.tensor(float("nan")),
    torch.ones(3, dtype=torch.int64), torch.zeros(1, dtype=torch.bool),
]  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield every place within a tree."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    for key, part in parts:
        yield (*path, key)
        yield from places(part, (*path, key))


def changed(value: Any, path: tuple[Any, ...], change: Callable[[Any, Any], None]) -> Any:
    """Return `value` with `change` made to the container and key at `path`; tuples on the way are made anew."""
    key, *rest = path
    result = list(value) if isinstance(value, tuple) else value
    if rest:
        result[key] = changed(result[key], tuple(rest), change)
    else:
        change(result, key)
    return tuple(result) if isinstance(value, tuple) else result


def mutate(state: Any, draw: random.Random) -> tuple[Any, str]:
    """Return a copy of `state` with something changed in one place, and what."""
    state = copy.deepcopy(state)
    every = list(places(state))
    owners = sorted({str(path[0]) for path in every})  # a small part is met as often as a large one
    owner = draw.choice(owners)
    path = draw.choice([path for path in every if str(path[0]) == owner])
    kind = draw.choice(["replace", "replace", "replace", "delete", "rename", "add", "tensor"])
    strange = draw.choice(STRANGE)

    def change(inside: Any, key: Any) -> None:
        value = inside[key]
        if kind == "delete":
            del inside[key]
        elif kind == "rename" and isinstance(inside, dict):
            inside["other"] = inside.pop(key)
        elif kind == "add" and isinstance(value, dict):
            value[draw.choice(["other", 7])] = strange
        elif kind == "add" and isinstance(value, list):
            value.append(strange)
        elif kind == "tensor" and isinstance(value, torch.Tensor):
            inside[key] = draw.choice([
                value.double() if value.dtype != torch.float64 else value.int(), value.long(), value.flatten(),
                value[:0] if value.dim() else value.reshape(1), value.unsqueeze(0), -value.float(),
                value.float() * torch.nan, value.to(torch.complex64),
            ])  # fmt: skip
        else:
            inside[key] = strange

    return changed(state, path, change), f"{kind} {'.'.join(map(str, path))} with {strange!r}"


@pytest.fixture(autouse=True)
def put_back() -> Iterator[None]:
    """Commands set up logging and the homes of components for a whole process."""
    root, ours = logging.getLogger(), logging.getLogger("src")
    handlers, level = list(root.handlers), ours.level
    yield
    log_to_file(None)
    root.handlers[:] = handlers
    ours.setLevel(level)
    use_folder(None)
    sys.modules.pop("noisy", None)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a config, and what a run of it has saved in mid-epoch, with everything that has a memory."""
    folder = tmp_path_factory.mktemp("trained")
    sys.modules.pop("noisy", None)
    (folder / "noisy.py").write_text(COMPONENTS)
    trainer = {**CONFIG["trainer"], "epochs": 2, "eval_every_steps": 3, "patience": 90, "nonfinite": "skip"}
    data = {**CONFIG["data"], "args": {"num_rows": 80}}
    (folder / "x.yaml").write_text(yaml.safe_dump({**CONFIG, "data": data, "trainer": trainer}))
    words = ["-c", str(folder / "x.yaml"), f"trainer.save_dir={folder}", "trainer.max_steps=6", "-q"]
    assert run_command(lambda: main(words)) == 0
    return folder


def hang(number: int, frame: FrameType | None) -> None:
    raise AssertionError("hangs")


def check(folder: Path, tmp_path: Path, seed: int, capsys: pytest.CaptureFixture[str]) -> str | None:
    """Go on with one changed checkpoint; return what is wrong with how that ended."""
    whole = load_checkpoint(next(folder.glob("chaos/*/checkpoints/last.pt")))
    state, what = mutate(whole, random.Random(seed))
    run = tmp_path / f"run-{seed}"
    (run / "checkpoints").mkdir(parents=True)
    CheckpointStore(run / "checkpoints").save(state, 6, False)
    words = ["-c", str(folder / "x.yaml"), f"trainer.save_dir={tmp_path}", "trainer.max_steps=10", "-r", str(run)]
    signal.alarm(LIMIT_S)
    try:
        code: Any = run_command(lambda: main(words))
    except BaseException as error:
        code = repr(error)
    finally:
        signal.alarm(0)
    said = capsys.readouterr().err
    is_told = code == 0 or 1 <= len(said.splitlines()) <= 3
    return None if code in CODES and is_told and "Traceback" not in said else f"{seed}: {what}: {code}\n{said[-600:]}"


@pytest.mark.parametrize(
    ("first", "count"), [(0, 50), *(pytest.param(at, 78, marks=pytest.mark.full) for at in range(50, 2000, 78))]
)
def test_whatever_is_changed_in_a_checkpoint_a_run_goes_on_or_says_why_not(
    first: int, count: int, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.signal(signal.SIGALRM, hang)
    try:
        found = [check(trained, tmp_path, seed, capsys) for seed in range(first, first + count)]
    finally:
        signal.signal(signal.SIGALRM, before)
    assert not any(found), "\n".join(filter(None, found))
