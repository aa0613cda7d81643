"""Which objectives there are. To add one: a file in `algorithms/` that defines `KIND`, and one line in `_MODULES`.

Its settings may be in its file; those that the configuration knows are in `settings.py`, which loads no torch.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from learner.language.settings import PolicySettings

if TYPE_CHECKING:
    from learner.language.objective import Objective


@dataclass(frozen=True, slots=True)
class ObjectiveKind:
    """An algorithm: the dataclass of its settings (whose defaults are its own), and how it is made of them."""

    settings: type[PolicySettings]
    build: "Callable[[Any], Objective]"
    """Called with an instance of `settings`."""


_MODULES: dict[str, str] = {
    "ppo": "learner.language.algorithms.ppo",
    "grpo": "learner.language.algorithms.grpo",
    "rloo": "learner.language.algorithms.rloo",
    "reinforce++": "learner.language.algorithms.reinforce_plus_plus",
}
"""Name in the configuration (`learner.algorithm`) -> module with `KIND`; imported on use, for torch is slow to import."""


def objective_names() -> tuple[str, ...]:
    return tuple(_MODULES)


def objective_kind(name: str) -> ObjectiveKind:
    """The kind registered under `name`. Raises `ValueError` with the near miss, or the names there are."""
    if name not in _MODULES:
        near = difflib.get_close_matches(name, _MODULES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(_MODULES)}"
        raise ValueError(f"there is no objective {name!r} for language models; {hint}")
    kind = import_module(_MODULES[name]).KIND
    assert isinstance(kind, ObjectiveKind)
    return kind


def build_objective(name: str, settings: PolicySettings | None = None) -> "Objective":
    """The objective `name` with `settings` (its defaults without). Raises `ValueError` for another algorithm's settings, and
    for values that mean nothing or have no effect."""
    kind = objective_kind(name)
    settings = kind.settings() if settings is None else settings
    if type(settings) is not kind.settings:
        raise ValueError(f"objective {name!r} takes {kind.settings.__name__}, not {type(settings).__name__}")
    settings.validate()
    return kind.build(settings)
