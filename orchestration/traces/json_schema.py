"""The JSON Schema of a trace's lines, made from the record classes. `docs/trace.schema.json` is what it makes."""

import ast
import inspect
import json
import types
from collections.abc import Mapping
from typing import Any, Union, get_args, get_origin

from orchestration.traces.schema import EVENTS, OTHERS, SCHEMA, defaults_of, hints_of

_PLAIN: Mapping[Any, dict[str, Any]] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    type(None): {"type": "null"},
    Any: {},
}
_IMPLIED = ("id", "seq", "agent", "parents")
"""What a line of an event may leave out, as it follows from the lines before."""
_IMPLIED_STEP = (*_IMPLIED, "step", "action_name", "policy_version", "screen")
_ROWS = {
    "rows": {
        "description": "Instead of `screen`: the rows that differ from the screen before, as number and text.",
        "type": "array",
        "items": {
            "type": "array",
            "prefixItems": [{"type": "integer", "minimum": 0}, {"type": "string"}],
            "items": False,
            "minItems": 2,
        },
    },
    "height": {"description": "With `rows`: the number of rows, where it changed.", "type": "integer", "minimum": 1},
    "paid": {"description": "The environment's `reward` event follows, which the line stands for too.", "const": True},
}


def line_schema() -> dict[str, Any]:
    """The schema of one line, whatever its record."""
    kinds: dict[str, type[Any]] = {**OTHERS, **EVENTS}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": SCHEMA,
        "title": "A line of a Yendor trace",
        "description": "A file is a header, then captions, texts and events, then an end. "
        "Rules between lines are checked by `yendor trace validate`.",
        "oneOf": [{"$ref": f"#/$defs/{name}"} for name in kinds],
        "$defs": {name: _record(name, kind) for name, kind in kinds.items()},
    }


def schema_text() -> str:
    """The schema as it is published."""
    return json.dumps(line_schema(), indent=2, ensure_ascii=False) + "\n"


def _record(name: str, kind: type[Any]) -> dict[str, Any]:
    is_event = name in EVENTS
    properties: dict[str, Any] = {"record": {"const": "event" if is_event else name}}
    if is_event:
        properties["type"] = {"const": name}
    comments, required = _comments(kind), list(properties)
    implied = _IMPLIED_STEP if name == "env_step" else _IMPLIED if is_event else ()
    for field, hint in hints_of(kind).items():
        properties[field] = _described(_of(hint), comments.get(field))
    for field, needed in defaults_of(kind).items():
        if needed and field not in implied:
            required.append(field)
    if name == "header":
        properties["schema"] = _described({"const": SCHEMA}, comments.get("schema"))
    if name == "env_step":
        properties |= _ROWS
    if is_event:
        properties["t"] |= {"minimum": 0}
        properties["duration"] |= {"minimum": 0}
        properties["seq"] |= {"minimum": 0}
    return {
        "description": inspect.cleandoc(kind.__doc__ or ""),
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _of(hint: Any) -> dict[str, Any]:
    if hint in _PLAIN:
        return dict(_PLAIN[hint])
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return {"anyOf": [_of(part) for part in parts]}
    if origin is tuple:
        return {"type": "array", "items": _of(parts[0])}
    if origin is Mapping:
        return {"type": "object", "additionalProperties": _of(parts[1])}
    raise TypeError(f"no JSON Schema for {hint!r}")


def _described(schema: dict[str, Any], comment: str | None) -> dict[str, Any]:
    return schema if comment is None else {"description": comment, **schema}


def _comments(kind: type[Any]) -> dict[str, str]:
    """The text under each field, also of the classes that `kind` derives from."""
    found: dict[str, str] = {}
    for parent in reversed(kind.__mro__[:-1]):
        tree = ast.parse(inspect.getsource(parent)).body[0]
        assert isinstance(tree, ast.ClassDef)
        for field, text in zip(tree.body, tree.body[1:], strict=False):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
                and isinstance(text.value.value, str)
            ):
                found[field.target.id] = inspect.cleandoc(text.value.value)
    return found
