"""Which keys a config file may have: one tree made of the settings classes, for `--explain` and the JSON Schema."""

from __future__ import annotations

import re
import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass, replace
from typing import Any, Union, get_args, get_origin

from src.config.manual import field_docs, one_line
from src.config.schema import annotations_of
from src.config.settings import Component, Config, DataSettings, PartSettings
from src.data.settings import SplitSettings

PART_PATTERN = r"^(train|val|test|val_.+|test_.+)$"


@dataclass(frozen=True)
class Form:
    """What one key means, and which keys may stand below it."""

    means: str
    annotation: Any
    default: Any = ...
    """`...` when the key must be given, or stands for a section whose keys have defaults of their own."""

    is_required: bool = False
    keys: Mapping[str, Form] = field(default_factory=dict)
    inner: Form | None = None
    """The items of a list, or what stands below names that a user gives."""

    pattern: str = ""
    """Which names a user may give besides `keys`; empty when only in place of them."""

    def below(self, key: str) -> Form | None:
        """Returns the form of a key below this one; `None` when there can be none."""
        if key in self.keys:
            return self.keys[key]
        return self.inner if re.search(self.pattern, key) else None


def config_form() -> Form:
    """Returns the form of a whole config file."""
    keys = _keys_of(Config, leave_out=("part_loaders", "places"))
    component = _keys_of(Component)
    part = Form("One part of the data.", PartSettings, keys=_part_keys(component))
    split = Form(field_docs(DataSettings)["split"], SplitSettings | None, None, keys=_keys_of(SplitSettings))
    common = _form(DataSettings, _fields_of(DataSettings)["transforms"])
    data_keys = {**_part_keys(component), "transforms": common, "split": split}
    keys["data"] = replace(keys["data"], keys=data_keys, inner=part, pattern=PART_PATTERN)
    loader = keys["loader"]
    keys["loader"] = replace(loader, inner=replace(loader, means="What differs for this part."), pattern=PART_PATTERN)
    name = Form("What it is logged as. Default: the last word of `type`.", str, None)
    metric = Form("A metric.", Component, keys={"name": name, **component})
    keys["metrics"] = replace(keys["metrics"], annotation=tuple[Component, ...], inner=metric)
    keys["task"] = replace(keys["task"], inner=Form("An argument of the default task.", Any, None), pattern=".")
    base = Form(
        "File, or list of files, that lie below this one: each gives what the files above leave out.", Any, None
    )
    return Form("A whole experiment.", Config, keys={"base": base, **keys})


def _part_keys(component: Mapping[str, Form]) -> dict[str, Form]:
    given = {key: replace(each, is_required=False) for key, each in component.items()}
    return {**given, "transforms": _form(PartSettings, _fields_of(PartSettings)["transforms"])}


_MEANT = {"sampler": Component | None, "batch_sampler": Component | None, "sinks": tuple[Component, ...]}
"""Fields below floor 3, which cannot name `Component`."""


def _form(owner: type, each: Field[Any]) -> Form:
    annotation = _MEANT.get(each.name, annotations_of(owner)[each.name])
    settings, inner = _settings_in(annotation), _inner_of(annotation)
    means = field_docs(owner).get(each.name) or one_line((settings or owner).__doc__ or "")
    return Form(
        means,
        annotation,
        ... if each.default is MISSING else each.default,
        is_required=each.default is MISSING and each.default_factory is MISSING,
        keys=_keys_of(settings) if settings is not None else {},
        inner=inner,
    )


def _keys_of(cls: type, leave_out: tuple[str, ...] = ()) -> dict[str, Form]:
    return {name: _form(cls, each) for name, each in _fields_of(cls).items() if name not in (*leave_out, "place")}


def _fields_of(cls: Any) -> dict[str, Field[Any]]:
    return {each.name: each for each in fields(cls)}


def arms_of(annotation: Any) -> tuple[Any, ...]:
    """Returns the members of a union, or the one annotation."""
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def _settings_in(annotation: Any) -> Any:
    return next((arm for arm in arms_of(annotation) if _is_settings(arm)), None)


def _inner_of(annotation: Any) -> Form | None:
    """Returns the form of list items, or of values by name, where they are settings."""
    settings = next((each for arm in arms_of(annotation) for each in get_args(arm) if _is_settings(each)), None)
    return None if settings is None else Form(one_line(settings.__doc__ or ""), settings, keys=_keys_of(settings))


def _is_settings(annotation: Any) -> bool:
    return isinstance(annotation, type) and is_dataclass(annotation)
