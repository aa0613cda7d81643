"""Prompts: what the judge is asked, as data (`templates/*.yaml`), and how a caption is put into them.

Invariants: all prompts of one template, goal and mode share everything before the caption; the caption is quoted, so
that no text inside it can end its quotation or form a control token; the version of a prompt changes whenever its
content does.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib import resources
from typing import Any, Literal, cast

import yaml

from reward_server.types import JudgeError

MAX_CAPTION_BYTES = 1200
"""A quoted caption is cut to so many bytes. No byte-level tokenizer makes more tokens than there are bytes."""

CLASSIFICATION = "classification-1"
"""The template that asks about one caption."""

_CONTROL_BRACKET = re.compile(r"\[(?=/?[A-Z_]{2,}\])")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str


Chat = tuple[Message, ...]


@dataclass(frozen=True)
class PromptTemplate:
    """A prompt read from its file."""

    name: str
    data: Mapping[str, Any]

    @classmethod
    def load(cls, name: str = CLASSIFICATION) -> "PromptTemplate":
        """The template `name` of the package. Raises `JudgeError` for a name that is none."""
        return _load(name)

    @cached_property
    def version(self) -> str:
        """Name and content hash, such as `classification-1@5f0c...`: part of the key under which labels are kept."""
        canonical = json.dumps(self.data, sort_keys=True, ensure_ascii=False)
        return f"{self.name}@{hashlib.blake2b(canonical.encode(), digest_size=6).hexdigest()}"

    @property
    def goals(self) -> tuple[str, ...]:
        return tuple(self.data["goals"])

    @property
    def labels(self) -> tuple[str, str]:
        """The answers for not helpful and helpful, in this order (index = label)."""
        return str(self.data["labels"]["unhelpful"]), str(self.data["labels"]["helpful"])

    def prompt(self, goal: str, mode: str) -> "Prompt":
        """The prompt for one goal and mode. Raises `JudgeError` for one that the template does not have."""
        if goal not in self.data["goals"]:
            raise JudgeError(f"judge.goal={goal} is no goal of prompt {self.name}; it has: {', '.join(self.goals)}")
        if mode not in self.data["modes"]:
            raise JudgeError(
                f"judge.mode={mode} is no mode of prompt {self.name}; it has: {', '.join(self.data['modes'])}"
            )
        return Prompt(self, goal, mode)


@dataclass(frozen=True)
class Prompt:
    """A template with its goal and mode chosen; only the caption is missing."""

    template: PromptTemplate
    goal: str
    mode: str

    @cached_property
    def prefix(self) -> Chat:
        """System message and the part of the user message that stands before every caption."""
        data = self.template.data
        example = str(data["example"])
        shown = [
            example.replace("{label}", e["label"]).replace("{caption}", quote(e["message"])) for e in data["examples"]
        ]
        text = (
            str(data["instruction"])
            .replace("{goal}", str(data["goals"][self.goal]))
            .replace("{examples}", "\n\n".join(shown))
        )
        before = str(data["question"]).partition("{caption}")[0]
        return (
            Message("system", str(data["system"])),
            Message("user", f"{text}\n\n{data['modes'][self.mode]['ask']}\n\n{before}"),
        )

    def chat(self, caption: str) -> Chat:
        """The chat whose answer is the label (mode `direct`) or the reasoning (mode `reasoned`)."""
        system, user = self.prefix
        after = str(self.template.data["question"]).partition("{caption}")[2]
        return system, Message("user", f"{user.content}{quote(caption)}{after}")

    def conclusion(self, caption: str, reasoning: str) -> Chat:
        """Mode `reasoned`: the chat, continued by the model's reasoning and the request for the label."""
        conclude = str(self.template.data["modes"][self.mode]["conclude"])
        thought = reasoning.strip() or "(no thoughts)"
        return (*self.chat(caption), Message("assistant", thought), Message("user", conclude))


def quote(caption: str) -> str:
    """A caption as a JSON string that holds neither `<`, `>` nor anything like `[INST]`, cut to `MAX_CAPTION_BYTES`.

    Delimiters and control tokens of chat templates can then not be written inside a caption.
    """
    cut = caption.encode("utf-8", "replace")[:MAX_CAPTION_BYTES].decode("utf-8", "ignore")
    while len(quoted := _escape(cut).encode()) > MAX_CAPTION_BYTES:
        cut = cut[: len(cut) * MAX_CAPTION_BYTES // len(quoted) - 1]
    return _escape(cut)


def _escape(text: str) -> str:
    quoted = json.dumps(text, ensure_ascii=False).replace("<", "\\u003c").replace(">", "\\u003e")
    return _CONTROL_BRACKET.sub("\\\\u005b", quoted)


@lru_cache
def _load(name: str) -> PromptTemplate:
    file = resources.files("reward_server.judge").joinpath(f"templates/{name}.yaml")
    if not file.is_file():
        raise JudgeError(f"prompt template {name!r} does not exist in reward_server/judge/templates")
    return PromptTemplate(name, cast("dict[str, Any]", yaml.safe_load(file.read_text("utf-8"))))
