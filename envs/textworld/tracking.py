"""What holds in a game of TextWorld: its facts, the actions that are possible, and the plan that wins it.

The story runs in the interpreter and knows nothing of facts. TextWorld follows it from outside: from the trace of
actions and the logic in the game's `.json`. To find the possible actions of a state is what costs time, so each state of
a game is looked into once and kept, with the transitions between them; episodes of the same game share them.
"""

import json
import threading
from collections import OrderedDict
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

from textworld.generator.game import Game, GameProgression, QuestProgression
from textworld.generator.inform7 import Inform7Game

MAX_STATES = 4096
"""States that are kept of one game."""
MAX_GAMES = 64
"""Games that are kept in a process."""


class State:
    """One state of a game's world. Never changed once made."""

    def __init__(self, rules: "Rules", logic: Any) -> None:
        self._rules = rules
        self.logic = logic
        self._next: dict[str, tuple[State, Any]] = {}

    @cached_property
    def actions(self) -> list[Any]:
        """The possible actions, those with most preconditions first."""
        knowledge = self._rules.game.kb
        found = self.logic.all_applicable_actions(knowledge.rules.values(), knowledge.types.constants_mapping)
        return sorted(found, key=lambda action: (-len(action.preconditions), str(action)))

    @cached_property
    def commands(self) -> tuple[str, ...]:
        """The commands of the possible actions, sorted, each once."""
        return tuple(sorted(set(self._rules.commands(self.actions))))

    @cached_property
    def folded(self) -> frozenset[str]:
        """`commands` without regard to case, which the game has none for either."""
        return frozenset(command.casefold() for command in self.commands)

    @cached_property
    def facts(self) -> tuple[str, ...]:
        """What is true, with the names that the player reads, sorted."""
        readable = self._rules.inform7.get_human_readable_fact
        told = [readable(fact) for fact in self.logic.facts]
        return tuple(sorted(f"{fact.name}({', '.join(fact.names)})" for fact in told))

    def after(self, event: str) -> "tuple[State, Any]":
        """The state that Inform's event leads to and the action that it was; this state and None where the event
        changes nothing that the game's logic knows."""
        event = event.lower()
        found = self._next.get(event)
        if found is None:
            found = self._rules.follow(self, event)
            if found[1] is not None:  # what is no action of the game's may hold any words of the player's
                self._next[event] = found
        return found


class Plan(GameProgression):
    """TextWorld's progress through the quests, without the search for possible actions that is not needed here."""

    def __init__(self, rules: "Rules") -> None:
        self.game = rules.game
        self.state = rules.start.logic
        self._valid_actions: list[Any] = []
        self.quest_progressions = [QuestProgression(quest, self.game.kb) for quest in self.game.quests]
        for progression in self.quest_progressions:
            progression.update(action=None, state=self.state)

    def advance(self, action: Any, logic: Any) -> None:
        """`action` led to the state `logic`."""
        self.state = logic
        for progression in self.quest_progressions:
            progression.update(action, logic)


class Rules:
    """The logic of one game."""

    def __init__(self, about: Path) -> None:
        self.game: Any = Game.deserialize(json.loads(about.read_bytes()))
        self.inform7 = Inform7Game(self.game)
        self._states: dict[frozenset[Any], State] = {}
        self.start = self._state(self.game.world.state.copy())

    @property
    def max_score(self) -> int:
        return int(self.game.max_score)

    @property
    def objective(self) -> str:
        return str(self.game.objective or "")

    @cached_property
    def walkthrough(self) -> tuple[str, ...]:
        """Commands that win the game; empty where TextWorld knows none."""
        plan = Plan(self).winning_policy
        # A challenge whose quests are conditions has no plan of actions; its maker may have written one down.
        return tuple(self.commands(plan)) if plan else tuple(self.game.metadata.get("walkthrough") or ())

    def commands(self, actions: Iterable[Any]) -> list[str]:
        return self.inform7.gen_commands_from_actions(actions)

    def follow(self, state: State, event: str) -> tuple[State, Any]:
        """As `State.after`, without looking at what is known already."""
        action = self.inform7.detect_action(event, state.actions)
        if action is None:
            return state, None
        logic = state.logic.copy()
        logic.apply(action)
        return self._state(logic), action

    def _state(self, logic: Any) -> State:
        key = frozenset(logic.facts)
        state = self._states.get(key)
        if state is None:
            if len(self._states) >= MAX_STATES:
                self._forget()
            state = self._states[key] = State(self, logic)
        return state

    def _forget(self) -> None:
        """Lets go of all states but the first; those that episodes stand in live on with them."""
        for state in self._states.values():
            state._next.clear()  # pyright: ignore[reportPrivateUsage] - the two belong together
        self._states = {frozenset(self.start.logic.facts): self.start}


_rules: OrderedDict[tuple[str, int, int], Rules] = OrderedDict()
_rules_lock = threading.Lock()


def rules_of(story: Path) -> Rules:
    """The logic of the game `story`, read from the `.json` beside it; kept for the episodes that follow."""
    about = story.with_suffix(".json")
    status = about.stat()
    key = (str(about.resolve()), status.st_mtime_ns, status.st_size)
    with _rules_lock:  # episodes may run in threads
        rules = _rules.get(key)
        if rules is None:
            rules = _rules[key] = Rules(about)
            if len(_rules) > MAX_GAMES:
                _rules.popitem(last=False)
        _rules.move_to_end(key)
    return rules
