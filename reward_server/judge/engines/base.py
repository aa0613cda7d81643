"""The one interface behind which a language model runs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from reward_server.judge.prompts import Chat
from reward_server.types import JudgeError


@dataclass(frozen=True, slots=True)
class Completion:
    """What a model answered to one chat."""

    text: str
    probabilities: Mapping[str, float] | None
    """Probability of each choice, renormalised over the choices; None for free text, or where the engine gives none."""
    latency_s: float
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    """Tokens of the prompt that came from the prefix cache; None where the engine does not say."""
    output_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of a model, for a batch of chats."""

    max_tokens: int
    """Most tokens of the answer."""
    choices: tuple[str, ...] | None = None
    """The answer is constrained to be one of these; None: free text."""
    temperature: float = 0.0


class Engine(Protocol):
    """Runs a language model. Invariant: one completion a chat, in order, or an exception for the whole batch."""

    async def start(self) -> None:
        """Gets ready to answer; otherwise the first question does. `JudgeError` where the model cannot be loaded."""
        ...

    async def complete(self, chats: Sequence[Chat], request: Request) -> list[Completion]:
        """Answers a batch of chats.

        Raises `JudgeUnavailableError` where asking again later may work, `JudgeError` where it cannot.
        """
        ...

    async def check(self) -> None:
        """Really asks the model, and brings a dead one back where it can; `JudgeError` where it does not answer."""
        ...

    async def close(self) -> None:
        """Ends the model and the processes that belong to it. Can be called twice."""
        ...


class ChatRenderer:
    """Turns chats into token ids with the model's own chat template."""

    def __init__(self, tokenizer: Any, model: str) -> None:
        self._tokenizer = tokenizer
        self._system_role = True
        if not tokenizer.chat_template:
            raise JudgeError(
                f"model {model} has no chat template, so it cannot be asked; choose one that is tuned for chat"
            )

    def text(self, chat: Chat) -> str:
        """The prompt as text. Templates without a system role get the system message at the head of the user's."""
        import jinja2

        if self._system_role:
            try:
                return self._render([(m.role, m.content) for m in chat])
            except jinja2.TemplateError:
                self._system_role = False
        return self._render([(m["role"], m["content"]) for m in without_system(chat)])

    def ids(self, chat: Chat) -> list[int]:
        """The prompt as token ids; control tokens come from the template alone (captions are quoted)."""
        return list(self._tokenizer(self.text(chat), add_special_tokens=False)["input_ids"])

    def batch_ids(self, chats: Sequence[Chat]) -> list[list[int]]:
        """`ids` of each chat, in one call of the tokenizer: three quarters of the time of a call each."""
        texts = [self.text(chat) for chat in chats]
        return [list(ids) for ids in self._tokenizer(texts, add_special_tokens=False)["input_ids"]] if texts else []

    def choice_ids(self, choices: Sequence[str]) -> dict[str, list[int]]:
        """Token ids of each choice: the bare piece and, where it is one token, the piece with a space before it.

        Raises `JudgeError` where a choice is not a single token of the model.
        """
        found: dict[str, list[int]] = {}
        for choice in choices:
            pieces = [self._tokenizer(text, add_special_tokens=False)["input_ids"] for text in (choice, " " + choice)]
            found[choice] = list(dict.fromkeys(ids[0] for ids in pieces if len(ids) == 1))
            if not found[choice]:
                raise JudgeError(
                    f"the label {choice!r} is not one token of this model, so its probability cannot be read"
                )
        return found

    def _render(self, turns: Sequence[tuple[str, str]]) -> str:
        chat = [{"role": role, "content": content} for role, content in turns]
        # enable_thinking: models that would think by themselves (Qwen3) are told not to; the others ignore it.
        return self._tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, tokenize=False, enable_thinking=False
        )


def without_system(chat: Chat) -> list[dict[str, str]]:
    """The chat for models that know no system role: its text goes to the head of the first user message."""
    turns = [{"role": m.role, "content": m.content} for m in chat]
    if turns and turns[0]["role"] == "system":
        system = turns.pop(0)["content"]
        turns[0] = {"role": turns[0]["role"], "content": f"{system}\n\n{turns[0]['content']}"}
    return turns


def renormalise(log_probabilities: Mapping[str, Sequence[float]]) -> dict[str, float] | None:
    """Probabilities over the choices from log-probabilities of their pieces; None where no piece has any."""
    flat = [lp for lps in log_probabilities.values() for lp in lps if lp > -math.inf]
    if not flat:
        return None
    highest = max(flat)
    mass = {choice: sum(math.exp(lp - highest) for lp in lps) for choice, lps in log_probabilities.items()}
    total = sum(mass.values())
    return {choice: m / total for choice, m in mass.items()}
