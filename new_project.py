"""Start a project of your own: `python new_project.py ../mine --task classification`.

Copies the framework, one working example of that kind with a test, and a Makefile. Yours is what stands in the folder
named after the task; everything else can be renewed from a newer clone with `python new_project.py ../mine --update`.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from src.config.command_line import Parser
from src.utils.command import run_command
from src.utils.errors import ConfigError
from src.utils.paths import PROJECT_ROOT

EXAMPLES = PROJECT_ROOT / "examples"
TASKS = {
    "classification": EXAMPLES / "start" / "classification",
    "regression": EXAMPLES / "start" / "regression",
    "text": EXAMPLES / "start" / "text",
    "gan": EXAMPLES / "dcgan",
}
COMMON = EXAMPLES / "start" / "common"
"""Files of a new project that are its own: README, Makefile, test, CI."""
FRAMEWORK = ("*.py", "src/**/*", "configs/schema.json", "pyproject.toml", "constraints.txt", "LICENSE", ".gitignore")
MANIFEST = ".keel.json"
"""Which files came from here, and what they were, so that an update never writes over what was changed."""


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    parser = Parser("new_project.py", "new_project.py FOLDER (--task TASK | --update)", __doc__)
    parser.add_argument("folder", type=Path, help="where it goes; must not exist, or be empty")
    parser.add_argument("--task", choices=TASKS, help="which example to start from")
    parser.add_argument("--update", action="store_true", help="renew the framework in a project made before")
    parser.add_argument("--traceback", action="store_true", help="show the whole traceback of an error")
    options = parser.parse_args(argv)
    if options.update == (options.task is not None):
        parser.error("say --task classification, regression, text or gan; or --update")
    folder: Path = options.folder
    if folder.resolve().is_relative_to(PROJECT_ROOT):
        raise ConfigError(f"{folder}: lies within this clone; name a folder outside, such as ../mine")
    if options.update:
        print(*update(folder), sep="\n")
    else:
        print(*create(folder, options.task), sep="\n")
    return 0


def create(folder: Path, task: str) -> list[str]:
    """Write a new project, and return what to tell.

    Raises:
        ConfigError: There is something in `folder` already, or it cannot be written.
    """
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise ConfigError(f"{folder}: is not empty; name a new folder, or renew the framework there with --update")
    source = TASKS[task]
    config = next(source.glob("*.yaml"))
    try:
        write_framework(folder)
        for path in sorted(source.iterdir()):
            if path.is_file():
                copy_example(path, folder / task / path.name, source, task)
        for path in sorted(each for each in COMMON.rglob("*") if each.is_file()):
            text = path.read_text(encoding="utf-8")
            target = folder / path.relative_to(COMMON)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text.replace("TASK/CONFIG", f"{task}/{config.name}").replace("TASK", task), "utf-8")
        (folder / "saved").mkdir()
        (folder / "saved" / ".gitkeep").touch()
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written: {error.strerror}") from None
    return [
        f"{folder}: yours is {folder / task}; the rest can be renewed with --update",
        f"next:  cd {folder} && make train",
    ]


def copy_example(path: Path, target: Path, source: Path, task: str) -> None:
    """Copy one file of an example; a config that names files of the example's folder names them where they are now."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".yaml":
        here = source.relative_to(PROJECT_ROOT).as_posix()
        target.write_text(path.read_text(encoding="utf-8").replace(f"{here}/", f"{task}/"), encoding="utf-8")
    else:
        shutil.copyfile(path, target)


def update(folder: Path) -> list[str]:
    """Renew the framework in `folder`, and return what to tell. Files that were changed there stay as they are.

    Raises:
        ConfigError: No project was made there, or it cannot be written.
    """
    try:
        before: dict[str, str] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ConfigError(f"{folder}: has no {MANIFEST}, so it was not made by this command; see --task") from None
    now = {path.relative_to(PROJECT_ROOT).as_posix() for path in framework_files()}
    changed = [name for name in {*before, *now} if is_changed(folder, name, before.get(name))]
    for name in set(before) - now - set(changed):
        (folder / name).unlink(missing_ok=True)
    try:
        write_framework(folder, leave_out=changed)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written: {error.strerror}") from None
    return [
        f"{folder}: {len(now) - len(set(changed) & now)} files are as here",
        *(f"kept, changed there: {name}" for name in sorted(changed)),
    ]


def is_changed(folder: Path, name: str, written: str | None) -> bool:
    """Return whether a file of the project is neither what was written there nor what would be: the user's own work."""
    path = folder / name
    return path.is_file() and digest(path) not in (written, digest(PROJECT_ROOT / name))


def write_framework(folder: Path, leave_out: Sequence[str] = ()) -> None:
    """Copy the framework, each file whole or not at all, and note what was copied."""
    written = {}
    for source in framework_files():
        name = source.relative_to(PROJECT_ROOT).as_posix()
        written[name] = digest(source)
        if name in leave_out:
            continue
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.part")
        shutil.copyfile(source, partial)
        partial.replace(target)
    (folder / MANIFEST).write_text(json.dumps(written, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def framework_files() -> Iterator[Path]:
    """Yield the files that a project needs of this one."""
    for pattern in FRAMEWORK:
        for path in sorted(PROJECT_ROOT.glob(pattern)):
            if path.is_file() and "__pycache__" not in path.parts:
                yield path


def digest(path: Path) -> str:
    """Return the SHA-256 of a file; empty where there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
