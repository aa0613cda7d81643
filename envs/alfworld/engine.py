"""Plays a game: Fast Downward's library holds its state, the grammar words it.

Word for word what ALFWorld's stock environment says (`AlfredInfos(AlfredDemangler(PddlEnv()))`), without its parsing: a
problem is translated once in its life instead of four times an episode, a command is worded once a game instead of
once a step. The tests play both side by side.
"""

import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import fast_downward

from envs.alfworld.compiled import Game
from envs.alfworld.grammar import Bindings, Entity, Told, World

NOTHING = "Nothing happens."
"""What the game says to a command that it does not execute."""

HIDDEN = ("new-axiom@", "not_")
"""Facts that are the planner's and the grammar's own."""


_free: list[Any] = []
"""Libraries that nobody uses. None is ever unloaded: to unload one and load another can crash the process."""


class Operator:
    """What can be done: its id in the library, its name there, its wording and what it says when it is done."""

    __slots__ = ("bindings", "changes", "command", "feedback", "id", "name")

    def __init__(self, number: int, name: str, bindings: Bindings, changes: int, feedback: Told) -> None:
        self.id, self.name, self.bindings, self.changes, self.feedback = number, name, bindings, changes, feedback
        self.command: str | None = None


class Player:
    """Plays one game after another. Not for several threads: the library has one state."""

    def __init__(self) -> None:
        try:
            self._library: Any = _free.pop()
        except IndexError:
            self._library = fast_downward.load_lib()
        self._buffer: Any = (fast_downward.Operator * 256)()
        self._operators: dict[int, Operator] = {}
        self._possible: dict[str, Operator] = {}
        self._world: World
        self._game: Game
        self.won = False
        self.admissible: tuple[str, ...] = ()

    def start(self, game: Game, numbers: random.Random | None = None) -> str:
        """Starts a game from its beginning and gives its opening. With `numbers`, things of a type are numbered in an
        order drawn from it."""
        problem = game.problem
        self._library.load_sas(problem.sas)
        self._operators.clear()
        self._game = game
        self._world = World(problem.facts, problem.objects, problem.supertypes)
        self._world.entities = name_entities(problem.facts, problem.objects, numbers)
        opening = game.worded(game.grammar.intro(self._world))
        self._look()
        return opening

    def say(self, command: str) -> str:
        """Does what `command` says, where it is admissible, and gives what the game answers."""
        operator = self._possible.get(command.strip())
        if operator is None:
            return NOTHING
        effects = (fast_downward.Atom * operator.changes)()
        self._library.apply_operator(operator.id, effects)
        for effect in effects:
            kind, _, rest = effect.name.partition(" ")
            predicate, _, arguments = rest.rstrip(")").partition("(")
            self._world.change(predicate, tuple(filter(None, arguments.split(", "))), kind == "Atom")
        answer = self._game.worded(operator.feedback(self._world, operator.bindings))
        self._look()
        return answer

    def knows(self, command: str) -> bool:
        """Whether a command is admissible now."""
        return command.strip() in self._possible

    def command_of(self, name: str) -> str | None:
        """The command that would apply the operator of that name (with its arguments), if any."""
        return next((command for command, operator in self._possible.items() if operator.name == name), None)

    def walkthrough(self) -> tuple[str, ...]:
        """The commands that win the game, by the numbers that its things have in this episode."""
        problem = self._game.problem
        usual = name_entities(problem.facts, problem.objects, None)
        now = {entity.name: self._world.entities[thing].name for thing, entity in usual.items()}
        names = re.compile(
            "|".join(rf"\b{re.escape(name)}\b" for name in sorted(now, key=len, reverse=True) if name[-1] != " ")
        )
        return tuple(names.sub(lambda match: now[match[0]], command) for command in self._game.walkthrough)

    def task(self) -> str:
        """The line that says what the game asks for."""
        return self._game.worded(self._game.grammar.say("task", self._world, {}))

    @property
    def world(self) -> World:
        """What is true now, by the ids of the game file."""
        return self._world

    def facts(self) -> tuple[str, ...]:
        """What is true now, with the names that the texts use: `inreceptacle(mug 1, desk 2)`, sorted."""
        world = self._world
        names = {thing: entity.name.strip() for thing, entity in world.entities.items()}
        return tuple(
            sorted(
                f"{predicate}({', '.join(names[thing] for thing in things)})"
                for predicate in world.predicates()
                if not predicate.startswith(HIDDEN)
                for things in world.ordered(predicate)
            )
        )

    def close(self) -> None:
        """Gives the library back. The player can't be used afterwards."""
        if self._library is not None:
            _free.append(self._library)
            self._library = None

    def _look(self) -> None:
        """Finds out what is possible now. Of operators with one wording the first is taken, as in the stock game."""
        library = self._library
        count: int = library.get_applicable_operators_count()
        if count > len(self._buffer):
            self._buffer = (fast_downward.Operator * (2 * count))()
        buffer = self._buffer
        library.get_applicable_operators(buffer)
        operators, possible = self._operators, dict[str, Operator]()
        for index in range(count):
            found = buffer[index]
            number: int = found.id
            operator = operators.get(number)
            if operator is None:
                operator = operators[number] = self._operator(found)
            command = operator.command
            possible.setdefault(self._command(operator) if command is None else command, operator)
        self._possible = possible
        self.admissible = tuple(sorted(possible))
        self.won = bool(library.check_goal())

    def _operator(self, found: Any) -> Operator:
        name, *arguments = found.name.split()
        placeholders = self._game.problem.parameters[name]
        # Of an action that the translator split, the parameters of the last part are read, as the stock game does.
        bindings = dict(zip(placeholders, arguments, strict=False))
        worded, feedback = self._game.grammar.actions[name]
        operator = Operator(found.id, found.name, bindings, found.nb_effect_atoms, feedback)
        if not self._game.grammar.command_depends_on(name) & self._game.problem.fluents:
            operator.command = worded(self._world, bindings)
        return operator

    def _command(self, operator: Operator) -> str:
        """The wording of a command that depends on what is true now."""
        worded, _ = self._game.grammar.actions[operator.name.split(maxsplit=1)[0]]
        return worded(self._world, operator.bindings)


def name_entities(
    facts: Iterable[tuple[str, ...]], objects: Mapping[str, str], numbers: random.Random | None
) -> dict[str, Entity]:
    """What ALFWorld calls each thing that the facts speak of: `mug_bar_…` is `mug 1`, `mug 2`, …, from the last to the
    first in sorted order, or in an order drawn from `numbers`. What has no place in its id has no number (`agent1 `)."""
    ids = sorted({thing for _, *things in facts for thing in things})
    kinds = {thing: _kind(thing) for thing in ids}
    left = Counter(kind for kind in kinds.values() if kind is not None)
    order = list(ids)
    if numbers is not None:
        numbers.shuffle(order)
    names: dict[str, str] = {}
    for thing in order:
        kind = kinds[thing]
        if kind is None:
            names[thing] = f"{_plain(thing)} "
        else:
            names[thing] = f"{kind} {left[kind]}"
            left[kind] -= 1
    return {thing: Entity(thing, objects[thing], names[thing]) for thing in ids}


def _kind(thing: str) -> str | None:
    kind, place, _ = thing.partition("_bar_")
    if not place:
        return None
    return _plain(kind) + ("basin" if "basin" in thing else "")


def _plain(text: str) -> str:
    for spelt, character in (("_bar_", "|"), ("_minus_", "-"), ("_plus_", "+"), ("_dot_", "."), ("_comma_", ",")):
        text = text.replace(spelt, character)
    return text
