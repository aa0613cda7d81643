"""What a language model is told of a world, in words. The same for demonstrations, training, evaluation and play."""

from collections.abc import Sequence

_FORMS = {
    "thought": (
        "Think briefly, then give one command, in this form:\nThought: what you make of it\nAction: the command"
    ),
    "command": "Answer with one command and nothing else.",
}
_WORLD = "You are in a world of text. Each turn you read what is there and what happened."


def system_message(answer: str) -> str:
    """The instructions; `answer` is the form of the answers (`agent.answer`)."""
    return f"{_WORLD} {_FORMS[answer]}"


def opening(objective: str) -> str:
    """What stands before the first observation, and before the oldest one that is kept: what is to be done."""
    return f"Task: {objective}\n\n" if objective else ""


def observation_message(observation: str, admissible: Sequence[str] | None, failure: str | None = None) -> str:
    """What the beginning or a step brought; `admissible`: the commands to list, or None; `failure`: why the answer before
    it could not be read."""
    notice = f"Nothing was done, as your answer could not be read: {failure}.\n\n" if failure else ""
    listed = "\n\nPossible commands: " + "; ".join(admissible) if admissible else ""
    return f"{notice}{observation}{listed}"
