"""Whatever is changed in a shipped config: the command line prints it, or ends with its code and a line per mistake."""

from __future__ import annotations

import copy
import json
import logging
import random
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import yaml

from src.config.registry import use_folder
from src.logger.console import log_to_file
from src.utils.command import run_command
from tests.conftest import ROOT
from tests.test_mutated_checkpoints import changed, places
from train import main

LIMIT_S = 60
CODES = {"--print-config": (2, 3), "--check": (2, 3, 4, 5, 6)}
"""Besides 0: a mistake in the config or the data; no weights to start from, not enough memory, or the first numbers
are not finite."""
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
MAX_LINE = 1000
NESTED: Any = []
for _ in range(45):
    NESTED = [NESTED]
STRANGE: list[Any] = [
    None, True, "", " ", "no", "x", "a.b", "../x", "/etc/passwd", "os.system", "torch.load", "é\u202e\U0001f600",
    "\x1b[2J", -1, 0, 1, 3.5, -0.0, 10**30, -(10**30), float("nan"), float("inf"), 1e308, "1e-3",
    "${seed}", "${name}", "${nothing.here}", "${env:HOME}", "${", [], [1], ["x", None], [[]], {}, {"type": "x"},
    {"type": 3}, {"args": {}}, {"x": {"y": {"z": 1}}}, NESTED,
]  # fmt: skip
KEYS = ["other", "Lr", "type", "args", "<<", "on", 3, None, "é", "", "a.b", "${x}"]
BOMB = "".join(f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 9) if n else 'x'}]\n" for n in range(9))
TEXTS: list[Callable[[str, random.Random], str]] = [
    lambda text, draw: text + BOMB,
    lambda text, draw: text + "other: &a [*a]\n",
    lambda text, draw: text + "other: " + "[" * 3000,
    lambda text, draw: text + "other: " + "{a: " * 200 + "}" * 200 + "\n",
    lambda text, draw: text + text,
    lambda text, draw: text[: draw.randrange(len(text))],
    lambda text, draw: text.replace(":", draw.choice([" :", ":\t", "", ": &x", ": !!python/name:os.system"]), 3),
    lambda text, draw: "\ufeff" + text,
    lambda text, draw: text.replace("  ", "\t", draw.randint(1, 4)),
    lambda text, draw: text + draw.choice(["\0", "\ud800", "---\n", "...\nmore", "? [a, b]\n: c\n", "'"]),
    lambda text, draw: text + "base: x.yaml\n",
]  # fmt: skip


def mutate(seed: int) -> tuple[str, str]:
    """Return the text of a shipped config with something changed, and what."""
    draw = random.Random(seed)
    path = draw.choice(CONFIGS)
    text = path.read_text(encoding="utf-8")
    if draw.random() < 0.2:
        number = draw.randrange(len(TEXTS))
        return TEXTS[number](text, draw), f"{path.name}: text {number}"
    tree, told = yaml.safe_load(text), []
    for _ in range(draw.choice([1, 1, 1, 2, 5])):
        if not (every := list(places(tree))):
            break
        where, kind = draw.choice(every), draw.choice(["replace", "replace", "delete", "rename", "add", "move"])
        strange, name = draw.choice(STRANGE), draw.choice(KEYS)

        def change(inside: Any, key: Any, kind: str = kind, strange: Any = strange, name: Any = name) -> None:
            if kind == "delete":
                del inside[key]
            elif kind == "rename" and isinstance(inside, dict):
                inside[name] = inside.pop(key)
            elif kind == "add" and isinstance(inside, dict):
                inside[name] = strange
            elif kind == "move" and isinstance(inside, dict):
                inside[key] = {key: inside[key]}
            else:
                inside[key] = strange

        tree = changed(copy.deepcopy(tree), where, change)
        told.append(f"{kind} {'.'.join(map(str, where))} with {name!r}: {strange!r}")
    return yaml.safe_dump(tree, allow_unicode=True), f"{path.name}: {'; '.join(told)[:300]}"


SCHEMA: dict[str, Any] = json.loads((ROOT / "configs" / "schema.json").read_text(encoding="utf-8"))
QUICK = [ROOT / "configs" / f"{name}.yaml" for name in ("digits", "diabetes_mlp", "line")]
SLOW_OR_OF_THE_PROCESS = {
    "compile",
    "num_workers",
    "parallel",
    "profile",
    "threads",
    "save_dir",
    "multiprocessing_context",
}
NUMBERS = [0, 1, 2, 3, 7, 100, 10**6, 10**12, -1, 0.5, 1e-3, 0.999, 1e30, 1e-30]


def drawn(schema: dict[str, Any], draw: random.Random) -> Any:
    """Return a value that a schema allows, or one of its type that may be out of bounds."""
    if "$ref" in schema:
        return drawn(SCHEMA["definitions"][schema["$ref"].rpartition("/")[2]], draw)
    if "anyOf" in schema:
        return drawn(draw.choice(schema["anyOf"]), draw)
    if "enum" in schema:
        return draw.choice(schema["enum"])
    if schema.get("type") == "object":
        keys = [key for key in schema.get("properties", {}) if key not in SLOW_OR_OF_THE_PROCESS]
        return {key: drawn(schema["properties"][key], draw) for key in draw.sample(keys, min(len(keys), 2))}
    if schema.get("type") == "array":
        return [drawn(schema.get("items", {}), draw) for _ in range(draw.randrange(3))]
    number = draw.choice(NUMBERS)
    made = {"boolean": draw.random() < 0.5, "integer": int(number), "number": number, "string": "min val/loss"}
    return made.get(schema.get("type", ""))


def plausible(seed: int) -> tuple[str, str]:
    """Return the text of a quick config with some keys of the schema given anew, and what."""
    draw = random.Random(seed)
    path = draw.choice(QUICK)
    tree, told = yaml.safe_load(path.read_text(encoding="utf-8")), []
    for _ in range(draw.choice([1, 1, 2, 3])):
        name = draw.choice(
            ["loader", "loss", "metrics", "optimizer", "parameters", "lr_scheduler", "hooks", "logger"]
            + ["trainer"] * 4
        )
        value = drawn(SCHEMA["properties"][name], draw)
        before = tree.get(name)
        tree[name] = {**before, **value} if isinstance(before, dict) and isinstance(value, dict) else value
        told.append(f"{name}: {value!r}")
    if draw.random() < 0.5:  # something else than what the schema knows of
        every = [place for place in places(tree) if "args" in place[:-1]]
        tree = changed(tree, draw.choice(every), lambda inside, key: inside.__setitem__(key, draw.choice(NUMBERS)))
    return yaml.safe_dump(tree, allow_unicode=True), f"{path.name}: {'; '.join(told)[:300]}"


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


MUTATORS = {"--print-config": mutate, "--check": plausible}


def hang(number: int, frame: FrameType | None) -> None:
    raise AssertionError("hangs")


def check(seed: int, folder: Path, capsys: pytest.CaptureFixture[str], word: str) -> str | None:
    """Print or check one changed config; return what is wrong with how that ended."""
    text, what = MUTATORS[word](seed)
    path = folder / "x.yaml"
    path.write_bytes(text.encode("utf-8", errors="surrogatepass"))
    signal.alarm(LIMIT_S)
    try:
        code: Any = run_command(lambda: main(["-c", str(path), word]))
    except BaseException as error:
        code = repr(error)
    finally:
        signal.alarm(0)
    said = capsys.readouterr().err
    lines = said.splitlines()
    is_told = (code == 0) or (
        code in CODES[word]
        and lines
        and all(re.match("error: ", line) and len(line) < MAX_LINE and line.isprintable() for line in lines)
    )
    return None if is_told else f"{seed}: {what}: {code}\n{said[-600:]}"


@pytest.mark.parametrize(
    ("word", "first", "count"),
    [
        ("--print-config", 0, 60),
        *(pytest.param("--print-config", at, 97, marks=pytest.mark.full) for at in range(60, 2000, 97)),
        *(pytest.param("--check", at, 50, marks=pytest.mark.full) for at in range(0, 1000, 50)),
    ],
)
def test_whatever_is_changed_in_a_config_it_is_printed_or_checked_or_every_mistake_is_told(
    word: str,
    first: int,
    count: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = signal.signal(signal.SIGALRM, hang)
    try:
        found = [check(seed, tmp_path, capsys, word) for seed in range(first, first + count)]
    finally:
        signal.signal(signal.SIGALRM, before)
    assert not any(found), "\n".join(filter(None, found))
    assert [path.name for path in tmp_path.iterdir()] == ["x.yaml"], "nothing was written"
    assert "x" not in sys.modules
