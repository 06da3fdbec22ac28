"""What a module offers, read off its source text: nothing is imported to find out."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from src.utils.paths import PROJECT_ROOT


@dataclass(frozen=True)
class Definition:
    """How a file binds a name."""

    how: str
    """`class`, `def`, `value`, `import`, or `passed on`: an import that is in `__all__`."""

    bases: tuple[str, ...] = ()
    """Last names of a class's bases, those of its bases in the same file too: `Module` for `nn.Module`."""

    methods: tuple[str, ...] = ()
    """Of a class, and of its bases in the same file."""

    needs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The arguments without a default, and the classes that their annotations name."""

    returns: str = ""
    """Last name of what a function says it returns."""


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
        return {name: own.get(name, Definition("passed on")) for name in chosen}
    return {name: how for name, how in names.items() if not name.startswith("_")}


def _collect(statements: list[ast.stmt], file: Path, names: dict[str, Definition]) -> list[str] | None:
    """Adds what the statements bind to `names`; returns a literal `__all__` if one is met."""
    chosen: list[str] | None = None
    for node in statements:
        if isinstance(node, ast.ClassDef):
            names[node.name] = _class(node, names)
        elif isinstance(node, ast.FunctionDef):
            names[node.name] = Definition("def", needs=_needs(node, names), returns=_last_name(node.returns))
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


def _class(node: ast.ClassDef, names: Mapping[str, Definition]) -> Definition:
    own = {each.name: each for each in node.body if isinstance(each, ast.FunctionDef)}
    bases = [_last_name(base) for base in node.bases]
    inherited = [names[base] for base in bases if base in names]
    needs = next((each.needs for each in inherited), {})
    if "__init__" in own:
        needs = _needs(own["__init__"], names)
        del needs[next(iter(needs))]  # self
    return Definition(
        "class",
        (*bases, *(base for each in inherited for base in each.bases)),
        (*own, *(method for each in inherited for method in each.methods)),
        needs,
    )


def _needs(function: ast.FunctionDef, names: Mapping[str, Definition]) -> dict[str, tuple[str, ...]]:
    """Returns the arguments that have no default, and the classes that their annotations name."""
    arguments = function.args
    by_position = [*arguments.posonlyargs, *arguments.args]
    needed = by_position[: len(by_position) - len(arguments.defaults)]
    needed += [each for each, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if not default]
    return {each.arg: _classes(each.annotation, names) for each in needed}


def _classes(annotation: ast.expr | None, names: Mapping[str, Definition]) -> tuple[str, ...]:
    """Returns the names in an annotation that begin as classes do, save the file's own short names for others."""
    parts = map(_last_name, ast.walk(annotation) if annotation else ())
    return tuple(name for name in parts if name[:1].isupper() and (name not in names or names[name].how != "value"))


def _last_name(node: ast.AST | None) -> str:
    """`nn.Module` -> `Module`, `Dataset[Any]` -> `Dataset`."""
    node = node.value if isinstance(node, ast.Subscript) else node
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _star_names(node: ast.ImportFrom, file: Path) -> list[str]:
    """Returns what `from module import *` brings in."""
    if node.level:
        folder = file.parents[node.level - 1]
        source = source_file(folder.joinpath(*(node.module or "").split("."))) if node.module else None
    else:
        source = module_file(node.module or "")
    return list(public_names(source)) if source is not None and source != file else []
