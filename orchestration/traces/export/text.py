"""Values of an episode made fit for a file: an episode's text is hostile until it went through here."""

import math
from collections.abc import Mapping, Sequence

Plain = str | int | float | bool | None | list["Plain"] | dict[str, "Plain"]
"""What JSON can say, all numbers finite."""

_VISIBLE = {
    **{code: 0x2400 + code for code in range(0x20) if code != 0x0A},
    0x7F: 0x2421,
    # C1 controls, line and paragraph separators, and what turns the direction of writing.
    **dict.fromkeys((*range(0x80, 0xA0), *range(0x2028, 0x202F), *range(0x2066, 0x206A)), 0xFFFD),
}


def unicode(text: str, limit: int | None = None) -> str:
    """`text` as valid Unicode (lone surrogates become U+FFFD), cut after `limit` characters with a note of its length."""
    if not text.isascii():
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if limit is not None and len(text) > limit:
        return f"{text[:limit]}… ({len(text):,} characters)"
    return text


def printable(text: str) -> str:
    """`text` with every control character but the line feed made visible, so that no terminal obeys it."""
    return unicode(text).translate(_VISIBLE)


def finite(value: object) -> float | None:
    """`value` as a finite number, or None where it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def plain(value: object, limit: int | None = None) -> Plain:
    """`value` as JSON can say it: numbers that are not finite become null, text valid Unicode cut after `limit`."""
    match value:
        case None | bool():
            return value
        case int():
            # Beyond 2^53 readers of JSON round: such numbers travel as text.
            return value if abs(value) <= 2**53 else str(value)
        case float():
            return finite(value)
        case str():
            return unicode(value, limit)
        case bytes():
            return unicode(value.decode("utf-8", "replace"), limit)
        case Mapping():
            return {unicode(str(key), limit): plain(item, limit) for key, item in value.items()}
        case Sequence():
            return [plain(item, limit) for item in value]
        case _:
            return unicode(str(value), limit)
