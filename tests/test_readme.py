"""README and the pages listed below, done to the letter in a copy of the project.

How a fence is read:
- ```bash           each line is run, as on a terminal of 100 columns; `fails=2` says with which exit code
- ```text output    what the block before prints, line by line, any digits for digits; `...` leaves lines out
- ```python title=  the file is written
- ```yaml title=    a new file is written; keys of a config that is there are replaced, and it is trained two steps
- ```sh setup       is not run here, but must be what the Makefile does
A run such as saved/digits/1121_054238 is the newest one of its name when a page first speaks of it. Long runs may be
cut by an override that is appended.
"""

from __future__ import annotations

import inspect
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import fields
from io import RawIOBase
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from torch.utils.data import DataLoader

from src.data.settings import LoaderSettings
from tests.conftest import ROOT


class Block(NamedTuple):
    """A fence of a page."""

    line: int
    language: str
    info: str
    text: str


FENCE = re.compile(r"^```(\w+)?[ ]?(.*?)\n(.*?)^```$", re.S | re.M)
RUN = re.compile(r"\bsaved/(\w+)/(\d{4}_\d{6})\b")
PAGES = ("README.md", "docs/config.md", "docs/data.md", "docs/tutorial.md", "docs/ko/tutorial.md", "docs/howto.md")


def blocks(page: str) -> list[Block]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return [
        Block(text.count("\n", 0, match.start()) + 1, match[1] or "", match[2], match[3])
        for match in FENCE.finditer(text)
    ]


def commands(block: Block) -> list[str]:
    return [line for line in block.text.replace("\\\n", "").splitlines() if line.strip()]


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a line as a shell would, with `python` being this one, and what it prints on a terminal of 100 columns."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    screen, terminal = pty.openpty()
    with ThreadPoolExecutor(1) as pool, os.fdopen(screen, "rb", buffering=0) as reader:
        shown = pool.submit(read_all, reader)
        try:
            done = subprocess.run(
                ["bash", "-c", command], cwd=folder, env=environment, stdout=terminal, stderr=subprocess.PIPE,
                text=True, timeout=300, check=False,
            )  # fmt: skip
        finally:
            os.close(terminal)
        done.stdout = shown.result().decode().replace("\r\n", "\n")
    return done


def read_all(reader: RawIOBase) -> bytes:
    found = bytearray()
    with suppress(OSError):  # what Linux says when nobody writes any more
        while piece := reader.read(65536):
            found += piece
    return bytes(found)


def with_runs(text: str, folder: Path, known: dict[str, str]) -> str:
    """Put what was the newest run of its name when a page first spoke of it for each run; `known` keeps them."""

    def newest(found: re.Match[str]) -> str:
        if found[0] not in known:
            runs = (folder / "saved" / found[1]).glob("*/checkpoints/last.pt")
            known[found[0]] = max(runs, key=lambda path: path.stat().st_mtime_ns).parents[1].name
        return f"saved/{found[1]}/{known[found[0]]}"

    return RUN.sub(newest, text)


def shape(line: str) -> str:
    """A line of output without its numbers and its marks."""
    return re.sub(r"\s+", " ", re.sub(r"[\d.,e+-]*\d[\d.,e+-]*|[▲▼△▽*]", "#", line)).replace("# #", "#").strip()


def check_output(shown: str, got: str, where: str) -> None:
    lines = [shape(line) for line in got.splitlines()]
    for line in shown.splitlines():
        wanted = shape(line)
        is_there = any(each.startswith(wanted) for each in lines)
        assert line.strip() == "..." or is_there, f"{where}: `{line}` is not in the output:\n{got}"


@pytest.fixture(scope="module")
def copy(copy_project: Callable[[], Path]) -> Path:
    return copy_project()


def test_the_pages_are_read() -> None:
    assert sum(block.language == "bash" for page in PAGES for block in blocks(page)) >= 8
    assert len(own_parts()) == 5


def test_the_config_that_the_readme_begins_with_is_the_one_it_trains() -> None:
    shown = yaml.safe_load(blocks("README.md")[0].text)
    there = yaml.safe_load((ROOT / "configs/digits.yaml").read_text(encoding="utf-8"))
    assert is_within(shown, there)


def is_within(shown: object, there: object) -> bool:
    """Whether what is shown leaves out at most some keys of what is there."""
    if isinstance(shown, dict) and isinstance(there, dict):
        return all(key in there and is_within(value, there[key]) for key, value in shown.items())
    return shown == there


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=[pytest.mark.full] if "/ko/" in page else []) for page in PAGES]
)
def test_every_command_does_what_the_page_says(page: str, copy_project: Callable[[], Path]) -> None:
    folder = copy_project()
    output, known = "", dict[str, str]()
    for block in blocks(page):
        where = f"{page}:{block.line}"
        if block.language == "bash":
            expected = int(block.info.removeprefix("fails=") or 0)
            output = ""
            for command in commands(block):
                done = run(with_runs(command, folder, known), folder)
                output += done.stdout + done.stderr
                assert done.returncode == expected, f"{where}: {command}\n{output}"
        elif block.info.startswith("title=") and not (ROOT / title(block)).exists():
            (folder / title(block)).write_text(with_runs(block.text, folder, known), encoding="utf-8")
        elif block.info == "output":
            check_output(block.text, output, where)


def own_parts() -> list[tuple[Block, Block]]:
    """The pairs of a file and a section of YAML that add a part: a model, a dataset, a loss, ..."""
    pages = ("README.md", "docs/howto.md")
    titled = [block for page in pages for block in blocks(page) if block.info.startswith("title=")]
    return list(zip(titled[::2], titled[1::2], strict=True))


def title(block: Block) -> str:
    return block.info.removeprefix("title=").strip('"')


@pytest.mark.parametrize(("code", "section"), own_parts(), ids=lambda block: title(block))
def test_one_file_and_one_line_of_yaml_add_a_part(code: Block, section: Block, copy: Path) -> None:
    assert (code.language, section.language) == ("python", "yaml") and len(section.text.splitlines()) == 1
    (copy / title(code)).write_text(code.text, encoding="utf-8")
    original = (ROOT / title(section)).read_text(encoding="utf-8")
    values = {**yaml.safe_load(original), **yaml.safe_load(section.text)}
    values["optimizer"]["args"]["lr"] = 0.005  # PyYAML reads 5e-3 as text
    name = Path(title(code)).stem
    config = copy / "configs" / f"{name}.yaml"
    config.write_text(yaml.safe_dump({**values, "name": name}), encoding="utf-8")
    done = run(f"python train.py -c configs/{name}.yaml trainer.max_steps=2 trainer.log_every_steps=1", copy)
    assert done.returncode == 0, done.stderr
    saved = next((copy / "saved" / name).glob("*/config.yaml")).read_text(encoding="utf-8")
    assert name in saved
    logged = next((copy / "saved" / name).glob("*/metrics.csv")).read_text(encoding="utf-8")
    assert {"confidence": "cohen_kappa_score", "modest": "entropy"}.get(name, "") in logged


def test_every_option_of_the_loader_is_shown_and_works(copy: Path) -> None:
    (text,) = (block.text for block in blocks("README.md") if block.text.startswith("loader:"))
    shown = set(re.findall(r"^  (\w+):|: +(\w+): \{type", text, re.M))
    names = {first or second for first, second in shown}
    known = set(inspect.signature(DataLoader).parameters) - {"dataset", "generator", "pin_memory_device"}
    own = {"keep_on_device"}
    assert names == known == {each.name for each in fields(LoaderSettings)} - own
    values = yaml.safe_load(text)
    sampled, batched = (dict(values["loader"]) for _ in range(2))
    alternatives = [yaml.safe_load(line) for line in re.findall(r"#.*: +(\w*sampler: .*)", text)]
    del sampled["shuffle"]
    for name in ("shuffle", "batch_size", "drop_last"):
        del batched[name]
    words = yaml.safe_load((copy / "configs/tutorials/words.yaml").read_text(encoding="utf-8"))
    loaders = (values["loader"], sampled | alternatives[0], batched | alternatives[1])
    for number, loader in enumerate(loaders):
        config = copy / "configs" / "tutorials" / f"words_{number}.yaml"
        config.write_text(yaml.safe_dump({**words, **values, "loader": loader}), encoding="utf-8")
        done = run(f"python train.py -c configs/tutorials/{config.name} -d cpu trainer.max_steps=2", copy)
        assert done.returncode == 0, done.stderr


def test_what_is_done_without_make_is_what_make_does() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for variable, value in re.findall(r"^(\w+) \??:?= (.*)$", makefile, re.M):
        makefile = makefile.replace(f"$({variable})", value)
    makefile = makefile.replace("$(VENV)", ".venv").replace(" $(ARGS)", "")
    steps = [line for block in blocks("README.md") if block.info == "setup" for line in commands(block)]
    assert len(steps) == 5
    for step in steps[1:]:
        assert f"\t{step}\n" in makefile, step


def test_every_link_leads_somewhere() -> None:
    for page in [
        "README.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        *(p.relative_to(ROOT).as_posix() for p in (ROOT / "docs").rglob("*.md") if "generated" not in p.parts),
    ]:
        prose = re.sub(r"```.*?```|`[^`\n]*`", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)#:]+)\)", prose):
            if target.startswith("generated/"):
                continue  # the site makes it
            assert ((ROOT / page).parent / target).exists(), f"{page}: {target}"


def test_the_table_of_exit_codes_is_that_of_the_code() -> None:
    from src.utils import errors

    codes = {each.exit_code for each in vars(errors).values() if isinstance(each, type) and hasattr(each, "exit_code")}
    page = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    table = page.partition("## Exit codes")[2]
    assert codes | {0, 130} == {int(code) for code in re.findall(r"^\| (\d+)", table, re.M)}


def test_every_path_that_readme_and_architecture_name_exists() -> None:
    pattern = r"`((?:src|docs|configs|tests)/[\w/.]+?|\w+\.(?:py|txt|md))/?`"
    for page in ("README.md", "docs/architecture.md", "CONTRIBUTING.md"):
        text = FENCE.sub("", (ROOT / page).read_text(encoding="utf-8"))
        named = set(re.findall(pattern, text)) - {"log.txt", "tiny.py"}
        missing = [name for name in named if not (ROOT / name).exists() and name != "configs/x.yaml"]
        assert not missing, f"{page}: {missing}"
