"""Records as lines of JSON and back: one object a line, tags first, fields that have their default left out."""

import dataclasses
import types
from collections.abc import Mapping
from typing import Any, Union, get_args, get_origin, get_type_hints

import orjson

from orchestration.errors import TraceError
from orchestration.traces.schema import EVENTS, OTHERS, Event, Record


def tree_of(record: Record) -> dict[str, Any]:
    """The JSON object of a record: tags first, fields that have their default left out."""
    kind = type(record)
    tree: dict[str, Any] = {"record": record.record}
    if isinstance(record, Event):
        tree["type"] = record.type
    for name, default in _DEFAULTS[kind]:
        value = getattr(record, name)
        if default is _REQUIRED or value != default or type(value) is not type(default):
            tree[name] = value
    return tree


def encode(record: Record) -> bytes:
    """One line of JSON with its line feed. Numpy scalars are written as the numbers that they are."""
    return orjson.dumps(tree_of(record), option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE)


def parse(line: bytes) -> dict[str, Any]:
    """The JSON object in a line. Raises `TraceError` for anything else."""
    try:
        tree = orjson.loads(line)
    except ValueError as error:
        raise TraceError(f"not JSON: {error}") from error
    if not isinstance(tree, dict):
        raise TraceError("not a JSON object")
    return tree


def decode(line: bytes) -> Record:
    """The record in a line. Raises `TraceError` for one that is not of this schema."""
    return build(parse(line))


def build(tree: dict[str, Any]) -> Record:
    """The record of a JSON object, which is consumed. Raises `TraceError` for one that is not of this schema."""
    name = tree.pop("record", None)
    kind_name = tree.pop("type", None) if name == "event" else name
    kind = (EVENTS if name == "event" else OTHERS).get(str(kind_name))
    if kind is None:
        raise TraceError(f"unknown record {name!r}" + (f" of type {kind_name!r}" if name == "event" else ""))
    return _build(kind, tree)


def _build(kind: type[Any], tree: dict[str, Any]) -> Any:
    types_of, required = _FIELDS[kind], _REQUIRED_FIELDS[kind]
    if not (required <= tree.keys() <= types_of.keys()):
        odd = sorted((required - tree.keys()) | (tree.keys() - types_of.keys()))
        raise TraceError(f"{kind.__name__}: missing or unknown fields: {', '.join(odd)}")
    for name, value in tree.items():
        accepted = types_of[name]
        if type(value) is int and float in accepted and int not in accepted:
            value = tree[name] = float(value)
        if type(value) not in accepted:
            raise TraceError(f"{kind.__name__}.{name}: {value!r} is not of its type")
        if isinstance(value, list):
            tree[name] = _tuple(kind, name, value)
    return kind(**tree)


def _tuple(kind: type[Any], name: str, values: list[Any]) -> tuple[Any, ...]:
    element = _ELEMENTS[kind, name]
    if element is float:
        values = [float(value) if type(value) is int else value for value in values]
    if any(type(value) is not element for value in values):
        raise TraceError(f"{kind.__name__}.{name}: not all of it are of type {element.__name__}")
    return tuple(values)


def hints_of(kind: type[Any]) -> Mapping[str, Any]:
    """The declared types of a record's fields."""
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def defaults_of(kind: type[Any]) -> Mapping[str, bool]:
    """Field: whether it has no default, and so must be in every line."""
    return {name: default is _REQUIRED for name, default in _DEFAULTS[kind]}


def _accepted(hint: Any) -> frozenset[type]:
    """The types that JSON gives for a field of type `hint`."""
    if get_origin(hint) in (Union, types.UnionType):
        return frozenset().union(*(_accepted(part) for part in get_args(hint)))
    origin = get_origin(hint) or hint
    return frozenset({dict if origin is Mapping else list if origin is tuple else origin})


def _element(hint: Any) -> Any:
    """The element type of a tuple, also of an optional one; None for anything else."""
    if get_origin(hint) is tuple:
        return get_args(hint)[0]
    return next((found for part in get_args(hint) if (found := _element(part)) is not None), None)


def _default(field: "dataclasses.Field[Any]") -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    return _REQUIRED if field.default_factory is dataclasses.MISSING else field.default_factory()


_REQUIRED = object()
_KINDS: tuple[type[Any], ...] = (*EVENTS.values(), *OTHERS.values())
_DEFAULTS = {kind: tuple((f.name, _default(f)) for f in dataclasses.fields(kind)) for kind in _KINDS}
_FIELDS = {kind: {name: _accepted(hint) for name, hint in hints_of(kind).items()} for kind in _KINDS}
_REQUIRED_FIELDS = {kind: {name for name, default in _DEFAULTS[kind] if default is _REQUIRED} for kind in _KINDS}
_ELEMENTS = {(kind, name): _element(hint) for kind in _KINDS for name, hint in hints_of(kind).items()}
