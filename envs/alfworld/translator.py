"""Translates problems and grammars, and plans: a program by itself, one JSON request a line, one JSON answer a line.

It runs apart from the environments for three reasons. Fast Downward's translator iterates over sets of strings, so that
its output is only sure to be the same in every process where Python's hashes are (`PYTHONHASHSEED=0`). Its C library
writes to standard output and ends the process on bad input. And TextWorld, whose parser reads the grammars, takes
seconds to import. It reads nothing of this project, and ends when its input does.

Requests: `{"do": "problem", "domain": PDDL, "problem": PDDL}`, `{"do": "plan", ...the same}`,
`{"do": "grammar", "grammar": TWL2}`. An answer is `{"ok": ...}` or `{"error": "one line"}`.
"""

# pyright: reportPrivateUsage=false

import contextlib
import functools
import io
import json
import os
import sys
import traceback
from typing import Any


@functools.cache
def library() -> Any:
    """Fast Downward's library, one for the whole process: to unload one and load another can crash."""
    import fast_downward

    return fast_downward.load_lib()


def translate(request: dict[str, str], *, pruned: bool = False) -> tuple[Any, str]:
    """A problem as the translator's own object and as the library reads it (empty where the goal can't be reached).
    `pruned`: without what no plan needs."""
    import fast_downward

    return fast_downward.pddl2sas(request["domain"], request["problem"], optimize=pruned)  # pyright: ignore[reportReturnType]


def problem(request: dict[str, str]) -> dict[str, Any]:
    """What playing needs of a problem: the task as Fast Downward's library reads it, the facts at the start, the types
    of the objects, the parameters of the actions, and which predicates can ever change."""
    import fast_downward

    task, sas = translate(request)
    if not sas:
        raise ValueError("the goal can't be reached")
    # What is no atom assigns a cost.
    init = {(a.predicate, *a.args) for a in task.init if hasattr(a, "predicate") and a.predicate != "="}
    library().load_sas(sas.encode())
    state = (fast_downward.Atom * library().get_state_size())()
    library().get_state(state)
    init |= {fact for atom in state if (fact := _positive(atom.name)) is not None}
    fluents = {effect.literal.predicate for action in task.actions for effect in action.effects}
    fluents |= {axiom.name for axiom in task.axioms}
    return {
        "sas": sas,
        "facts": sorted(init),
        "objects": {o.name: o.type_name for o in task.objects},
        "supertypes": {t.name: sorted(t.supertype_names) for t in task.types},
        "parameters": {a.name: [(p.name.strip("?"), p.type_name) for p in a.parameters] for a in task.actions},
        "fluents": sorted(fluents),
    }


def plan(request: dict[str, str]) -> list[str] | None:
    """The operators of a plan, each a name and its arguments; None where there is no plan."""
    import fast_downward

    _, sas = translate(request)
    _, pruned = translate(request, pruned=True)
    if not sas or not pruned:
        return None
    # The library plans in the pruned task from the state that the whole one is in.
    library().load_sas(sas.encode())
    library().load_sas_replan(pruned.encode())
    if not library().replan(False):
        return None
    found = (fast_downward.Operator * library().get_last_plan_length())()
    library().get_last_plan(found)
    return [operator.name for operator in found]


def grammar(request: dict[str, str]) -> dict[str, Any]:
    """A grammar as plain lists: by rule, its alternatives (condition, symbols); by action, its command and feedback."""
    from textworld.envs.pddl.logic import GameLogic
    from textworld.envs.pddl.textgen import _parse_and_convert

    logic = GameLogic(domain="", grammar=request["grammar"])
    rules = {
        name: [(_query(rule.condition), [_symbol(symbol) for symbol in rule.rhs]) for rule in alternatives]
        for name, alternatives in logic.grammar._rules.items()
    }

    parse: Any = _parse_and_convert

    def parsed(text: str) -> list[Any]:
        return [_symbol(symbol) for symbol in parse(text, rule_name="symbols")]

    return {
        "rules": rules,
        "actions": {name: (parsed(a.template), parsed(a.feedback_rule)) for name, a in logic.actions.items()},
        "intro": parsed("#intro#"),
    }


def _positive(name: str) -> tuple[str, ...] | None:
    """`Atom inreceptacle(a, b)` as (inreceptacle, a, b); None for what is false."""
    kind, _, rest = name.partition(" ")
    predicate, _, arguments = rest.rstrip(")").partition("(")
    return (predicate, *filter(None, arguments.split(", "))) if kind == "Atom" else None


def _query(expression: str | None) -> list[Any]:
    """A conjunction of predicates: the name of each, and the names and types of its placeholders."""
    if not expression:
        return []
    from textworld.logic import Rule

    rule = Rule.parse_conjunctive_query(expression)
    return [(p.name, [(ph.name, ph.type) for ph in p.parameters]) for p in rule.preconditions]


def _symbol(symbol: Any) -> list[Any]:
    from textworld.envs.pddl import textgen

    match symbol:
        case textgen.TerminalSymbol():
            return ["text", str(symbol.symbol)]
        case textgen.NonterminalSymbol():
            return ["rule", str(symbol.symbol)]
        case textgen.EvalSymbol():
            return ["value", symbol.expression]
        case textgen.ConditionalSymbol():
            return ["each", _symbol(symbol.expression), _query(symbol.given)]
        case textgen.ListSymbol():
            return ["list", _symbol(symbol.symbol)]
        case _:
            raise ValueError(f"the grammar has a symbol of unknown kind: {symbol!r}")


REQUESTS = {"problem": problem, "plan": plan, "grammar": grammar}


def main() -> None:
    """Answers until the input ends. What the libraries print goes nowhere: the answers have a descriptor of their own."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                answer = {"ok": REQUESTS[request["do"]](request)}
        except (Exception, SystemExit) as error:  # the translator's way to refuse a problem is to exit
            where = traceback.extract_tb(error.__traceback__)[-1]
            answer = {"error": f"{type(error).__name__}: {error} ({where.name}, line {where.lineno})"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
