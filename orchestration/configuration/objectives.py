"""The settings of the objective that `learner.algorithm` names, out of `language.objective`. Loads no torch."""

import dataclasses
import types
from typing import Any, Union, get_args, get_origin, get_type_hints

from learner.language.settings import (
    GRPOSettings,
    PolicySettings,
    PPOSettings,
    ReinforcePlusPlusSettings,
    RLOOSettings,
)
from orchestration.configuration.keys import KeyType, near_miss
from orchestration.configuration.values import from_yaml
from orchestration.errors import ConfigError

OBJECTIVES: dict[str, type[PolicySettings]] = {
    "ppo": PPOSettings,
    "grpo": GRPOSettings,
    "rloo": RLOOSettings,
    "reinforce++": ReinforcePlusPlusSettings,
}
"""The algorithms for language models, with their settings. A test holds that it is what the learner's registry has."""

COMPARING = ("grpo", "rloo")
"""Those that compare the episodes of a group."""

_PREFIX = "language.objective."


def objective_settings(algorithm: str, values: dict[str, Any]) -> PolicySettings:
    """The settings of `algorithm` with `values` in place of defaults. Raises `ConfigError`, one line that names the key."""
    kind = OBJECTIVES[algorithm]
    hints = get_type_hints(kind)
    known = {field.name: _key_type(hints[field.name]) for field in dataclasses.fields(kind)}
    for name in values:
        if name not in known:
            near = near_miss(name, list(known))
            hint = f"did you mean {_PREFIX}{near}?" if near else f"{algorithm} has {', '.join(known)}"
            raise ConfigError(f"{_PREFIX}{name}: learner.algorithm={algorithm} has no such setting; {hint}")
    typed = {name: from_yaml(f"{_PREFIX}{name}", value, known[name]) for name, value in values.items()}
    settings = kind(**typed)  # pyright: ignore[reportArgumentType]  (checked against the fields' types above)
    try:
        settings.validate()
    except ValueError as error:
        raise ConfigError(f"{_PREFIX}{error}") from error
    return settings


def _key_type(hint: Any) -> KeyType:
    if get_origin(hint) in (Union, types.UnionType):
        (inner,) = [part for part in get_args(hint) if part is not type(None)]
        return KeyType(inner, optional=True)
    return KeyType(hint)
