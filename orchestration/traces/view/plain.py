"""Values of a trace as what JSON in a browser can hold, whatever they are."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

_EXACT = 2**53
"""Beyond it a browser's numbers are not exact."""


def plain(value: object) -> Any:
    """`value` in objects, lists, texts, finite numbers, booleans and null.

    Numbers that JSON or a browser cannot hold become texts; bytes become text with replacement characters.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return value if -_EXACT <= value <= _EXACT else str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return str(value)


def number(value: object) -> float | None:
    """`value` where it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
