"""How to install what is not there: by the extra of pyproject.toml that holds it, so that versions fit together."""

from __future__ import annotations

import re
import tomllib

from src.utils.paths import PROJECT_ROOT

DISTRIBUTIONS = {"PIL": "pillow"}
"""What is installed, where the module has another name."""
COLLECTIONS = ("dev", "bench")
"""Extras that are many things at once."""


def install_command(module: str) -> str:
    """Return what to type to get a module: `pip install -e ".[trackers]"`, or the package if no extra has it."""
    package = DISTRIBUTIONS.get(module, module)
    extra = next((name for name, packages in _extras() if _plain(package) in packages), None)
    return f"pip install {package}" if extra is None else f'pip install -e ".[{extra}]"'


def not_installed(where: str, *modules: str) -> str:
    """Return the message that something needs modules which are not all there."""
    names = " and ".join(DISTRIBUTIONS.get(module, module) for module in modules)
    needs = f"needs the package {names}, which is" if len(modules) == 1 else f"needs the packages {names}, which are"
    commands = dict.fromkeys(map(install_command, modules))
    return f"{where} {needs} not installed; {' and '.join(f'`{each}`' for each in commands)}"


def _extras() -> list[tuple[str, set[str]]]:
    try:
        content = tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError):
        return []
    extras: dict[str, list[str]] = content.get("project", {}).get("optional-dependencies", {})
    return [(name, {_plain(each) for each in listed}) for name, listed in extras.items() if name not in COLLECTIONS]


def _plain(requirement: str) -> str:
    """Return the name of a requirement alone, as all spellings of it have in common."""
    return re.split(r"[^\w.-]", requirement)[0].lower().replace("_", "-")
