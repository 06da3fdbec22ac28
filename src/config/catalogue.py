"""What a module offers, read off its source text: nothing is imported to find out."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from src.utils.paths import PROJECT_ROOT


@dataclass(frozen=True)
class Definition:
    """How a file binds a name."""

    how: str
    """`class`, `def`, `value` (also what `__all__` passes on), or `import`."""

    bases: tuple[str, ...] = ()
    """Last names of a class's bases: `Module` for `nn.Module`."""

    methods: tuple[str, ...] = ()


def module_file(module: str) -> Path | None:
    """Returns the source file of a module of the project or of an installed package; `None` when there is none."""
    top, *rest = module.split(".")
    if top == "src":
        folder = PROJECT_ROOT / "src"
    else:
        spec = find_spec(top)  # looks for a top-level package without importing it
        if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
            return None
        if not spec.submodule_search_locations:
            return None if rest else Path(spec.origin)
        folder = Path(spec.origin).parent
    return source_file(folder.joinpath(*rest))


def source_file(stem: Path) -> Path | None:
    """Returns `stem.py` or `stem/__init__.py`, whichever exists."""
    candidates = (stem / "__init__.py", stem.with_name(stem.name + ".py"))
    return next((path for path in candidates if path.is_file()), None)


def public_names(file: Path) -> dict[str, Definition]:
    """Returns the public names that a source file binds.

    A literal `__all__` decides where there is one. A file that is no Python offers nothing.
    """
    try:
        return _public_names(file, file.stat().st_mtime_ns)
    except (OSError, SyntaxError, ValueError, RecursionError):
        return {}


@lru_cache(maxsize=512)
def _public_names(file: Path, mtime_ns: int) -> dict[str, Definition]:
    names: dict[str, Definition] = {}
    chosen = _collect(ast.parse(file.read_bytes()).body, file, names)
    if chosen is not None:
        own = {name: each for name, each in names.items() if each.how != "import"}
        return {name: own.get(name, Definition("value")) for name in chosen}
    return {name: how for name, how in names.items() if not name.startswith("_")}


def _collect(statements: list[ast.stmt], file: Path, names: dict[str, Definition]) -> list[str] | None:
    """Adds what the statements bind to `names`; returns a literal `__all__` if one is met."""
    chosen: list[str] | None = None
    for node in statements:
        if isinstance(node, ast.ClassDef):
            bases = tuple(
                base.attr if isinstance(base, ast.Attribute) else getattr(base, "id", "") for base in node.bases
            )
            methods = tuple(each.name for each in node.body if isinstance(each, ast.FunctionDef))
            names[node.name] = Definition("class", bases, methods)
        elif isinstance(node, ast.FunctionDef):
            names[node.name] = Definition("def")
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if alias.name == "*":
                    names |= dict.fromkeys(_star_names(node, file), Definition("import"))
                else:
                    names[alias.asname or alias.name] = Definition("import")
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                if isinstance(target, ast.Name):
                    names[target.id] = Definition("value")
                    if target.id == "__all__" and isinstance(node.value, ast.List | ast.Tuple):
                        chosen = [each.value for each in node.value.elts if isinstance(each, ast.Constant)]  # type: ignore[misc]
        elif isinstance(node, ast.If | ast.Try):
            _collect([*node.body, *node.orelse], file, names)
    return chosen


def _star_names(node: ast.ImportFrom, file: Path) -> list[str]:
    """Returns what `from module import *` brings in."""
    if node.level:
        folder = file.parents[node.level - 1]
        source = source_file(folder.joinpath(*(node.module or "").split("."))) if node.module else None
    else:
        source = module_file(node.module or "")
    return list(public_names(source)) if source is not None and source != file else []
