"""The JSON Schema of a config, for completion and checks in editors: `python -m src.config.json_schema`."""

from __future__ import annotations

import json
import sys
import types
from dataclasses import is_dataclass
from importlib.metadata import version
from typing import Annotated, Any, Literal, get_args, get_origin

from src.config.forms import Form, arms_of, config_form
from src.config.registry import HOMES, known_names
from src.utils.bounds import Above, AtLeast, Between
from src.utils.paths import PROJECT_ROOT, shown_path

SCHEMA_FILE = PROJECT_ROOT / "configs" / "schema.json"
_NAMED_BY_KEY = ("collate_fn", "worker_init_fn")
"""Keys whose value is the name of a component."""
_SCALARS = {int: "integer", float: "number", bool: "boolean", str: "string", types.NoneType: "null"}
_REFERENCE = {"type": "string", "pattern": r"\$\{.*\}"}


def json_schema() -> dict[str, Any]:
    """Returns the schema. It says less than the program does: arguments are checked by the signature they are for.

    Names of components are offered, not demanded: there may be others beside the config.
    """
    offered = {kind: known_names(kind, everywhere=False) for kind in HOMES}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "A Keel experiment",
        "$comment": f"names of {versions()}",
        **_object(config_form(), ""),
        "definitions": {
            kind: {"anyOf": [*([{"enum": names}] if names else []), {"type": "string"}]}
            for kind, names in offered.items()
        },
    }


def versions() -> str:
    """Returns the packages whose names are offered, and their versions without the last number."""
    return ", ".join(f"{name} {'.'.join(version(name).split('.')[:2])}" for name in ("torch", "scikit-learn"))


def schema_text() -> str:
    """Returns the text of `configs/schema.json`."""
    return json.dumps(json_schema(), indent=1, ensure_ascii=False) + "\n"


def _schema(form: Form, kind: str) -> dict[str, Any]:
    """Returns the schema of the value of one key; components in it are of `kind`."""
    choices = [each for arm in arms_of(form.annotation) for each in _choices(arm, form, kind)]
    value = choices[0] if len(choices) == 1 else {"anyOf": choices}
    is_plain = form.default is None or isinstance(form.default, str | int | float | bool)
    return {"description": form.means, **({"default": form.default} if is_plain else {}), **value}


def _choices(annotation: Any, form: Form, kind: str) -> list[dict[str, Any]]:
    """Returns the schemas of what one member of a union allows."""
    origin = get_origin(annotation)
    if annotation is Any:
        return [{}]
    if origin is Annotated:
        plain, *bounds = get_args(annotation)
        return [_choices(plain, form, kind)[0] | _limits(bounds), _REFERENCE]
    if origin is Literal:
        return [{"enum": list(get_args(annotation))}]
    if annotation in _SCALARS:
        is_text = annotation in (str, types.NoneType)
        return [{"type": _SCALARS[annotation]}, *([] if is_text else [_REFERENCE])]
    if is_dataclass(annotation):
        return [*([_offered(kind)] if "type" in form.keys else []), _object(form, kind)]
    below = {} if form.inner is None else _schema(form.inner, kind)
    if origin is tuple:
        return [{"type": "array", "items": below}]
    return [{"type": "object", "additionalProperties": below or True}]


def _offered(kind: str) -> dict[str, Any]:
    return {"$ref": f"#/definitions/{kind}"}


def _object(form: Form, kind: str) -> dict[str, Any]:
    """Returns the schema of a mapping with known keys, and with names of the user's where the form has a pattern."""
    required = [name for name, key in form.keys.items() if key.is_required]
    kinds = {name: name if name in HOMES else kind for name in form.keys}
    keys = {name: _schema(key, kinds[name]) for name, key in form.keys.items()}
    for name in keys.keys() & {"type", *_NAMED_BY_KEY}:
        means = {"description": keys[name]["description"]}
        empty = [] if name == "type" else [{"type": "null"}]
        keys[name] = means | {"anyOf": [_offered(kinds[name]), *empty]}
    patterns = {form.pattern: _schema(form.inner, kind)} if form.pattern and form.inner is not None else {}
    return {
        "type": "object",
        "properties": keys,
        **({"patternProperties": patterns} if patterns else {}),
        "additionalProperties": False,
        **({"required": required} if required and form.pattern != "." and "base" not in form.keys else {}),
    }


def _limits(bounds: list[Any]) -> dict[str, float]:
    limits: dict[str, float] = {}
    for bound in bounds:
        if isinstance(bound, Above):
            limits["exclusiveMinimum"] = bound.low
        elif isinstance(bound, AtLeast | Between):
            limits["minimum"] = bound.low
        if isinstance(bound, Between):
            limits["exclusiveMaximum"] = bound.high
    return limits


if __name__ == "__main__":
    SCHEMA_FILE.write_text(schema_text(), encoding="utf-8")
    print(f"wrote {shown_path(SCHEMA_FILE)}", file=sys.stderr)
