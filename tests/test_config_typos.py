"""A law of shipped configs: whichever key is mistyped, the report says where, and what was meant."""

from __future__ import annotations

import random
import shutil
import string
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from src.config import load_config
from src.config.registry import use_folder
from src.config.signatures import check_components
from src.sweep.space import check_space
from src.utils.errors import ConfigError
from tests.conftest import ROOT

SHIPPED = sorted((ROOT / "configs").rglob("*.yaml"))


def keys_in(node: yaml.Node, path: tuple[str, ...] = ()) -> Iterator[tuple[yaml.ScalarNode, tuple[str, ...], set[str]]]:
    """Each key of a file: where it is, its path, and the keys beside it."""
    if isinstance(node, yaml.MappingNode):
        names = {key.value for key, _ in node.value}
        for key, child in node.value:
            yield key, (*path, key.value), names
            yield from keys_in(child, (*path, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for index, child in enumerate(node.value):
            yield from keys_in(child, (*path, str(index)))


def typos(word: str, chance: random.Random, each: int) -> Iterator[str]:
    """Words that differ from this one by a letter dropped, added or changed, or by two that changed places."""
    for _ in range(each):
        index, letter = chance.randrange(len(word)), chance.choice(string.ascii_lowercase + "_")
        yield word[:index] + word[index + 1 :]
        yield word[:index] + letter + word[index:]
        yield word[:index] + letter + word[index + 1 :]
        yield word[:index] + word[index : index + 2][::-1] + word[index + 2 :]


@pytest.mark.parametrize("shipped", SHIPPED, ids=lambda path: path.relative_to(ROOT / "configs").as_posix())
@pytest.mark.parametrize("each", [1, pytest.param(40, marks=pytest.mark.full)])
def test_a_typo_of_any_key_is_reported_where_it_is_with_what_was_meant(
    shipped: Path, each: int, tmp_path: Path
) -> None:
    copies = tmp_path / "configs"
    shutil.copytree(ROOT / "configs", copies, ignore=lambda _, names: [n for n in names if n.endswith(".py")])
    copy, text = copies / shipped.relative_to(ROOT / "configs"), shipped.read_text(encoding="utf-8")
    root = yaml.compose(text)
    assert root is not None
    use_folder(shipped.parent)
    missed = list(_missed(copy, text, root, each))
    assert not missed, "\n".join(missed)


def _missed(copy: Path, text: str, root: yaml.Node, each: int) -> Iterator[str]:
    chance = random.Random(copy.name)
    for key, path, beside in keys_in(root):
        for typo in {*typos(key.value, chance, each)} - beside - {""}:
            copy.write_text(text[: key.start_mark.index] + typo + text[key.end_mark.index :], encoding="utf-8")
            where = f"{copy}:{key.start_mark.line + 1}:{key.start_mark.column + 1} {'.'.join(path[:-1])}"
            try:
                config = load_config(copy)
                check_components(config)
                if config.tune:
                    check_space(config)
            except ConfigError as error:
                lines = [
                    line
                    for line in str(error).splitlines()
                    if line.startswith(where) and f"{typo}: " in line and "unknown" in line
                ]
                meant = {f"`{key.value}`", *(f"`{word}`" for word in key.value.split("."))}  # of a sweep: a dotted key
                if not any(word in line.partition("did you mean")[2] for line in lines for word in meant):
                    yield f"{where}, {typo}: {error}"
            else:
                yield f"{where}, {typo}: nothing was said"
