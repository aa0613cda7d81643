"""What the game says: TextWorld's context-sensitive grammar, parsed once and made of plain functions.

The stock grammar (textworld, `envs/pddl/textgen`) is parsed again for every command of every step, and copies the whole
context for every symbol. Here each symbol becomes a function of the facts and the bindings, once. What it says is the same:
rules are tried in order, the first whose condition holds is taken; queries bind placeholders to facts in sorted order, no
two placeholders of a query to one thing.
"""

import ast
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import CodeType
from typing import Any

Placeholder = tuple[str, str]
"""Name and type, as in `r:receptacle`."""

Bindings = dict[Placeholder, str]
"""The id of the thing that each placeholder stands for."""

Query = tuple[tuple[str, tuple[Placeholder, ...]], ...]
"""A conjunction: the predicates and their placeholders."""


class GrammarError(ValueError):
    """A grammar that can't be used; the message names the symbol."""


@dataclass(slots=True)
class Entity:
    """A thing as the grammar's expressions see it (`{r.indefinite} {r.name or r.id}`)."""

    id: str
    type: str
    name: str
    definite: str = "the"
    indefinite: str = "a"

    def __str__(self) -> str:
        return self.name


class World:
    """What is true, and what things are called. A predicate whose name begins with `not_` says that something has
    stopped to be true; that which never was true has no such fact (as in TextWorld, whose texts depend on it)."""

    def __init__(self, facts: Iterable[Sequence[str]], objects: Mapping[str, str], supertypes: Mapping[str, list[str]]):
        self.objects = objects
        self.entities: dict[str, Entity] = {}
        self._subtypes = _subtypes(supertypes)
        self._facts: dict[str, set[tuple[str, ...]]] = {}
        self._sorted: dict[str, list[tuple[str, ...]]] = {}
        for predicate, *arguments in facts:
            self._facts.setdefault(predicate, set()).add(tuple(arguments))

    def change(self, predicate: str, arguments: tuple[str, ...], true: bool) -> None:
        """Makes something true or false."""
        negated = f"not_{predicate}"
        gone, new = (negated, predicate) if true else (predicate, negated)
        self._facts.get(gone, set[tuple[str, ...]]()).discard(arguments)
        self._facts.setdefault(new, set()).add(arguments)
        self._sorted.pop(gone, None)
        self._sorted.pop(new, None)

    def ordered(self, predicate: str) -> list[tuple[str, ...]]:
        """The arguments for which a predicate is true, sorted."""
        found = self._sorted.get(predicate)
        if found is None:
            found = self._sorted[predicate] = sorted(self._facts.get(predicate, ()))
        return found

    def is_true(self, predicate: str, *arguments: str) -> bool:
        return arguments in self._facts.get(predicate, ())

    def predicates(self) -> list[str]:
        """The names of all that is true now."""
        return sorted(predicate for predicate, found in self._facts.items() if found)

    def solutions(self, query: Query, bindings: Bindings) -> Iterator[Bindings]:
        """Every way to bind the query's placeholders that `bindings` leaves free, each with `bindings`."""
        return self._solve(query, dict(bindings), set(bindings.values()), 0)

    def _solve(self, query: Query, bound: Bindings, used: set[str], depth: int) -> Iterator[Bindings]:
        if depth == len(query):
            yield dict(bound)
            return
        predicate, placeholders = query[depth]
        types = [self._subtypes.get(kind, frozenset()) for _, kind in placeholders]
        free = [placeholder for placeholder in dict.fromkeys(placeholders) if placeholder not in bound]
        for arguments in self.ordered(predicate):
            for placeholder, argument, allowed in zip(placeholders, arguments, types, strict=True):
                existing = bound.get(placeholder)
                if existing is None:
                    if argument in used or self.objects[argument] not in allowed:
                        break
                    bound[placeholder] = argument
                    used.add(argument)
                elif existing != argument:
                    break
            else:
                yield from self._solve(query, bound, used, depth + 1)
            for placeholder in free:
                if placeholder in bound:
                    used.discard(bound.pop(placeholder))


Told = Callable[[World, Bindings], str]
"""A piece of text that depends on what is true."""


class Grammar:
    """A grammar as `translator.py` gives it. `actions` are the command and the feedback of each action.

    Raises `GrammarError` for a rule that is not there and for an expression that is more than a look at names.
    """

    def __init__(self, parsed: Mapping[str, Any]) -> None:
        self._parsed_rules: Mapping[str, Any] = parsed["rules"]
        self._rules: dict[str, list[tuple[Query, Told]]] = {}
        for name, alternatives in self._parsed_rules.items():
            self._rules[name] = [(_query(condition), self._sequence(rhs)) for condition, rhs in alternatives]
        self.actions: dict[str, tuple[Told, Told]] = {}
        self._asked: dict[str, set[str]] = {}
        for name, (command, feedback) in parsed["actions"].items():
            self.actions[name] = self._sequence(command), self._sequence(feedback)
            self._asked[name] = self._predicates(command, set())
        self._intro = self._sequence(parsed["intro"])

    def intro(self, world: World) -> str:
        return self._intro(world, {})

    def say(self, rule: str, world: World, bindings: Bindings) -> str:
        """The text of a rule."""
        return self._rule(rule)(world, bindings)

    def command_depends_on(self, action: str) -> set[str]:
        """The predicates that the wording of an action's command reads. Where none of them ever changes, a command is
        worded once."""
        return self._asked[action]

    def _sequence(self, symbols: Sequence[Any]) -> Told:
        parts = [self._symbol(symbol) for symbol in symbols]
        if len(parts) == 1:
            return parts[0]
        return lambda world, bindings: "".join([part(world, bindings) for part in parts])

    def _symbol(self, symbol: Sequence[Any]) -> Told:
        match symbol:
            case ["text", str(text)]:
                return lambda world, bindings: text
            case ["rule", str(name)]:
                return self._rule(name)
            case ["value", str(expression)]:
                return _value(expression)
            case ["each", inner, given]:
                each = self._each(inner, given)
                return lambda world, bindings: "".join(each(world, bindings))
            case ["list", ["each", inner, given]]:
                return self._list(self._each(inner, given))
            case _:
                raise GrammarError(f"the grammar has a symbol that this reader does not know: {symbol!r}")

    def _rule(self, name: str) -> Told:
        if name not in self._parsed_rules:
            # Some of ALFWorld's rules name others that do not exist; they matter only once they are said.
            def missing(world: World, bindings: Bindings) -> str:
                raise GrammarError(f"the grammar has no rule {name!r}")

            return missing

        def told(world: World, bindings: Bindings) -> str:
            for condition, text in self._rules[name]:
                if not condition or next(world.solutions(condition, bindings), None) is not None:
                    return text(world, bindings)
            raise GrammarError(f"no alternative of the grammar's rule {name!r} applies")

        return told

    def _each(self, inner: Sequence[Any], given: Sequence[Any]) -> Callable[[World, Bindings], list[str]]:
        told, query = self._symbol(inner), _query(given)
        if not query:
            return lambda world, bindings: [told(world, bindings)]
        return lambda world, bindings: [told(world, found) for found in world.solutions(query, bindings)]

    def _list(self, each: Callable[[World, Bindings], list[str]]) -> Told:
        empty, separator, last = (self._rule(f"list_{name}") for name in ("empty", "separator", "last_separator"))

        def told(world: World, bindings: Bindings) -> str:
            items = each(world, bindings)
            if not items:
                return empty(world, bindings)
            if len(items) == 1:
                return items[0]
            return separator(world, bindings).join(items[:-1]) + last(world, bindings) + items[-1]

        return told

    def _predicates(self, symbols: Sequence[Any], seen: set[str]) -> set[str]:
        """The predicates that the text of some symbols reads, those of the rules that they name included."""
        found: set[str] = set()
        for symbol in symbols:
            match symbol:
                case ["rule", str(name)] if name not in seen and name in self._parsed_rules:
                    seen.add(name)
                    for condition, rhs in self._parsed_rules[name]:
                        found |= {predicate for predicate, _ in condition} | self._predicates(rhs, seen)
                case ["each", inner, given]:
                    found |= {predicate for predicate, _ in given} | self._predicates([inner], seen)
                case ["list", inner]:
                    found |= self._predicates([inner], seen)
                case _:
                    pass
        return {predicate.removeprefix("not_") for predicate in found}


def _query(parsed: Sequence[Any]) -> Query:
    return tuple((predicate, tuple((name, kind) for name, kind in of)) for predicate, of in parsed)


def _subtypes(supertypes: Mapping[str, list[str]]) -> dict[str, frozenset[str]]:
    """By type: itself and all that are below it."""
    return {kind: frozenset(sub for sub, above in supertypes.items() if kind in (sub, *above)) for kind in supertypes}


_HARMLESS = (
    ast.Expression,
    ast.Name,
    ast.Attribute,
    ast.Constant,
    ast.BinOp,
    ast.Add,
    ast.BoolOp,
    ast.Or,
    ast.And,
    ast.Load,
)


def _value(expression: str) -> Told:
    """An expression over the bound things. Game files are data: only names, attributes, `+`, `or`, `and` are run."""
    code = _checked(expression)
    nothing: dict[str, Any] = {"__builtins__": {}}

    def told(world: World, bindings: Bindings) -> str:
        entities = world.entities
        return str(eval(code, nothing, {name: entities[thing] for (name, _), thing in bindings.items()}))

    return told


def _checked(expression: str) -> CodeType:
    try:
        tree = ast.parse(expression.strip(), mode="eval")
    except SyntaxError:
        raise GrammarError(f"the grammar's expression {expression!r} is no expression") from None
    for node in ast.walk(tree):
        private = isinstance(node, ast.Attribute) and node.attr.startswith("_")
        if private or not isinstance(node, _HARMLESS):
            raise GrammarError(f"the grammar's expression {expression!r} does more than name things; it is not run")
    return compile(tree, "<grammar>", "eval")
