"""Instructions to be followed: tasks that say which commands to give, in their words or in others.

What a pretrained model knows of its language before it plays, the small model has to be taught: that a task is read step by
step, that the step after the one just done is next, and which command is meant where the task says it otherwise ("place the
lamp inside the chest": `insert lamp into chest`). None says anything of what wins a game. The paraphrases are not taken from
a game's grammar; where plain words have few synonyms, some are in one too.
"""

import random
import re
from collections.abc import Callable, Sequence
from itertools import pairwise

from learner.language.transcripts import Transcript


def hindsight_instructions(said: Sequence[Transcript], pieces: int, rng: random.Random) -> list[Transcript]:
    """Pieces of the transcripts whose messages list the possible commands, of two commands at least, as if the task had been to
    do what was done: hindsight's instructions (Andrychowicz et al. 2017, arXiv 1707.01495), which need no planner."""
    found: list[Transcript] = []
    for whole in said:
        length = len(whole.commands)
        if whole.listed[0] is None or length < 2:
            continue
        for _ in range(pieces):
            begin = rng.randint(0, length - 2)
            end = rng.randint(begin + 2, length)
            commands = whole.commands[begin:end]
            found.append(
                Transcript(
                    instruction(commands, rng),
                    whole.observations[begin : end + 1],
                    commands,
                    whole.listed[begin : end + 1],
                )
            )
    return found


def drills(said: Sequence[Transcript], count: int, rng: random.Random) -> list[Transcript]:
    """Transcripts of nothing but instructions, without a world: a few things and places out of all that were spoken of, commands
    about them, and messages that list the next one among others about the same, so that nothing but the task tells which."""
    known = sorted({command for whole in said for command in whole.commands})
    things, places = _names(known, "x"), _names(known, "y")
    found: list[Transcript] = []
    for _ in range(count if things and places else 0):
        possible = _commands(_some(things, rng), _some(places, rng), rng)
        commands = tuple(possible[: min(rng.randint(*_DRILLED), len(possible))])
        listed: list[tuple[str, ...]] = []
        for command in (*commands, commands[0]):
            others = rng.sample(possible, min(len(possible), rng.randint(*_LISTED)))
            listed.append(tuple(sorted({command, *others})))
        observations = ("", *(rng.choice(_DONE) for _ in commands))
        found.append(Transcript(instruction(commands, rng), observations, commands, tuple(listed)))
    return found


def instruction(commands: Sequence[str], rng: random.Random) -> str:
    """A task that says to give these commands in this order: one in three in their very words."""
    if rng.random() < _VERBATIM:
        return rng.choice(_ORDERS)(commands)
    said = f"{rng.choice(_FIRST)} {paraphrased(commands[0], rng)}."
    for before, command in pairwise(commands):
        thing = _noun(before)
        after = f"{rng.choice(_DONE_WITH)} the {thing}," if thing and rng.random() < _BACK else rng.choice(_NEXT)
        said += f" {after} {paraphrased(command, rng)}."
    return said + rng.choice(_LAST)


def paraphrased(command: str, rng: random.Random) -> str:
    """The command as somebody might say it; itself where its form is not known."""
    for form, wordings in _FORMS.items():
        if match := _pattern(form).fullmatch(command):
            return rng.choice(wordings).format(**{name: f"the {noun}" for name, noun in match.groupdict().items()})
    return command


def _pattern(form: str) -> re.Pattern[str]:
    return re.compile(form.format(x="(?P<x>.+)", y="(?P<y>.+)"))


def _noun(command: str) -> str | None:
    """What a command is about first."""
    for form in _FORMS:
        if match := _pattern(form).fullmatch(command):
            nouns = match.groupdict()
            return nouns.get("x") or nouns.get("y")
    return None


def _names(commands: Sequence[str], slot: str) -> list[str]:
    """Nouns of two-part commands: `x` that something is done with, `y` that it is done to."""
    forms = [_pattern(form) for form in _FORMS if "{x}" in form and "{y}" in form]
    return sorted({match[slot] for command in commands for form in forms if (match := form.fullmatch(command))})


def _some(names: Sequence[str], rng: random.Random) -> list[str]:
    return rng.sample(names, min(len(names), rng.randint(*_CAST)))


def _commands(things: Sequence[str], places: Sequence[str], rng: random.Random) -> list[str]:
    """Different commands about these things and places, of each form about as many."""
    drawn = [form.format(x=rng.choice(things), y=rng.choice(places)) for _ in range(_ROUNDS) for form in _FORMS]
    different = sorted(set(drawn))
    rng.shuffle(different)
    return different


_DRILLED, _LISTED = (3, 8), (3, 10)
"""Commands of a drill's task, and further ones that a message lists: fewest and most."""
_CAST = (1, 3)
"""Things, and places, of a drill: fewest and most."""
_ROUNDS = 2
"""Commands drawn of each form."""
_VERBATIM, _BACK = 1 / 3, 0.25
"""Chance of a task in the commands' very words; and, between two steps in others, of naming what the first was about."""
_DONE = ("Done.", "You do so.", "That is done.", "All right.")

_ORDERS: tuple[Callable[[Sequence[str]], str], ...] = (
    lambda commands: "Do this: " + "; ".join(commands) + ".",
    lambda commands: "First, " + ". Then, ".join(commands) + ".",
    lambda commands: ", and then ".join(commands) + ". That is all.",
)

_FIRST = ("First,", "To begin with,", "Start like this:", "At first, please", "Before all else,")
_NEXT = ("Then", "Next,", "Then please", "When that is so,", "Now", "Right after,", "Afterwards")
_DONE_WITH = ("Done with", "No longer busy with", "Now that you are through with")
_LAST = ("", " That is all.", " No more is needed.", " Here it ends.")

_FORMS: dict[str, tuple[str, ...]] = {
    "take {x} from {y}": (
        "get {x} from {y}",
        "fetch {x} out of {y}",
        "grab {x} off {y}",
        "pick {x} up from {y}",
        "look for {x} in {y} and take it",
    ),
    "take {x}": ("get {x}", "pick up {x}", "grab {x} from the ground", "collect {x}", "have {x} in your hands"),
    "drop {x}": ("let {x} fall", "leave {x} on the ground", "lay {x} down here", "put down {x}", "get rid of {x}"),
    "put {x} on {y}": (
        "place {x} on {y}",
        "lay {x} on top of {y}",
        "leave {x} on {y}",
        "set {x} down on {y}",
        "move {x} onto {y}",
    ),
    "insert {x} into {y}": (
        "place {x} in {y}",
        "put {x} inside {y}",
        "store {x} in {y}",
        "move {x} into {y}",
        "hide {x} inside {y}",
    ),
    "unlock {y} with {x}": (
        "use {x} to unlock {y}",
        "undo the lock of {y} with {x}",
        "see to it that {y} is unlocked, with {x}",
        "turn {x} in the lock of {y} so that it can be opened",
    ),
    "lock {y} with {x}": (
        "use {x} to lock {y}",
        "see to it that {y} is locked, with {x}",
        "turn {x} in the lock of {y} so that nobody can open it",
        "lock up {y} by means of {x}",
    ),
    "open {y}": ("let {y} be open", "see to it that {y} is open", "pull at {y} until it opens", "open up {y}"),
    "close {y}": ("shut {y}", "let {y} be closed", "see to it that {y} is shut"),
    "eat {x}": ("have {x} for a meal", "swallow {x}", "put {x} into your mouth"),
    "examine {x}": ("look at {x}", "study {x}", "see what {x} is like"),
    "go north": ("walk north", "leave to the north", "make your way northward"),
    "go east": ("walk east", "leave to the east", "make your way eastward"),
    "go south": ("walk south", "leave to the south", "make your way southward"),
    "go west": ("walk west", "leave to the west", "make your way westward"),
    "look": ("look around", "see where you are"),
    "inventory": ("see what you carry", "check your bags"),
}
"""How commands can be said otherwise, in order of matching: the longer form first."""
