"""Which ways of giving credit there are. To add one: a file in `methods/` that defines `METHOD`, and one line here."""

import difflib
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from learner.credit.attribution import CreditMethod, CreditRule

_MODULES: dict[str, str] = {
    "outcome": "learner.credit.methods.outcome",
    "turn": "learner.credit.methods.turn",
    "spa": "learner.credit.methods.spa",
    "spa+grounding": "learner.credit.methods.spa_grounding",
    "leave_one_out": "learner.credit.methods.leave_one_out",
    "potential": "learner.credit.methods.potential",
}
"""Name in the configuration (`credit.method`) -> module with `METHOD`, a subclass of `CreditMethod`."""


def method_names() -> tuple[str, ...]:
    return tuple(_MODULES)


def credit_method(name: str) -> "type[CreditMethod]":
    """The class registered under `name`. Raises ValueError with the near miss, or the names there are."""
    if name not in _MODULES:
        near = difflib.get_close_matches(name, _MODULES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(_MODULES)}"
        raise ValueError(f"there is no credit method {name!r}; {hint}")
    return import_module(_MODULES[name]).METHOD


def build_credit(name: str, rule: "CreditRule") -> "CreditMethod":
    """The method `name` with its numbers."""
    return credit_method(name)(rule)
