"""The catalogue of bad input: each ends with its code and one to three lines that say where, what and what instead.

`tests/bad/catalogue.yaml` is the table. All cases run in this process, through the same function as the command line.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from src.utils.command import run_command
from train import main

CATALOGUE: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "bad" / "catalogue.yaml").read_text("utf-8"))
CASES: dict[str, dict[str, Any]] = CATALOGUE["cases"]


def prepare(folder: Path, case: dict[str, Any]) -> list[str]:
    """Write the files of a case and return the words of its command line."""
    files = {"x.yaml": CATALOGUE["base"], **CATALOGUE["files"], **case.get("files", {})}
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.replace("FOLDER", str(folder)).encode())
    words = [str(word).replace("FOLDER", str(folder)) for word in case.get("words", [])]
    given = [] if case.get("bare") else ["-c", str(folder / "x.yaml"), f"trainer.save_dir={folder / 'runs'}"]
    return [*given, *words]


@pytest.mark.parametrize("name", CASES)
def test_bad_input(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    case = CASES[name]
    words = prepare(tmp_path, case)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py", *words])
    code = run_command(lambda: main(words))
    told = capsys.readouterr().err
    assert code == case["code"], told
    lines = [line for line in told.splitlines() if line]
    assert 1 <= len(lines) <= 3, told
    assert re.search(case["says"], told), told
    assert "Traceback" not in told
    assert all(line.isprintable() for line in lines)
    assert not (tmp_path / "runs").exists() or case.get("makes_run"), "what cannot begin leaves nothing"
    assert not (tmp_path / "marker").exists(), "no code ran"
