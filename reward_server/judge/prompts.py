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
from pathlib import Path
from typing import Any, Literal, cast

import yaml

from reward_server.types import JudgeError, Pair

MAX_CAPTION_BYTES = 1200
"""A quoted caption is cut to so many bytes. No byte-level tokenizer makes more tokens than there are bytes."""

CLASSIFICATION = "classification-1"
"""The template that asks about one caption."""

RANKING = "ranking-1"
"""The template that asks which of two captions is better."""

FORM = 2
"""How captions and thoughts are put into prompts. Raised with any change of `quote`, its cut, or `conclusion`: labels of
another form are not reused."""

Subject = str | Pair
"""What a prompt asks about."""

_BLANK = re.compile(r"\{(caption|first|second)\}")
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
        """Goals that come with the project; a user's own are given to `prompt`."""
        return tuple({**self.data["goals"], **_goals()})

    @property
    def labels(self) -> tuple[str, ...]:
        """The answers, index = label: for not helpful and helpful; of a ranking for neither, first and second."""
        labels = self.data["labels"]
        kinds = ("neither", "first", "second") if "neither" in labels else ("unhelpful", "helpful")
        return tuple(str(labels[kind]) for kind in kinds)

    def prompt(self, goal: str, mode: str, own: Mapping[str, str] | None = None) -> "Prompt":
        """The prompt for one goal and mode; `own` are goals beside those of the project, and go before them.

        Raises `JudgeError` for a goal or mode that there is not.
        """
        known = {**self.data["goals"], **_goals(), **(own or {})}
        if goal not in known:
            raise JudgeError(f"judge.goal={goal} is no goal of prompt {self.name}; it has: {', '.join(known)}")
        if mode not in self.data["modes"]:
            raise JudgeError(
                f"judge.mode={mode} is no mode of prompt {self.name}; it has: {', '.join(self.data['modes'])}"
            )
        return Prompt(self, goal, mode, str(known[goal]))


@dataclass(frozen=True)
class Prompt:
    """A template with its goal and mode chosen; only the caption, or the two captions, are missing."""

    template: PromptTemplate
    goal: str
    mode: str
    goal_text: str

    @cached_property
    def version(self) -> str:
        """That of the template, the form, and where the goal is not one of the template's, a hash of the goal's text."""
        version = f"{self.template.version}/{FORM}"
        if self.template.data["goals"].get(self.goal) == self.goal_text:
            return version
        return f"{version}+{hashlib.blake2b(self.goal_text.encode(), digest_size=6).hexdigest()}"

    @cached_property
    def prefix(self) -> Chat:
        """System message and the part of the user message that stands before every caption."""
        data = self.template.data
        example = str(data["example"])
        shown = [_fill(example.replace("{label}", e["label"]), _example(e)) for e in data["examples"]]
        text = str(data["instruction"]).replace("{goal}", self.goal_text).replace("{examples}", "\n\n".join(shown))
        before = _BLANK.split(str(data["question"]), maxsplit=1)[0]
        return (
            Message("system", str(data["system"])),
            Message("user", f"{text}\n\n{data['modes'][self.mode]['ask']}\n\n{before}"),
        )

    def chat(self, subject: Subject) -> Chat:
        """The chat whose answer is the label (mode `direct`) or the reasoning (mode `reasoned`)."""
        system, user = self.prefix
        question = str(self.template.data["question"])
        blank = _BLANK.search(question)
        assert blank is not None
        return system, Message("user", user.content + _fill(question[blank.start() :], subject))

    def conclusion(self, subject: Subject, reasoning: str) -> Chat:
        """Mode `reasoned`: the chat, continued by the model's reasoning and the request for the label.

        The reasoning may repeat what a caption says, and is kept from forming control tokens as captions are.
        """
        conclude = str(self.template.data["modes"][self.mode]["conclude"])
        thought = _tame(reasoning.strip()) or "(no thoughts)"
        return (*self.chat(subject), Message("assistant", thought), Message("user", conclude))


def read_goals(path: str | Path) -> dict[str, str]:
    """A user's own goals: a YAML file that maps names to what {goal} in a prompt stands for.

    Raises `JudgeError` naming the file where it cannot be read or holds something else.
    """
    try:
        goals = yaml.safe_load(Path(path).expanduser().read_text("utf-8"))
    except OSError as error:
        raise JudgeError(f"judge.goals_file={path}: cannot be read: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise JudgeError(f"judge.goals_file={path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(goals, dict) or not goals:
        raise JudgeError(f"judge.goals_file={path}: must map names of goals to their texts")
    for name, text in goals.items():
        if not isinstance(name, str) or not isinstance(text, str) or not text.strip():
            raise JudgeError(f"judge.goals_file={path}: goal {name!r}: name and text must be text")
    return cast("dict[str, str]", goals)


def _fill(text: str, subject: Subject) -> str:
    """`text` with its blanks filled in one pass: what a caption holds is never taken for a blank."""
    if isinstance(subject, str):
        return _BLANK.sub(lambda _: quote(subject), text)
    quoted = {"first": quote(subject.first), "second": quote(subject.second)}
    return _BLANK.sub(lambda blank: quoted[blank[1]], text)


def _example(entry: Mapping[str, str]) -> Subject:
    return entry["message"] if "message" in entry else Pair(0, 0, entry["first"], entry["second"])


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


def _tame(text: str) -> str:
    """Text without `<`, `>` and brackets like `[INST]`: it stays readable, and no chat template's delimiter is left."""
    return _CONTROL_BRACKET.sub("(", text.replace("<", "‹").replace(">", "›"))


@lru_cache
def _load(name: str) -> PromptTemplate:
    file = resources.files("reward_server.judge").joinpath(f"templates/{name}.yaml")
    if not file.is_file():
        raise JudgeError(f"prompt template {name!r} does not exist in reward_server/judge/templates")
    return PromptTemplate(name, cast("dict[str, Any]", yaml.safe_load(file.read_text("utf-8"))))


@lru_cache
def _goals() -> Mapping[str, str]:
    """Goals that every template has beside its own."""
    text = resources.files("reward_server.judge").joinpath("templates/goals.yaml").read_text("utf-8")
    return cast("dict[str, str]", yaml.safe_load(text))
