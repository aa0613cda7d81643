"""The configuration as YAML with what each key means beside it, out of the docstrings of the settings."""

import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Iterator
from typing import Any

import yaml

from orchestration.config import Config

_WIDTH = 110


def field_docs(schema: type[Any]) -> dict[str, str]:
    """The docstring under each field of a dataclass and of those that it extends, on one line; fields without are left out."""
    docs: dict[str, str] = {}
    for kind in reversed(schema.__mro__):
        if dataclasses.is_dataclass(kind):
            docs |= _own_docs(kind)
    return docs


def _own_docs(schema: type[Any]) -> dict[str, str]:
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(schema))).body
    assert isinstance(definition, ast.ClassDef)
    docs: dict[str, str] = {}
    for field, after in zip(definition.body, definition.body[1:], strict=False):
        match field, after:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                docs[name] = " ".join(text.split())
            case _:
                pass
    return docs


def explained_yaml(config: Config) -> str:
    """`config` as YAML, a comment above each key that has something to say. Reads back as the same configuration."""
    return "\n".join(_lines(config, "")) + "\n"


def _lines(settings: Any, indent: str) -> Iterator[str]:
    docs = field_docs(type(settings))
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if field.name in docs:
            prefix = f"{indent}# "
            yield from textwrap.wrap(docs[field.name], _WIDTH, initial_indent=prefix, subsequent_indent=prefix)
        if dataclasses.is_dataclass(value):
            yield f"{indent}{field.name}:"
            yield from _lines(value, f"{indent}  ")
        else:
            text = yaml.safe_dump({field.name: value}, allow_unicode=True, width=float("inf"))
            yield textwrap.indent(text.rstrip("\n"), indent)
