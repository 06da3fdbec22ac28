"""Layers of one config: `base:` files below, the file itself, and the command line on top, merged into one tree."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from src.config.mistakes import Mistakes, did_you_mean, printable
from src.config.tune import KINDS
from src.config.yaml_file import Node, read_file, read_text
from src.utils.errors import ConfigError

_COMPONENT_SECTIONS = ("data", "model", "loss", "optimizer", "lr_scheduler", "task")
_SEVERAL_BY_NAME = ("model", "loss", "optimizer", "lr_scheduler")
_KEYS_OF_ONE = {"type", "args", "weight", "every", "warmup_steps", "monitor"}


def read_layers(path: Path, overrides: Sequence[str], mistakes: Mistakes) -> Node:
    """Reads a config file over its bases and under the overrides."""
    return apply_overrides(_with_bases(path, (), {}, mistakes), overrides, mistakes)


def apply_overrides(node: Node, overrides: Sequence[str], mistakes: Mistakes) -> Node:
    """Merges `key.path=value` texts, in order, over a config."""
    node = _with_task_args(node)
    for number, override in enumerate(overrides, start=1):
        place = f"command line #{number}"
        key_path, equals, text = override.partition("=")
        keys = key_path.strip().split(".")
        if not equals or not all(keys):
            mistakes.add_at(place, f"KEY=VALUE is needed, found '{printable(override)}'; e.g. trainer.epochs=20")
            continue
        layer = read_text(text, place, mistakes, positions=False) or Node(None, place)
        if known := _names_in(node, keys):
            what = f"there is no `{keys[1]}`{did_you_mean(keys[1], known)}; only a config file adds one"
            mistakes.add_at(f"{place} {'.'.join(keys[:2])}", what)
            continue
        node = laid_over(node, _with_key_of_space(keys), layer, mistakes)
    return node


def _names_in(node: Node, keys: Sequence[str]) -> list[str]:
    """Returns the names in a section of several models or losses, if `keys` lead to another one in it."""
    section = node.value.get(keys[0])
    if len(keys) < 2 or keys[0] not in ("model", "loss") or section is None or not isinstance(section.value, dict):
        return []
    return [] if _is_one(section.value) or keys[1] in {*section.value, *_KEYS_OF_ONE} else [*map(str, section.value)]


def _with_key_of_space(keys: list[str]) -> list[str]:
    """Takes what stands behind `tune.space` for the one key that it is, with dots of its own."""
    if keys[:2] != ["tune", "space"]:
        return keys
    end = len(keys) - (len(keys) > 3 and keys[-1] in KINDS)
    return [*keys[:2], *filter(None, [".".join(keys[2:end])]), *keys[end:]]


def laid_over(node: Node, keys: Sequence[str], value: Node, mistakes: Mistakes) -> Node:
    """Merges one value over a config, as an override does."""
    layer = value
    for key in reversed(keys):
        layer = Node({key: layer}, value.place)
    return Node(_merged(node, _with_task_args(layer), (), mistakes).value, node.place)


def _with_bases(path: Path, below: tuple[Path, ...], done: dict[Path, Node], mistakes: Mistakes) -> Node:
    """Reads a file and merges it over the files its `base:` names, which are relative to it."""
    real = path.resolve()
    if real in below:
        chain = " -> ".join(each.name for each in (*below[below.index(real) :], real))
        raise ConfigError(f"{path}: `base:` goes round in a circle: {chain}")
    if real in done:
        return done[real]
    node = _with_task_args(read_file(path, mistakes))
    entries = dict(node.value)
    base = entries.pop("base", None)
    result = Node(entries, node.place)
    if base is not None:
        names = base.value if isinstance(base.value, list) else [base]
        merged = Node({}, node.place)
        for name in names:
            if not isinstance(name.value, str):
                mistakes.add_at(f"{name.place} base", "a file name, or a list of file names, is needed")
                continue
            try:
                layer = _with_bases(path.parent / name.value, (*below, real), done, mistakes)
            except ConfigError as error:
                if "no such file" in str(error) and path.parent / name.value == Path(str(error).partition(":")[0]):
                    raise ConfigError(f"{name.place} base: {error}") from None
                raise
            merged = _merged(merged, layer, (), mistakes)
        result = Node(_merged(merged, result, (), mistakes).value, node.place)
    done[real] = result
    return result


def _merged(below: Node, above: Node, path: tuple[str | int, ...], mistakes: Mistakes) -> Node:
    """Merges mappings key by key; anything else, lists too, is replaced by what lies above."""
    below, above = _as_components(below, above, path)
    if isinstance(below.value, list) and isinstance(above.value, dict) and above.value:
        return _merged_items(below, above, path, mistakes)
    if not isinstance(below.value, dict) or not isinstance(above.value, dict):
        return above
    if path[:-1] == ("tune", "space"):
        return above  # where values come from is said once
    if len(path) == 1 and path[0] in _SEVERAL_BY_NAME:
        one_for_several = "type" in above.value and not _is_one(below.value)
        several_for_one = "type" in below.value and _are_whole(above.value)
        if one_for_several or several_for_one:
            return above
    entries = dict(below.value)
    if "type" in above.value and "type" in entries and above.value["type"].value != entries["type"].value:
        for key in ("args", *(("every", "monitor") if path[:1] == ("lr_scheduler",) else ())):
            entries.pop(key, None)  # the arguments of another type mean nothing to this one
    for key, child in above.value.items():
        if key not in entries and isinstance(key, str) and key.isdecimal() and int(key) in entries:
            key = int(key)
        if path == ("tune", "space") and child.value is None and key in entries:
            del entries[key]  # it is searched no more
            continue
        entries[key] = _merged(entries[key], child, (*path, key), mistakes) if key in entries else child
    return Node(entries, above.place)


def _is_one(section: dict[str | int, Node]) -> bool:
    """Says whether a section is one component, or nothing yet, and not several by name."""
    return not section or not _KEYS_OF_ONE.isdisjoint(section)


def _are_whole(section: dict[str | int, Node]) -> bool:
    """Says whether a section is several by name, each with its `type`: a misspelt key of one is not."""
    return bool(section) and all(isinstance(each.value, dict) and "type" in each.value for each in section.values())


def _as_components(below: Node, above: Node, path: tuple[str | int, ...]) -> tuple[Node, Node]:
    """Writes a bare component name as `{type: name}` where the other layer has the long form."""
    if isinstance(above.value, str) and isinstance(below.value, dict) and "type" in below.value:
        above = Node({"type": above}, above.place)
    if isinstance(below.value, str) and isinstance(above.value, dict):
        is_section = (len(path) == 1 and path[0] in _COMPONENT_SECTIONS) or (len(path) == 2 and path[0] == "data")
        if is_section or "args" in above.value:
            below = Node({"type": below}, below.place)
    return below, above


def _merged_items(below: Node, above: Node, path: tuple[str | int, ...], mistakes: Mistakes) -> Node:
    """Changes single items of a list: `metrics.0.args.k=3`."""
    if not all(str(key).isdecimal() for key in above.value):
        return above
    items = list(below.value)
    for key, child in above.value.items():
        index = int(key)
        if index < len(items):
            items[index] = _merged(items[index], child, (*path, index), mistakes)
        else:
            where = ".".join(str(each) for each in (*path, key))
            mistakes.add_at(f"{child.place} {where}", f"no such item; the list has {len(items)}, counted from 0")
    return Node(items, below.place)


def _with_task_args(config: Node) -> Node:
    """Writes `task: {inputs: x}` as `task: {args: {inputs: x}}`: keys of a task without a type are its arguments."""
    task = config.value.get("task") if isinstance(config.value, dict) else None
    if task is None or not isinstance(task.value, dict) or {"type", "args"} & task.value.keys():
        return config
    return Node({**config.value, "task": Node({"args": task}, task.place)}, config.place)
