"""The JSON Schema of a trace's lines, made from the record classes. `docs/trace.schema.json` is what it makes."""

import ast
import inspect
import json
import types
from collections.abc import Mapping
from typing import Any, Union, get_args, get_origin

from orchestration.traces.codec import defaults_of, hints_of
from orchestration.traces.schema import EVENTS, OTHERS, SCHEMA

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
_IMPLIED_STEP = (*_IMPLIED, "step", "action_name", "policy_version")
_PAID = {"description": "The environment's `reward` event follows, which the line stands for too.", "const": True}
_INDEX: dict[str, Any] = {"type": "integer", "minimum": 0}
_INTEGERS: dict[str, Any] = {"type": "array", "items": {"type": "integer"}}
_COUNTS: dict[str, Any] = {"type": "array", "items": {"type": "integer", "minimum": 0}}
_UNITS: dict[str, Any] = {"type": "array", "items": {"type": ["integer", "null"]}}


def _columns(description: str, required: tuple[str, ...], **properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "description": description,
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name in required],
        "additionalProperties": False,
    }


def _tuples(description: str, *parts: dict[str, Any]) -> dict[str, Any]:
    item = {"type": "array", "prefixItems": list(parts), "items": False, "minItems": len(parts)}
    return {"description": description, "type": "array", "items": item}


_CELLS = _columns(
    "Screens of a terminal, as the spans of cells that differ from the screen before.",
    ("width", "spans", "at", "size", "text", "odd", "ink"),
    width={"description": "Cells of a row.", "type": "integer", "minimum": 1},
    spans={"description": "Of each screen, how many spans it has.", **_COUNTS},
    at={"description": "Of each span, row times width plus column of its first cell.", **_COUNTS},
    size={"description": "Of each span, its cells, all in one row.", **_COUNTS},
    text={"description": "The characters of all spans.", "type": "string"},
    odd={
        "description": "Cells of `text`, each counted from the one before, whose colour is not the guessed one: that of the "
        "same cell before where its character is the same, otherwise that in which the character last appeared.",
        **_COUNTS,
    },
    ink={"description": "The colours of those, a hexadecimal digit each.", "type": "string", "pattern": "^[0-9a-f]*$"},
)
_STEPS = _columns(
    "Several `env_step` that follow one another, as columns.",
    ("record", "t", "dt", "action", "log_prob", "value", "hash"),
    record={"const": "steps"},
    t={"description": "Of the first step, seconds.", "type": "number", "minimum": 0},
    dt={"description": "Of the others, milliseconds since the one before.", **_COUNTS},
    action={"description": "Indices of `action_names`.", **_INTEGERS},
    log_prob={"description": "In units of 1e-4; null where not finite.", **_UNITS},
    value={"description": "In units of 1e-4; null where not finite.", **_UNITS},
    reward={
        "description": "Extrinsic; left out where all are 0. Each that is not 0 stands for a `reward` event, too.",
        "type": "array",
        "items": {"type": "number"},
    },
    hash={"description": "Hashes of the observations, all of the same length, joined.", "type": "string"},
    keys={
        "description": "The same of each array, by its key: two digits each.",
        "type": "object",
        "additionalProperties": {"type": "string"},
    },
    policy=_tuples("Where the policy is another: step of the line, and version.", _INDEX, {"type": "integer"}),
    reward_model=_tuples("The same, of the reward model.", _INDEX, {"type": "integer"}),
    said=_tuples(
        "Where something was said: step of the line, and number of the caption, from 0 in the order of their lines.",
        _INDEX,
        _INDEX,
    ),
    refused={"description": "Steps of the line whose action could not be executed.", **_COUNTS},
    slow=_tuples("Steps of the line that took long, and seconds.", _INDEX, {"type": "number"}),
    skew={"description": "Of all of them, seconds; 0 where it is left out.", "type": "number"},
    cells=_CELLS,
    rows=_tuples(
        "Instead of `cells`: for each screen its number of rows, and those, by number and text, that differ from the screen "
        "before.",
        {"type": "integer", "minimum": 1},
        _tuples("A row.", _INDEX, {"type": "string"}),
    ),
)


def line_schema() -> dict[str, Any]:
    """The schema of one line, whatever its record."""
    kinds: dict[str, type[Any]] = {**OTHERS, **EVENTS}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": SCHEMA,
        "title": "A line of a Yendor trace",
        "description": "A file is a header, then captions, texts and events, then an end. "
        "Rules between lines are checked by `yendor trace validate`.",
        "oneOf": [{"$ref": f"#/$defs/{name}"} for name in (*kinds, "steps")],
        "$defs": {**{name: _record(name, kind) for name, kind in kinds.items()}, "steps": _STEPS},
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
        properties["paid"] = _PAID
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
