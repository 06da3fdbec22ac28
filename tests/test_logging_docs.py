"""What docs/logging.md shows is what a run leaves and prints."""

from __future__ import annotations

from pathlib import Path

import pytest

from src.trainer.account import verdict
from tests.conftest import ROOT
from tests.test_readme import Block, blocks, check_output
from train import main


def shown(beginning: str) -> Block:
    (block,) = [block for block in blocks("docs/logging.md") if block.text.startswith(beginning)]
    return block


def test_the_page_shows_what_a_run_leaves_and_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = str(ROOT / "configs" / "digits.yaml")
    assert main(["-c", config, "-d", "cpu", "trainer.epochs=2", f"trainer.save_dir={tmp_path}"]) == 0
    (run,) = (tmp_path / "digits").iterdir()
    for line in shown("saved/").text.splitlines()[1:]:
        name = line.split()[0]
        assert (run / name).exists() and (run / name).is_dir() == name.endswith("/"), name
    console = shown("epoch")
    check_output(console.text, capsys.readouterr().out, f"docs/logging.md:{console.line}")


def test_the_line_about_time_is_the_one_that_is_told() -> None:
    _, line = verdict({"data": 0.61, "forward": 0.2, "backward": 0.15})
    assert shown("time").text == f"time   {line}\n"
