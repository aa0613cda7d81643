"""Values of keys: from the text of the command line and from YAML, strictly of the type that the schema has."""

import re
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from orchestration.configuration.keys import KeyType
from orchestration.errors import ConfigError

Value = str | int | float | bool | dict[str, Any] | None

_NULL = frozenset({"null", "none", "~"})
_KEY_IN_QUERY = re.compile(r"([?&][^=&\s]*(?:key|token|secret|password)[^=&\s]*=)[^&\s]*", re.IGNORECASE)
_INTEGER = re.compile(r"[+-]?\d+(_\d+)*")


def without_password(value: Any) -> Any:
    """`value` as others may see it: text without the user and password of the addresses in it, and without keys in their
    queries."""
    if not isinstance(value, str):
        return value
    return _KEY_IN_QUERY.sub(r"\1…", re.sub(r"(://)[^/@\s]*@", r"\1", value))


def is_interpolation(value: object) -> bool:
    """Whether `value` refers to other keys (`${run.seed}`)."""
    return isinstance(value, str) and "${" in value


def from_text(key: str, text: str, kind: KeyType | None) -> Value:
    """The value that `key=text` gives on the command line. Raises `ConfigError` where `text` is not of that type."""
    if is_interpolation(text):
        return text
    if kind is None or kind.kind is dict:
        value = _yaml_value(key, text)
        return from_yaml(key, value, kind) if kind is not None else value
    if kind.optional and text.lower() in _NULL:
        return None
    if kind.kind is str:
        return text
    if kind.kind is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if kind.kind is int and _INTEGER.fullmatch(text):
        return int(text)
    if kind.kind in (int, float):
        try:
            number = float(text)
        except ValueError:
            raise _wrong_type(key, text, kind) from None
        return from_yaml(key, number, kind)
    raise _wrong_type(key, text, kind)


def from_yaml(key: str, value: object, kind: KeyType | None) -> Value:
    """`value` as read from YAML, if it is of the type that `key` holds; `ConfigError` otherwise.

    Whole floats (2e9) count as whole numbers and whole numbers as floats; nothing else is converted.
    """
    if is_interpolation(value):
        assert isinstance(value, str)
        return value
    if kind is None:
        return value  # pyright: ignore[reportReturnType]  (inside a free mapping anything that YAML has is legal)
    if value is None and kind.optional:
        return None
    if kind.kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind.kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, kind.kind) and isinstance(value, bool) == (kind.kind is bool):
        return value  # pyright: ignore[reportReturnType]  (`kind.kind` is one of the types of `Value`)
    raise _wrong_type(key, value, kind)


def _yaml_value(key: str, text: str) -> Any:
    """`text` as YAML. OmegaConf's loader is used because it reads 1e-4 as a number, which plain YAML 1.1 does not."""
    try:
        return OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]), resolve=False)["value"]  # pyright: ignore
    except (OmegaConfBaseException, YAMLError) as error:
        raise ConfigError(f"{key}={text}: not a YAML value ({str(error).splitlines()[0]})") from error


def _wrong_type(key: str, value: object, kind: KeyType) -> ConfigError:
    shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else value
    hint = "; put it in quotes" if kind.kind is str and isinstance(value, int | float) else ""
    return ConfigError(f"{key}={shown}: expected {kind.words}{hint}")
