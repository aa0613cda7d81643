"""The keys of a configuration: which there are, of which type, and what a misspelt one was meant to be."""

import dataclasses
import difflib
import types
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints

from orchestration.config import Config
from orchestration.errors import ConfigError

_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false", dict: "a mapping"}


@dataclasses.dataclass(frozen=True)
class KeyType:
    """What a key may hold: one of `str`, `int`, `float`, `bool`, `dict` (free keys below it), and perhaps null."""

    kind: type
    optional: bool = False

    @property
    def words(self) -> str:
        """How an error message calls it."""
        return f"{_WORDS[self.kind]} or null" if self.optional else _WORDS[self.kind]


@cache
def key_types() -> Mapping[str, KeyType]:
    """Every key of the schema, in the schema's order, with its type."""
    return dict(_walk(Config, ""))


def _walk(schema: type, prefix: str) -> Iterator[tuple[str, KeyType]]:
    hints = get_type_hints(schema)
    for field in dataclasses.fields(schema):
        hint, key = hints[field.name], prefix + field.name
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            yield from _walk(hint, f"{key}.")
        else:
            yield key, _key_type(hint, key)


def _key_type(hint: Any, key: str) -> KeyType:
    optional = get_origin(hint) in (Union, types.UnionType)
    if optional:
        hints = [part for part in get_args(hint) if part is not type(None)]
        if len(hints) != 1:
            raise TypeError(f"{key}: the configuration cannot hold {hint}")
        hint = hints[0]
    kind = get_origin(hint) or hint
    if kind not in (str, int, float, bool, dict):
        raise TypeError(f"{key}: the configuration cannot hold {hint}")
    return KeyType(kind, optional)


def find_key(key: str) -> tuple[str, KeyType | None]:
    """The schema's key that `key` names, and its type; None for the type of a key inside a free mapping.

    Raises `ConfigError` naming the near miss for a key that does not exist, and for a group of keys.
    """
    known = key_types()
    if key in known:
        return key, known[key]
    for name, kind in known.items():
        if kind.kind is dict and key.startswith(f"{name}.") and all(key.removeprefix(f"{name}.").split(".")):
            return name, None
    members = [name for name in known if name.startswith(f"{key}.")]
    if members:
        raise ConfigError(f"{key}: a group of keys, not a value; set one of {', '.join(members)}")
    raise ConfigError(f"{key}: no such key; {_suggestion(key, list(known))}")


def _suggestion(key: str, known: list[str]) -> str:
    near = near_miss(key, known)
    if near is None:
        short = [name for name in known if name.rpartition(".")[2] == key.rpartition(".")[2]]
        near = short[0] if len(short) == 1 else None
    if near is None:
        leaves = {name.rpartition(".")[2]: name for name in known}
        leaf = near_miss(key.rpartition(".")[2], list(leaves))
        near = leaves[leaf] if leaf is not None else None
    return f"did you mean {near}?" if near else "`yendor config show` lists all keys"


def near_miss(word: str, known: list[str]) -> str | None:
    """The one of `known` that `word` was most likely meant to be, or None where none is near."""
    matches = difflib.get_close_matches(word, known, n=1, cutoff=0.7)
    return matches[0] if matches else None
