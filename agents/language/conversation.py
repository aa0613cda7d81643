"""One episode's conversation as token ids, within a budget.

Invariant: of what was sampled, every token stands in the conversation as it was sampled, for as long as it stands
there. A prompt is the sequence so far and the new message's ids; or, where the history was rewritten, a new sequence.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from agents.language.episode import Ids
from agents.language.errors import LanguageModelError
from agents.language.template import ChatTemplate

HISTORIES = ("stop", "window")
TEMPLATES = ("append", "exact")
LEFT_OUT = "[earlier turns are left out]"


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """What the model is to read next."""

    ids: Ids
    """[P] all of it."""
    new: Ids
    """What of it was added to the sequence; with `rewritten` all."""
    rewritten: bool


@dataclass(frozen=True, slots=True)
class Budget:
    """How long a conversation may become, and what is done about it."""

    context: int
    """Tokens of the longest prompt and its answer together."""
    max_new_tokens: int
    history: str
    """One of `HISTORIES`."""

    @property
    def prompt(self) -> int:
        """Tokens of the longest prompt."""
        return self.context - self.max_new_tokens


@dataclass(slots=True)
class _Exchange:
    """What the world said, and what the model answered."""

    user: str
    output: list[int]
    text: str = ""
    """The answer, decoded; empty while there is none."""


class Conversation:
    """Begun once with `begin`; then `answered` and `follow` in turns."""

    def __init__(self, template: ChatTemplate, system: str, budget: Budget, mode: str = "append") -> None:
        """`mode`: one of `TEMPLATES`."""
        self._template, self._system, self._budget, self._mode = template, system, budget, mode
        self._exchanges: list[_Exchange] = []
        self._kept = 0
        """First exchange that the prompt still has."""
        self._opening = ""
        self._ids: list[int] = []

    def begin(self, opening: str, observation: str) -> Prompt:
        """The first prompt: `opening` (the task), which stays whatever is left out, and the first observation.

        Raises `LanguageModelError` where that is longer than the budget.
        """
        self._opening = opening
        self._exchanges, self._kept = [_Exchange(observation, [])], 0
        ids = self._whole()
        if len(ids) > self._budget.prompt:
            raise LanguageModelError(
                f"the first prompt has {len(ids)} tokens, which with agent.max_new_tokens={self._budget.max_new_tokens} "
                f"exceeds agent.context={self._budget.context}; set agent.context="
                f"{len(ids) + 4 * self._budget.max_new_tokens} or more"
            )
        return self._rewrite(ids)

    def answered(self, output: Sequence[int], text: str) -> None:
        """The model's answer: its ids as they were sampled, and their text."""
        last = self._exchanges[-1]
        last.output, last.text = list(output), text
        self._ids += last.output

    def follow(self, observation: str) -> Prompt | None:
        """The prompt after the next observation; None where it does not fit the context (`history=stop`, or even alone)."""
        last = self._exchanges[-1].output[-1]
        self._exchanges.append(_Exchange(observation, []))
        if self._mode == "append":
            new = self._template.follow(last, observation)
            fits = len(self._ids) + len(new) <= self._budget.prompt
            if fits:
                return self._extend(new)
        else:
            ids = self._whole()
            if len(ids) <= self._budget.prompt:
                begins = ids[: len(self._ids)] == self._ids
                return self._extend(ids[len(self._ids) :]) if begins else self._rewrite(ids)
        shorter = self._shorten() if self._budget.history == "window" else None
        if shorter is None:
            self._exchanges.pop()
        return shorter

    def bootstrap(self, observation: str, limit: int) -> Ids:
        """[F] ids that follow the last answer, up to where the model would speak, if the whole has at most `limit`
        tokens; otherwise none. For the value of the last state; the conversation stays as it is."""
        new = self._template.follow(self._exchanges[-1].output[-1], observation)
        return _array(new if len(self._ids) + len(new) <= limit else [])

    def _extend(self, new: list[int]) -> Prompt:
        self._ids += new
        return Prompt(_array(self._ids), _array(new), rewritten=False)

    def _rewrite(self, ids: list[int]) -> Prompt:
        self._ids = ids
        return Prompt(_array(ids), _array(ids), rewritten=True)

    def _shorten(self) -> Prompt | None:
        """Leaves out the oldest exchanges until half of the budget is free, or nothing but the newest is left."""
        half, newest = self._budget.prompt // 2, len(self._exchanges) - 1
        ids: list[int] = []
        while self._kept < newest:
            self._kept += 1
            ids = self._whole()
            if len(ids) <= half:
                break
        return self._rewrite(ids) if ids and len(ids) <= self._budget.prompt else None

    def _whole(self) -> list[int]:
        """Ids of a conversation of what is kept: answers as they were sampled (`append`), or as text (`exact`)."""
        first, *rest = self._exchanges[self._kept :]
        left_out = f"{LEFT_OUT}\n\n" if self._kept else ""
        opening = f"{self._opening}{left_out}{first.user}"
        if self._mode == "append":
            ids = self._template.begin(self._system, opening)
            for before, after in zip([first, *rest], rest, strict=False):
                ids += before.output + self._template.follow(before.output[-1], after.user)
            return ids
        messages = [{"role": "system", "content": self._system}, {"role": "user", "content": opening}]
        for before, after in zip([first, *rest], rest, strict=False):
            messages += [{"role": "assistant", "content": before.text}, {"role": "user", "content": after.user}]
        return self._template.prompt(messages)


def _array(ids: Sequence[int]) -> Ids:
    return np.array(ids, np.int32)
