"""Their folder: found, put on the path of imports, and its four files imported under their old names.

The folder is the one the command was started in, that of the config named on the command line, or `--project`: a
person vouched for it. Nothing is ever imported from where a checkpoint lies.
"""

from __future__ import annotations

import inspect
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn, optim

from src.config.mistakes import nearest
from src.utils.errors import ConfigError
from src.utils.packages import install_command
from src.utils.paths import shown_path

FILES = ("model/model.py", "model/loss.py", "model/metric.py", "data_loader/data_loaders.py")
STANDINS = Path(__file__).resolve().parent / "standins"
LIBRARIES = ("torch.nn", "torch._C._nn", "torchvision", "timm", "torchmetrics", "sklearn.metrics")
"""Packages whose functions a name in their files may stand for."""


def find_project(named: str | None, config: Path | None) -> Path:
    """Return the folder of the project.

    Raises:
        ConfigError: Its files are not where they should be.
    """
    near = [config.resolve().parent, *config.resolve().parents[1:3]] if config else []
    places = [Path(named).resolve()] if named else [Path.cwd(), *near]
    for place in places:
        missing = [file for file in FILES if not (place / file).is_file()]
        if not missing:
            return place
        if len(missing) < len(FILES) or named:
            raise ConfigError(f"project {shown_path(place)}: has no {', '.join(missing)}")
    raise ConfigError(f"no project here: {FILES[0]} is not in {', '.join(map(shown_path, places))}; use --project DIR")


@dataclass(frozen=True)
class Project:
    """Their modules."""

    folder: Path
    model: ModuleType
    loss: ModuleType
    metric: ModuleType
    data: ModuleType

    def find(self, section: str, name: str, modules: Sequence[Any]) -> Callable[..., Any]:
        """Return what `name` means in the first of `modules` that has it.

        Raises:
            ConfigError: None has it, or it is neither a class nor a function of the project or a known library.
        """
        for module in modules:
            if not name.startswith("_") and hasattr(module, name):
                found = getattr(module, name)
                if not self._may_be_called(found):
                    raise ConfigError(f"{section}: {name} of {module.__name__} is no class or function of the project")
                return found  # type: ignore[no-any-return]
        known = [each for module in modules for each in vars(module) if not each.startswith("_")]
        close = nearest(name, known)
        hint = f"; did you mean `{close}`?" if close else ""
        raise ConfigError(f"{section}: no `{name}` in {', '.join(module.__name__ for module in modules)}{hint}")

    def _may_be_called(self, found: Any) -> bool:
        """Whether it is theirs or a known library's: a file may have imported `os.system` for a purpose of its own."""
        if isinstance(found, type) and issubclass(found, (nn.Module, optim.Optimizer)):
            return True
        module = str(getattr(found, "__module__", ""))
        if any(module == root or module.startswith(f"{root}.") for root in (*LIBRARIES, "torch.optim")):
            return callable(found)
        try:
            file = Path(inspect.getfile(inspect.unwrap(found))).resolve()
        except TypeError:
            return False
        return file.is_relative_to(self.folder)


def open_project(folder: Path) -> Project:
    """Import the files of a project, as its own `train.py` does.

    Raises:
        ConfigError: A file's own import fails; says which line of theirs.
    """
    for place, entry in ((0, str(folder)), (len(sys.path) + 1, str(STANDINS))):  # ours only where theirs has none
        if entry not in sys.path:
            sys.path.insert(place, entry)
    try:
        import data_loader.data_loaders as data  # type: ignore[import-not-found]
        import model.model as model  # type: ignore[import-not-found]

        import model.loss as loss  # type: ignore[import-not-found]
        import model.metric as metric  # type: ignore[import-not-found]
    except ImportError as error:
        own = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(str(folder))]
        line = f"{shown_path(Path(own[-1].filename))}:{own[-1].lineno}" if own else shown_path(folder)
        name = getattr(error, "name", None)
        advice = f"; `{install_command(name.split('.')[0])}`" if name and "No module" in str(error) else ""
        raise ConfigError(f"{line}: {error}{advice}") from error
    modules = (model, loss, metric, data)
    for file, module in zip(FILES, modules, strict=True):
        if Path(module.__file__ or "").resolve() != (folder / file).resolve():
            raise ConfigError(f"{file}: another module of that name was imported, from {module.__file__}")
    return Project(folder, *modules)
