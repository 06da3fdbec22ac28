"""Names to classes: the one file that imports by name.

A name is looked for in the homes of its kind, in order; `lenet.LeNet` is class LeNet of `lenet.py` in a home. Full
dotted names of a short list of packages work too. Nothing else is imported, not even to look at it: a config
may come from somebody else. Packages beyond the list are vouched for on the command line (`--trust package`).
"""

from __future__ import annotations

import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from src.config.catalogue import Definition, module_file, public_names, source_file
from src.config.kinds import WORDS, described, is_for_configs, is_in_library, is_right_kind, looks_like
from src.config.mistakes import did_you_mean, found, listed, nearest
from src.utils.errors import ConfigError, KeelError
from src.utils.packages import not_installed
from src.utils.paths import PROJECT_ROOT, is_own_folder, shown_path

HOMES: dict[str, tuple[str, ...]] = {
    "data": ("src.data",),
    "transforms": ("src.data.transforms", "src.data"),
    "tokenizer": ("src.data.text", "src.data"),
    "sampler": ("src.data", "torch.utils.data"),
    "batch_sampler": ("src.data", "torch.utils.data"),
    "collate_fn": ("src.data", "torch.utils.data"),
    "worker_init_fn": ("src.data",),
    "model": ("src.model", "torch.nn"),
    "module": ("src.model", "torch.nn"),
    "loss": ("src.model.loss", "src.model", "torch.nn", "torch.nn.functional"),
    "metrics": ("src.model.metric", "src.model", "sklearn.metrics", "torchmetrics"),
    "optimizer": ("src.trainer", "torch.optim"),
    "lr_scheduler": ("src.trainer", "torch.optim.lr_scheduler"),
    "task": ("src.trainer.task", "src.trainer", "src.model"),
    "hooks": ("src.trainer.hooks", "src.trainer", "src.model"),
    "sinks": ("src.logger",),
}
"""Where each kind of component is looked for; the folder of the config comes before all."""

_CLASSES = r"[A-Z]\w*"
LIBRARIES: dict[str, str] = {
    "torch.nn": _CLASSES,
    "torch.nn.functional": r"\w*_loss|\w*cross_entropy\w*|kl_div",
    "torch.optim": _CLASSES,
    "torch.optim.lr_scheduler": _CLASSES,
    "torch.utils.data": r"[A-Z]\w*Sampler|default_collate",
    "torchvision.datasets": _CLASSES,
    "torchvision.transforms": _CLASSES,
    "torchvision.transforms.v2": _CLASSES,
    "timm": r"create_model",
    "transformers": r"Auto\w+\.from_(pretrained|config)",
    "sklearn.preprocessing": _CLASSES,
    "sklearn.metrics": r"[a-z]\w*",
    "peft": r"get_peft_model|\w+Config",
    **{f"albumentations{part}": _CLASSES for part in ("", ".pytorch")},
    "kornia.augmentation": _CLASSES,
    "kornia.losses": r"\w+",
    **{f"torchvision.models{part}": r"[A-Za-z]\w*" for part in ("", ".detection", ".segmentation", ".video")},
    **{f"torchmetrics{part}": _CLASSES for part in ("", ".classification", ".regression", ".image", ".text")},
}
"""Modules of known packages, and which of their names a config may use."""

# torch as a whole holds `torch.load` and `torch.hub`; a library of parts only may be trusted by its first name.
_LIBRARY_ROOTS = {name if name.startswith("torch.") else name.split(".")[0] for name in LIBRARIES}
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*(\.[A-Za-z][A-Za-z0-9_]*)*")
_trusted: set[str] = set()
_folders: list[Path] = []


class NoFolderError(ConfigError):
    """A component is nowhere; it may lie beside its config, whose folder is not in use."""


@dataclass(frozen=True)
class _Target:
    module: str
    attribute: str
    file: Path | None = None  # of a module in the config's folder


def trust(names: Iterable[str]) -> None:
    """Lets configs name anything in these packages. Only a person at the command line can say so.

    Args:
        names: Packages; a name with a slash is a folder, and becomes the first home of every kind.
    """
    for name in names:
        if "/" in name:
            use_folder(Path(name))
        else:
            _trusted.add(name)


def use_folder(folder: Path | None) -> None:
    """Makes the folder of the config the first home of every kind; `None` forgets it."""
    sys.path[:] = [entry for entry in sys.path if Path(entry) not in _folders]
    _folders[:] = [folder.resolve()] if folder is not None and folder.resolve() != PROJECT_ROOT else []


def folder_to_record() -> str | None:
    """Returns the folder in use as a checkpoint keeps it: relative to the project, `None` for one outside of it."""
    inside = [folder for folder in _folders if folder.is_relative_to(PROJECT_ROOT)]
    return inside[0].relative_to(PROJECT_ROOT).as_posix() if inside else None


def use_recorded_folder(recorded: str | None) -> None:
    """Uses the folder that a checkpoint names if it is one of the project's own.

    A checkpoint may be a stranger's, and so may be all that came with it into the folder of runs.
    """
    folder = (PROJECT_ROOT / (recorded or ".")).resolve()
    use_folder(folder if is_own_folder(folder) and folder.is_dir() else None)


def vouched_for() -> tuple[list[str], list[Path]]:
    """Returns what is in use besides the project's rooms: packages, and folders."""
    return sorted(_trusted), list(_folders)


def find(kind: str, name: str) -> Callable[..., Any]:
    """Returns the class or function that a config names.

    Args:
        kind: A key of `HOMES`: `model`, `optimizer`, ...
        name: `LeNet`, `lenet.LeNet`, `torch.optim.AdamW`, ...

    Raises:
        ConfigError: There is no such name, it may not be used, it is of another kind, or its file can't be imported.
    """
    word = WORDS.get(kind, kind)
    if not isinstance(name, str) or not _NAME.fullmatch(name) or "__" in name:
        raise ConfigError(f"{word} {found(name)} is not a name such as `file.Class`")
    target = _locate(kind, name)
    if target is None:
        raise (ConfigError if _folders else NoFolderError)(_unknown(kind, name))
    part: Any = _imported(target)
    for attribute in target.attribute.split("."):
        try:
            part = getattr(part, attribute)
        except AttributeError:
            raise ConfigError(f"{target.module} has no `{attribute}`") from None
    is_torch_class = isinstance(part, type) and kind in ("model", "module", "loss", "optimizer", "lr_scheduler")
    if not is_right_kind(kind, part) or not (is_torch_class or _comes_from_allowed(part)):
        raise ConfigError(f"{name} cannot be used as {word}: it is {described(kind, part)}")
    return part  # type: ignore[no-any-return]


def known_names(kind: str, everywhere: bool = True) -> list[str]:
    """Returns what may be written for a kind, without importing anything; the project's own names come first.

    Args:
        kind: A key of `HOMES`.
        everywhere: Look into the folder of the config, too, and into packages that need not be installed.
    """
    names: dict[str, None] = {}
    for folder in _folders if everywhere else ():
        defined = _defined_in(folder, kind)
        names |= {f"{file.stem}.{name}": None for file, name, each in defined if looks_like(kind, name, each)}
    for home in HOMES[kind]:
        file = module_file(home)
        if file is None or not (everywhere or home.split(".")[0] in ("src", "torch", "sklearn")):
            continue
        if home in LIBRARIES:
            allowed = [name for name in public_names(file) if re.fullmatch(LIBRARIES[home], name)]
            names |= dict.fromkeys(name for name in allowed if is_in_library(kind, name))
        elif file.name == "__init__.py":
            defined = _defined_in(file.parent, kind)
            fitting = [each for each in defined if looks_like(kind, *each[1:]) and is_for_configs(kind, each[2])]
            names |= {f"{file.stem}.{name}": None for file, name, _ in fitting if name not in names}
        else:
            names |= dict.fromkeys(name for name, each in public_names(file).items() if looks_like(kind, name, each))
    return list(names)


def _locate(kind: str, name: str) -> _Target | None:
    """Returns where a name is defined, by the files alone."""
    parts = name.split(".")
    for folder in _folders:
        target = _in_folder(folder, "", parts, kind)
        if target is not None:
            return target
    for home in HOMES[kind]:
        file = module_file(home)
        if file is None:
            continue
        if home in LIBRARIES:
            if len(parts) == 1 and re.fullmatch(LIBRARIES[home], name) and name in public_names(file):
                return _Target(home, name)
        elif file.name == "__init__.py":
            own = parts[2:] if name.startswith(home + ".") else parts
            target = _in_folder(file.parent, home + ".", own, kind)
            if target is not None:
                return target
        elif name in (parts[-1], f"{home}.{parts[-1]}") and parts[-1] in public_names(file):
            return _Target(home, parts[-1])
    return _in_library(name)


def _in_folder(folder: Path, package: str, parts: list[str], kind: str) -> _Target | None:
    """Looks for `file.Name`, or for a bare `Name` that one of the files defines."""
    *modules, name = parts
    if modules:
        file = source_file(folder.joinpath(*modules))
        if file is None or (name not in public_names(file) and public_names(file)):
            return None
        return _Target(package + ".".join(modules), name, None if package else file)
    files = [file for file, defined, _ in _defined_in(folder, kind) if defined == name]
    if len(files) > 1:
        choices = " or ".join(f"{file.stem}.{name}" for file in files)
        raise ConfigError(f"{kind} {name} is defined in several files; write {choices}")
    return _Target(package + files[0].stem, name, None if package else files[0]) if files else None


def _defined_in(folder: Path, kind: str) -> Iterator[tuple[Path, str, Definition]]:
    """Yields what the files of a folder define, save the files that are homes of other kinds."""
    for file in sorted(folder.glob("*.py")):
        home = f"src.{folder.name}.{file.stem}"
        is_of_others = any(home in homes for homes in HOMES.values()) and home not in HOMES[kind]
        if file.stem != "__init__" and not (is_of_others and folder.parent == PROJECT_ROOT / "src"):
            yield from ((file, name, each) for name, each in public_names(file).items() if each.how in ("class", "def"))


def _in_library(name: str) -> _Target | None:
    """Looks for a full dotted name in the known and the trusted packages."""
    for module in sorted(LIBRARIES, key=len, reverse=True):
        rest = name.removeprefix(module + ".")
        if rest != name and re.fullmatch(LIBRARIES[module], rest):
            if find_spec(module.split(".")[0]) is None:
                raise ConfigError(not_installed(name, module.split(".")[0]))
            return _Target(module, rest)
    module, _, attribute = name.rpartition(".")
    is_trusted = any(module == package or module.startswith(package + ".") for package in _trusted)
    return _Target(module, attribute) if module and is_trusted else None


def _imported(target: _Target) -> Any:
    """Imports a module; its own failure is reported with the line that failed."""
    if target.file is not None and str(target.file.parent) not in sys.path:
        sys.path.append(str(target.file.parent))  # after all others: a file there must not hide an installed module
    try:
        module = import_module(target.module)
    except KeelError:
        raise
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{_failed_line(error, target.module)}: {type(error).__name__}: {error}") from error
    if target.file is not None and Path(module.__file__ or "").resolve() != target.file.resolve():
        raise ConfigError(f"{shown_path(target.file)}: another module is called `{target.module}`; rename the file")
    return module


def _failed_line(error: BaseException, module: str) -> str:
    """Returns `file:line` of the line whose import failed."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{shown_path(Path(error.filename))}:{error.lineno}"
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<frozen")]
    own = [frame for frame in own if frame.filename != __file__] or own
    return f"{shown_path(Path(own[-1].filename))}:{own[-1].lineno}" if own else f"import of {module}"


def _comes_from_allowed(part: Any) -> bool:
    """Refuses what a file of ours merely imported from elsewhere, such as `os.system`."""
    module = str(getattr(inspect.unwrap(getattr(part, "func", part)), "__module__", ""))
    roots = {"src", *_trusted, *_LIBRARY_ROOTS, *(file.stem for folder in _folders for file in folder.glob("*.py"))}
    return any(module == root or module.startswith(root + ".") for root in roots)


def _unknown(kind: str, name: str) -> str:
    names = known_names(kind)
    beside = [f"{file.stem}.{each}" for folder in _folders for file, each, _ in _defined_in(folder, kind)]
    meant = dict.fromkeys([*names, *beside])
    close = nearest(name, meant) or nearest(name, [each.rpartition(".")[2] for each in meant])
    looked = listed([*map(shown_path, _folders), *map(_shown_home, HOMES[kind])])
    *modules, last = name.split(".")
    files = [source_file(folder.joinpath(*modules)) for folder in _folders if modules]
    files += [module_file(".".join([home, *modules])) for home in HOMES[kind] if modules and home not in LIBRARIES]
    for file in filter(None, files):
        own = [each for each, definition in public_names(file).items() if definition.how != "import"]
        return f"{shown_path(file)} has no `{last}`{did_you_mean(last, own)}"
    package = name.split(".")[0]
    if "." in name and close is None and find_spec(package) is not None:
        return (
            f"`{name}` is neither in this project nor on the short list of package modules that a config may name; "
            f"vouch for a package of your own with `--trust {package}`; looked in {looked}"
        )
    hint = f"; did you mean `{close}`?" if close else ""
    return f"unknown {WORDS.get(kind, kind)} `{name}`{hint}; known: {listed(names, 12)}; looked in {looked}"


def _shown_home(home: str) -> str:
    file = module_file(home) if home.startswith("src.") else None
    return home if file is None else shown_path(file.parent / "*.py" if file.name == "__init__.py" else file)
