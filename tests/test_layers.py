"""The architecture as tests: who may import whom, how long things may be, what no line may do.

Everything is read off the syntax trees, function bodies included. Nothing of the project is imported.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import ROOT, product_files

ROOMS = {  # room -> rooms it may import from, besides itself; docs/architecture.md draws it
    "utils": set[str](),
    "data": {"utils"},
    "model": {"utils"},
    "logger": {"utils"},
    "trainer": {"utils", "data", "model", "logger"},
    "config": {"utils", "data", "model", "logger", "trainer"},
    "run": {"utils", "data", "model", "logger", "trainer", "config"},
    "sweep": {"utils", "data", "model", "logger", "trainer", "config", "run"},
    "compat": {"utils", "data", "model", "logger", "trainer", "config"},  # projects of another template
    "scripts": {"utils", "data", "model", "logger", "trainer", "config", "run", "sweep", "compat"},
}
MAX_FILE_LINES, MAX_FUNCTION_LINES = 300, 60

SOURCES = sorted(path for path in product_files() if path.suffix == ".py" and path.is_relative_to(ROOT / "src"))
SCRIPTS = sorted(path for path in product_files() if path.suffix == ".py" and path.parent == ROOT)
PRODUCT = SOURCES + SCRIPTS
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in PRODUCT}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def shown(path: Path) -> str:
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def dotted(node: ast.AST) -> str:
    """`os.path.join` for the expression that reads so; empty for anything that is not a dotted name."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        base = dotted(node.value)
        return f"{base}.{node.attr}" if base else ""
    return ""


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, dotted name) of everything that is imported; `from a import b` is `a.b` where that is a module."""
    package = list(path.relative_to(ROOT).with_suffix("").parts[:-1]) if path.is_relative_to(ROOT) else []
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                full = f"{module}.{alias.name}"
                yield node.lineno, full if full in MODULES else module


def runtime_edges(path: Path) -> set[str]:
    """Modules of the project that this file imports when it runs: those for annotations alone are left out."""
    guarded = {
        line
        for node in ast.walk(tree(path))
        if isinstance(node, ast.If) and dotted(node.test).split(".")[-1] == "TYPE_CHECKING"
        for line in range(node.lineno, (node.body[-1].end_lineno or node.lineno) + 1)
    }
    return {name for line, name in imports(path) if name in MODULES and line not in guarded}


def room(module: str) -> str:
    """`src.data.csv` is of `data`, `src/run/experiment.py` a room of its own; train.py and its like are `scripts`."""
    parts = module.split(".")
    if parts[0] != "src":
        return "scripts"
    return parts[1] if len(parts) > 1 and parts[1] in ROOMS else "utils"


def breaches(path: Path, module: str) -> list[str]:
    """What this file imports though its floor may not."""
    here = room(module)
    found = []
    for line, name in dict.fromkeys(imports(path)):
        if name != "src" and not name.startswith("src.") and name not in MODULES:
            continue
        there = room(name)
        if there != here and there not in ROOMS[here]:
            found.append(f"{shown(path)}:{line}: {here} imports {name}, a room it may not know")
        if here == "scripts" and there == "scripts":
            found.append(f"{shown(path)}:{line}: an entry script imports {name}; move what both need below them")
        if here == "config" and there == "trainer" and name != "src.trainer.settings":
            found.append(f"{shown(path)}:{line}: src/config sees of src/trainer its settings alone, not {name}")
    return found


def cycles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Each cycle that a walk along the imports meets."""
    found: list[list[str]] = []
    done: set[str] = set()

    def visit(module: str, trail: list[str]) -> None:
        if module in trail:
            found.append([*trail[trail.index(module) :], module])
        elif module not in done:
            for target in sorted(edges.get(module, ())):
                visit(target, [*trail, module])
            done.add(module)

    for module in sorted(edges):
        visit(module, [])
    return found


FORBIDDEN_CALLS = {
    "eval": "runs text as code",
    "exec": "runs text as code",
    "compile": "makes code of text",
    "yaml.load": "builds objects; use the reader in src/config",
    "yaml.unsafe_load": "builds objects",
    "yaml.full_load": "builds objects",
    "os.system": "starts a shell",
    "os.popen": "starts a shell",
    "subprocess.getoutput": "starts a shell",
    "torch.hub.load": "runs code of others",
    "torch.serialization.add_safe_globals": "widens what every later load accepts",
    "os.chdir": "changes where the user stands",
}
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal"}
FORBIDDEN_ARGUMENTS = {"weights_only": False, "allow_pickle": True, "shell": True}


def dangers(path: Path) -> list[str]:
    """Lines that run code of others or start a shell."""
    found = []
    for line, name in imports(path):
        if name.split(".")[0] in FORBIDDEN_MODULES:
            found.append(f"{shown(path)}:{line}: imports {name}")
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Attribute) and (reason := FORBIDDEN_CALLS.get(dotted(node))):
            found.append(f"{shown(path)}:{node.lineno}: {dotted(node)} {reason}")
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if reason := FORBIDDEN_CALLS.get(f"{node.module}.{alias.name}"):
                    found.append(f"{shown(path)}:{node.lineno}: {node.module}.{alias.name} {reason}")
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func)
        if name in FORBIDDEN_CALLS and "." not in name:
            found.append(f"{shown(path)}:{node.lineno}: {name} {FORBIDDEN_CALLS[name]}")
        for argument in node.keywords:
            wanted = FORBIDDEN_ARGUMENTS.get(argument.arg or "")
            if wanted is not None and (not isinstance(argument.value, ast.Constant) or argument.value.value is wanted):
                found.append(f"{shown(path)}:{node.lineno}: {argument.arg}={ast.unparse(argument.value)}")
        if name == "torch.load" and "weights_only" not in {argument.arg for argument in node.keywords}:
            found.append(f"{shown(path)}:{node.lineno}: torch.load without weights_only=True")
    return found


def import_by_name(path: Path) -> list[int]:
    """Lines that import a module whose name is a value."""
    names = {"import_module", "__import__", "spec_from_file_location", "run_path", "run_module", "load_module"}
    return [
        node.lineno
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and dotted(node.func).split(".")[-1] in names
    ]


def without_docstring(path: Path) -> list[str]:
    """Public functions and classes that do not say what they are for; methods of a class are described by it."""
    return [
        f"{shown(path)}:{node.lineno}: {node.name} has no docstring"
        for node in tree(path).body
        if isinstance(node, (*FUNCTIONS, ast.ClassDef))
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]


def too_long(path: Path) -> list[str]:
    found = []
    lines = len(path.read_text(encoding="utf-8").splitlines())
    if lines > MAX_FILE_LINES:
        found.append(f"{shown(path)}: {lines} lines, at most {MAX_FILE_LINES}; make two files of it")
    for node in ast.walk(tree(path)):
        if isinstance(node, FUNCTIONS):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > MAX_FUNCTION_LINES:
                found.append(
                    f"{shown(path)}:{node.lineno}: {node.name} has {lines} lines, at most {MAX_FUNCTION_LINES}"
                )
    return found


def everywhere(check: Callable[[Path], list[str]]) -> list[str]:
    return [line for path in PRODUCT for line in check(path)]


def test_imports_go_down_only() -> None:
    assert len(SOURCES) > 20 and SCRIPTS
    found = [line for module, path in MODULES.items() for line in breaches(path, module)]
    assert not found, "\n".join(found)


def test_every_folder_and_file_of_src_is_a_room_on_a_floor() -> None:
    rooms = {path.relative_to(ROOT / "src").with_suffix("").parts[0] for path in SOURCES}
    assert rooms - {"__init__"} == set(ROOMS) - {"scripts"}


def test_no_import_cycles() -> None:
    edges = {module: runtime_edges(path) - {module} for module, path in MODULES.items()}
    assert not cycles(edges), "\n".join(" -> ".join(cycle) for cycle in cycles(edges))


def test_one_file_imports_by_name() -> None:
    assert [shown(path) for path in PRODUCT if import_by_name(path)] == ["src/config/registry.py"]


def test_nothing_runs_code_of_others() -> None:
    assert not (found := everywhere(dangers)), "\n".join(found)


def test_files_and_functions_are_short() -> None:
    assert not (found := everywhere(too_long)), "\n".join(found)


def test_public_names_have_docstrings() -> None:
    assert not (found := [line for path in SOURCES for line in without_docstring(path)]), "\n".join(found)


def test_every_file_says_what_it_is() -> None:
    silent = [shown(path) for path in PRODUCT if tree(path).body and not ast.get_docstring(tree(path))]
    assert not silent, f"no docstring at the top of {silent}"


# The checks themselves: each must see what it is there for.


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str], Path]:
    """Function that writes a module and returns its path."""

    def write(text: str) -> Path:
        path = tmp_path / "example.py"
        path.write_text(text, encoding="utf-8")
        tree.cache_clear()
        return path

    return write


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("src.utils.x", "import src.data.parts.part"),
        ("src.data.x", "def f():\n    from src.model import lenet"),
        ("src.model.x", "import src.logger.logger"),
        ("src.logger.x", "from src.config import registry"),
        ("src.trainer.x", "from src.config.settings import Config"),
        ("src.config.x", "from src.trainer import trainer"),
        ("src.config.x", "import train"),
        ("src.data.x", "from src import trainer"),
        ("src.trainer.x", "def f():\n    from src.compat import run"),
        ("src.config.x", "import src.compat.detect"),
        ("train", "import test"),
    ],
)
def test_a_forbidden_import_is_seen(module: str, text: str, written: Callable[[str], Path]) -> None:
    path = written(text)
    if text in ("import train", "import test"):
        assert text.split()[1] in MODULES, "the entry scripts are not there"
    assert breaches(path, module)


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("src.data.x", "from src.utils.errors import DataError"),
        ("src.config.x", "from src.trainer.settings import TrainerSettings"),
        ("train", "from src.trainer.trainer import Trainer\nimport torch"),
    ],
)
def test_a_permitted_import_is_not_reported(module: str, text: str, written: Callable[[str], Path]) -> None:
    assert not breaches(written(text), module)


@pytest.mark.parametrize(
    "text",
    [
        "eval('1')",
        "exec('1')",
        "import pickle",
        "from pickle import loads",
        "import torch\ntorch.load('x', weights_only=False)",
        "import torch\ntorch.load('x')",
        "import torch\ntorch.load('x', weights_only=flag)",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "import yaml\nyaml.load('x')",
        "import os\nrun = os.system\nrun('x')",
        "from os import popen",
        "import subprocess\nsubprocess.run('x', shell=True)",
    ],
)
def test_a_dangerous_line_is_seen(text: str, written: Callable[[str], Path]) -> None:
    assert dangers(written(text))


def test_a_safe_load_is_not_reported(written: Callable[[str], Path]) -> None:
    assert not dangers(written("import torch\ntorch.load('x', weights_only=True)\nmodel.eval()\nmodel.compile()"))


def test_the_other_checks_see_what_they_are_there_for(written: Callable[[str], Path]) -> None:
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == [["a", "b", "c", "a"]]
    assert import_by_name(written("from importlib import import_module\ndef f(x):\n    return import_module(x)")) == [3]
    assert without_docstring(written("def f():\n    pass\nclass _A:\n    pass\n")) == [
        "example.py:1: f has no docstring"
    ]
    assert too_long(written("def f():\n" + "    pass\n" * 60)) == ["example.py:1: f has 61 lines, at most 60"]
    assert too_long(written("x = 1\n" * 301)) == ["example.py: 301 lines, at most 300; make two files of it"]


def test_what_is_imported_and_may_not_be_installed_is_known_to_the_type_checker() -> None:
    """Else the linters pass where an extra happens to be installed, and fail in a fresh environment."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        declared = tomllib.load(file)
    overrides = declared["tool"]["mypy"]["overrides"]
    lenient = {module.split(".")[0] for each in overrides for module in each["module"]}
    extras = declared["project"]["optional-dependencies"]
    installed = [*declared["project"]["dependencies"], *extras["dev"], *extras["docs"], *extras["plots"]]
    known = {re.split(r"[^\w.-]", each)[0].replace("-", "_") for each in installed}
    known |= {"sklearn", "yaml", "src", "data_loader", "model", *lenient, *sys.stdlib_module_names}
    imported = {
        name.split(".")[0]: f"{shown(path)}:{node.lineno}"
        for path in PRODUCT
        for node in ast.walk(tree(path))
        for name in imported_names(node)
    }
    unknown = {name: place for name, place in imported.items() if name not in known and name not in MODULES}
    assert not unknown, "add it to mypy's overrides in pyproject.toml, or to the dependencies"


def imported_names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
