"""Which environments there are: families by the prefix of their ids, each in a file of its own.

A family is loaded (its module imported, its game with it) by the first `make` of one of its ids, never earlier.

Two kinds of player: a *network* reads arrays and presses keys (`make`), a *language* model reads text and says commands
(`make_text`). Text worlds are for language models only; the worlds of arrays are shown to them through a text view.
"""

import difflib
import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import gymnasium as gym

from envs.base import EnvironmentIdError, View, YendorEnv
from envs.text import TextEnv

Player = Literal["network", "language"]


class EnvironmentOptionError(ValueError):
    """An option that an environment does not have or cannot take; the message names it and the near miss."""


class EnvironmentUnavailableError(RuntimeError):
    """An environment that exists but cannot run here; the message says what it needs."""


Factory = Callable[..., YendorEnv]
"""Called as `factory(name, view, **options)`, where `name` is the id without the family's prefix."""

TextFactory = Callable[..., TextEnv]
"""Called as `factory(name, **options)`."""


@dataclass(frozen=True, slots=True)
class Family:
    """The environments whose ids begin with `prefix/`."""

    prefix: str
    factory: Factory | TextFactory | str
    """The factory, or `module:function` to import it from when it is first needed."""
    ids: Callable[[], Iterable[str]]
    """All ids of the family, with the prefix; of families without end, some that stand for the rest. Cheap: it must not
    load the game."""
    accepts: Callable[[str], bool]
    """Whether a name that `ids` does not list is nevertheless one of the family's (it may load the game). It may raise
    `EnvironmentIdError` to say what is wrong with a name that is nearly one."""
    text: bool = False
    """Whether these are text worlds."""

    def load(self) -> Callable[..., Any]:
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
    _register(Family(prefix, factory, ids, accepts))


def register_text_family(
    prefix: str,
    factory: TextFactory | str,
    ids: Callable[[], Iterable[str]],
    accepts: Callable[[str], bool] = _accepts_nothing,
) -> None:
    """Adds the family of text worlds `prefix/...`, whose factory is called as `factory(name, **options)`; a prefix that
    is taken already is an error."""
    _register(Family(prefix, factory, ids, accepts, text=True))


def _register(family: Family) -> None:
    if family.prefix in _families:
        raise ValueError(f"environment family {family.prefix!r} is registered already")
    _families[family.prefix] = family


def known_ids(player: Player = "network") -> list[str]:
    """Every id that `player` can play and that can be listed without loading a game, sorted within each family.

    A language model plays all of them, a network no text worlds.
    """
    families = [family for family in _families.values() if player == "language" or not family.text]
    return [env_id for family in families for env_id in sorted(family.ids())]


def is_text_world(env_id: str) -> bool:
    """Whether `env_id` begins as the ids of a family of text worlds do."""
    family = _families.get(env_id.partition("/")[0])
    return family is not None and family.text


def _family_of(env_id: str, player: Player) -> Family:
    prefix, _, name = env_id.partition("/")
    family = _families.get(prefix)
    if family is not None and (env_id in family.ids() or family.accepts(name)):
        if family.text and player == "network":
            raise EnvironmentIdError(
                f"{env_id} is a text world, which a language model plays: name one with agent.model, "
                "or choose an environment that a network plays"
            )
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
    best = max(known_ids("language"), key=likeness)
    return best if likeness(best)[0] >= 0.6 else None


def validate_id(env_id: str, player: Player = "network") -> None:
    """Raises `EnvironmentIdError`, which names the near miss, unless `player` can play the id: unless `make` (or, for a
    language model, `make_text`) knows it.

    Loads no game unless the id looks like a MiniHack task that the built-in list lacks.
    """
    _family_of(env_id, player)


def make(env_id: str, view: View | None = None, **options: Any) -> YendorEnv:
    """Builds the environment `env_id`, which shows a policy what `view` asks for (the default `View` without one).

    Options are those of the family (`docs/environments.md`). Raises `EnvironmentIdError` for an unknown id and for a
    text world, and `EnvironmentOptionError` for an option that the environment does not have or that would have no
    effect.
    """
    family = _family_of(env_id, "network")
    return family.load()(env_id.partition("/")[2], View() if view is None else view, **options)


def make_text(env_id: str, **options: Any) -> TextEnv:
    """Builds the environment `env_id` for a language model: a text world, or a world of arrays through the text view.

    Options are those of the family (`docs/text_worlds.md`, `docs/environments.md`). Raises as `make` does.
    """
    family = _family_of(env_id, "language")
    name = env_id.partition("/")[2]
    if family.text:
        return _load_text(family, env_id)(name, **options)
    from envs.text_view import TextView

    return TextView(family.load()(name, View(), **options))


def _load_text(family: Family, env_id: str) -> TextFactory:
    try:
        return family.load()
    except ModuleNotFoundError as error:
        raise EnvironmentUnavailableError(
            f"{env_id} cannot be made here: Python finds no module {error.name!r} (pip install {family.prefix})"
        ) from error


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


def check_choice(env_id: str, name: str, value: object, choices: Iterable[str]) -> str:
    """`value` if it is one of `choices`; otherwise raises `EnvironmentOptionError`, which names the near miss."""
    choices = tuple(choices)
    if not isinstance(value, str) or value not in choices:
        near = difflib.get_close_matches(str(value), choices, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise EnvironmentOptionError(f"{env_id}: {name} must be one of {', '.join(choices)}, not {value!r}{hint}")
    return value


def check_flag(env_id: str, name: str, value: object) -> bool:
    """`value` if it is true or false; otherwise raises `EnvironmentOptionError`."""
    if not isinstance(value, bool):
        raise EnvironmentOptionError(f"{env_id}: {name} must be true or false, not {value!r}")
    return value


def _make_for_gymnasium(env_id: str, **kwargs: Any) -> YendorEnv | TextEnv:
    kwargs.pop("render_mode", None)  # gymnasium passes it on when asked; `render` always gives text
    return make_text(env_id, **kwargs) if is_text_world(env_id) else make(env_id, **kwargs)


def register_gymnasium() -> None:
    """Registers every known id with gymnasium, under the same name; what is registered already is left alone.

    `gymnasium.make("minihack/KeyRoom-S15")` works afterwards. Gymnasium reads the part before the slash as a namespace.
    Text worlds that are not listed (`textworld/w3-o5-q4`) are made by `make_text`, as gymnasium knows no patterns.
    """
    for env_id in known_ids("language"):
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


def _textworld_ids() -> Iterable[str]:
    from envs.ids import TEXTWORLD_NAMES

    return [f"textworld/{name}" for name in TEXTWORLD_NAMES]


def _textworld_accepts(name: str) -> bool:
    from envs.textworld.tasks import accepts

    return accepts(name)


def _alfworld_ids() -> Iterable[str]:
    from envs.alfworld.ids import alfworld_ids

    return alfworld_ids()


def _alfworld_accepts(name: str) -> bool:
    from envs.alfworld.ids import accepts

    return accepts(name)


register_family("nethack", "envs.nethack:make_nethack", _nethack_ids)
register_family("minihack", "envs.minihack:make_minihack", _minihack_ids, _minihack_accepts)
register_text_family("textworld", "envs.textworld:make_textworld", _textworld_ids, _textworld_accepts)
register_text_family("alfworld", "envs.alfworld:make_alfworld", _alfworld_ids, _alfworld_accepts)
