"""What the code says about itself: the text below each field of the settings, and `Args:` of docstrings."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any


@cache
def field_docs(cls: type) -> dict[str, str]:
    """Returns the text below each field of a dataclass, on one line; inherited fields too."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        file = getattr(sys.modules.get(base.__module__), "__file__", None)
        if file is not None and base.__module__.startswith("src."):
            docs |= _docs_in(Path(file)).get(base.__name__, {})
    return docs


@cache
def _docs_in(file: Path) -> dict[str, dict[str, str]]:
    """Returns the texts below the fields of each class in a file."""
    docs: dict[str, dict[str, str]] = {}
    for node in ast.parse(file.read_bytes()).body:
        if isinstance(node, ast.ClassDef):
            own = docs[node.name] = {}
            for field, text in zip(node.body, node.body[1:], strict=False):
                if (
                    isinstance(field, ast.AnnAssign)
                    and isinstance(field.target, ast.Name)
                    and isinstance(text, ast.Expr)
                ):
                    own[field.target.id] = one_line(ast.literal_eval(text.value))
    return docs


def summary(target: Any) -> str:
    """Returns the first sentence that a class or function says of itself."""
    if isinstance(target, type) and "__doc__" not in vars(target):
        return ""
    text = re.sub(r"^(\w+\(.*?\)( -> \w+)?\s*)", "", inspect.getdoc(target) or "", flags=re.DOTALL)
    first = one_line(text.split("\n\n")[0])
    return re.sub(r":(?:\w+:)+`~?([^`]*)`", r"\1", re.split(r"\. (?=[A-Z])|\.$", first)[0])


def argument_doc(target: Any, name: str) -> str:
    """Returns what the docstring of a class or function says of one argument; empty where it is silent."""
    for source in (target, getattr(target, "__init__", None)):
        lines = (inspect.getdoc(source) or "").splitlines() if source is not None else []
        for number, line in enumerate(lines):
            match = re.match(rf"(\s*)\*{{0,2}}`{{0,2}}{re.escape(name)}`{{0,2}}\s*(?:\([^:]*\))?\s*:\s*(.*)", line)
            if match is None:
                continue
            text = [match[2]]
            for more in lines[number + 1 :]:
                if not more.strip() or len(more) - len(more.lstrip()) <= len(match[1]):
                    break
                text.append(more.strip())
            return re.sub(r":(?:\w+:)+`~?([^`]*)`", r"\1", one_line(" ".join(text)))
    return ""


def one_line(text: str) -> str:
    """Joins the lines of a text."""
    return " ".join(text.split())
