"""Which environments there are: families by the prefix of their ids, each in a file of its own.

A family is loaded (its module imported, its game with it) by the first `make` of one of its ids, never earlier.
"""

import difflib
import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym

from envs.base import EnvironmentIdError, View, YendorEnv


class EnvironmentOptionError(ValueError):
    """An option that an environment does not have or cannot take; the message names it and the near miss."""


class EnvironmentUnavailableError(RuntimeError):
    """An environment that exists but cannot run here; the message says what it needs."""


Factory = Callable[..., YendorEnv]
"""Called as `factory(name, view, **options)`, where `name` is the id without the family's prefix."""


@dataclass(frozen=True, slots=True)
class Family:
    """The environments whose ids begin with `prefix/`."""

    prefix: str
    factory: Factory | str
    """The factory, or `module:function` to import it from when it is first needed."""
    ids: Callable[[], Iterable[str]]
    """All ids of the family, with the prefix. Cheap: it must not load the game."""
    accepts: Callable[[str], bool]
    """Whether a name that `ids` does not list is nevertheless one of the family's (it may load the game)."""

    def load(self) -> Factory:
        if not isinstance(self.factory, str):
            return self.factory
        module, _, function = self.factory.partition(":")
        return getattr(importlib.import_module(module), function)


_families: dict[str, Family] = {}


def _accepts_nothing(name: str) -> bool:
    del name
    return False


def register_family(
    prefix: str,
    factory: Factory | str,
    ids: Callable[[], Iterable[str]],
    accepts: Callable[[str], bool] = _accepts_nothing,
) -> None:
    """Adds the family of environments `prefix/...`; a prefix that is taken already is an error."""
    if prefix in _families:
        raise ValueError(f"environment family {prefix!r} is registered already")
    _families[prefix] = Family(prefix, factory, ids, accepts)


def known_ids() -> list[str]:
    """Every id that can be listed without loading a game, sorted within each family."""
    return [env_id for family in _families.values() for env_id in sorted(family.ids())]


def _family_of(env_id: str) -> Family:
    prefix, _, name = env_id.partition("/")
    family = _families.get(prefix)
    if family is not None and (env_id in family.ids() or family.accepts(name)):
        return family
    near = _nearest(env_id)
    hint = f"did you mean {near!r}?" if near else "ids begin with " + ", ".join(f"{known}/" for known in _families)
    raise EnvironmentIdError(f"unknown environment id {env_id!r}; {hint}")


def _nearest(env_id: str) -> str | None:
    """The known id that looks most like `env_id`, or None. Names are compared without their prefixes, so that all of a
    prefix that is right does not count as likeness, and one that is missing does no harm."""

    def likeness(known_id: str) -> tuple[float, float]:
        known_name = known_id.partition("/")[2].lower()
        by_name = difflib.SequenceMatcher(None, name, known_name).ratio()
        return by_name, difflib.SequenceMatcher(None, env_id.lower(), known_id.lower()).ratio()

    name = env_id.lower().rpartition("/")[2]
    best = max(known_ids(), key=likeness)
    return best if likeness(best)[0] >= 0.6 else None


def validate_id(env_id: str) -> None:
    """Raises `EnvironmentIdError`, which names the near miss, unless `make` knows the id.

    Loads no game unless the id looks like a MiniHack task that the built-in list lacks.
    """
    _family_of(env_id)


def make(env_id: str, view: View | None = None, **options: Any) -> YendorEnv:
    """Builds the environment `env_id`, which shows a policy what `view` asks for (the default `View` without one).

    Options are those of the family (`docs/environments.md`). Raises `EnvironmentIdError` for an unknown id and
    `EnvironmentOptionError` for an option that the environment does not have or that would have no effect.
    """
    family = _family_of(env_id)
    return family.load()(env_id.partition("/")[2], View() if view is None else view, **options)


def check_options(env_id: str, options: Iterable[str], allowed: Iterable[str]) -> None:
    """Raises `EnvironmentOptionError`, naming the near miss, for the first option that is not allowed."""
    allowed = sorted(allowed)
    for name in options:
        if name not in allowed:
            near = difflib.get_close_matches(name, allowed, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(allowed)}"
            raise EnvironmentOptionError(f"{env_id} has no option {name!r}; {hint}")


def check_count(env_id: str, name: str, value: object) -> int:
    """`value` if it is a whole number of at least 1; otherwise raises `EnvironmentOptionError`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise EnvironmentOptionError(f"{env_id}: {name} must be a whole number of at least 1, not {value!r}")
    return value


def _make_for_gymnasium(env_id: str, **kwargs: Any) -> YendorEnv:
    kwargs.pop("render_mode", None)  # gymnasium passes it on when asked; `render` always gives text
    return make(env_id, **kwargs)


def register_gymnasium() -> None:
    """Registers every known id with gymnasium, under the same name; what is registered already is left alone.

    `gymnasium.make("minihack/KeyRoom-S15")` works afterwards. Gymnasium reads the part before the slash as a namespace.
    """
    for env_id in known_ids():
        if env_id not in gym.registry:
            gym.register(env_id, entry_point=_make_for_gymnasium, kwargs={"env_id": env_id}, order_enforce=False)


def _nethack_ids() -> Iterable[str]:
    from envs.ids import NETHACK_NAMES

    return [f"nethack/{name}" for name in NETHACK_NAMES]


def _minihack_ids() -> Iterable[str]:
    from envs.ids import MINIHACK_NAMES

    return [f"minihack/{name}" for name in MINIHACK_NAMES]


def _minihack_accepts(name: str) -> bool:
    from envs.minihack import registered_names

    return name in registered_names()


register_family("nethack", "envs.nethack:make_nethack", _nethack_ids)
register_family("minihack", "envs.minihack:make_minihack", _minihack_ids, _minihack_accepts)
