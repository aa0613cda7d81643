"""From what the model said to a command, and back. An answer that cannot be read is reported, never guessed at.

Two forms (`agent.answer`). `thought`:

    Thought: The chest is locked, and I hold its key.
    Action: unlock chest with key

The command is what follows the last `Action:` at the beginning of a line, up to the end of that line. `command`: the
command is the only line of the answer; one `Action:` before it is forgiven.
"""

import re
from dataclasses import dataclass

from envs.captions import normalise
from envs.text import MAX_COMMAND

ANSWERS = ("thought", "command")

NOTHING = ""
"""What the world is told where an answer could not be read. No world understands it: it says so, and the step counts."""

_ACTION = re.compile(r"^[ \t*_]*action[ \t]*:[ \t*_]*(.*)$", re.IGNORECASE | re.MULTILINE)
_THOUGHT = re.compile(r"^[ \t*_]*thought[ \t]*:[ \t*_]*", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Answer:
    """What was read in the model's words."""

    command: str
    """White space made single spaces; `NOTHING` for a failure."""
    thought: str = ""
    failure: str | None = None
    """Why there is no command."""


def parse(text: str, answer: str, *, complete: bool = True) -> Answer:
    """Reads an answer of the form `answer` (one of `ANSWERS`); `complete`: the model ended it by itself.

    Of an answer that was cut nothing is carried out whose last line may go on.
    """
    return _parse_thought(text, complete) if answer == "thought" else _parse_command(text, complete)


def write(command: str, answer: str, thought: str = "") -> str:
    """The answer that says `command`: what demonstrations are made of. `parse` gives command and thought back."""
    return f"Thought: {thought}\nAction: {command}" if answer == "thought" else command


def _parse_thought(text: str, complete: bool) -> Answer:
    found = list(_ACTION.finditer(text))
    thought = normalise(_THOUGHT.sub("", text[: found[-1].start()] if found else text))
    if not found:
        return Answer(NOTHING, thought, "no line begins with Action:" if complete else "it was cut before an action")
    if not complete and found[-1].end() == len(text):
        return Answer(NOTHING, thought, "its action was cut")
    return _checked(found[-1].group(1), thought)


def _parse_command(text: str, complete: bool) -> Answer:
    lines = [line for line in text.split("\n") if line.strip()]
    if len(lines) > 1:
        return Answer(NOTHING, "", f"it has {len(lines)} lines instead of one command")
    if not complete:
        return Answer(NOTHING, "", "it was cut")
    line = lines[0] if lines else ""
    found = _ACTION.match(line)
    return _checked(found.group(1) if found else line, "")


def _checked(command: str, thought: str) -> Answer:
    command = normalise(command)
    if not command:
        return Answer(NOTHING, thought, "its action is empty")
    if len(command) > MAX_COMMAND:
        return Answer(NOTHING, thought, f"its action has {len(command)} characters, more than {MAX_COMMAND}")
    return Answer(command, thought)
