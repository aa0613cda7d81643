"""The rules that the embedded judge is taught, read from `rules.yaml`.

A rule book gives every text exactly one verdict: the label and the family of sentences that decided it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from typing import Any

import yaml

UNKNOWN = "unknown"
"""The family of a text that no rule matches; its label is 0: what is not known to be a gain is not rewarded."""

_QUOTED = re.compile(r'"[^"]*("|$)')
_SENTENCE_END = re.compile(
    r"(?<=[.!?])(?<!\.\.)\s+(?=[^a-z\s\[(]|[a-zA-Z] - )|(?<=\.\.\.)\s+(?=[A-Z])|(?<=\))\s+(?=[A-Z])"
)


class RuleError(ValueError):
    """The rule data contradict themselves; the message names the family."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the rules say of a text."""

    label: int
    """1: helpful; 0: not helpful."""
    family: str


@dataclass(frozen=True)
class Family:
    """Messages of one kind, which share a label."""

    name: str
    label: int
    source: str
    """File of NetHack 3.6 that prints them, and a page of the NetHack wiki."""
    patterns: tuple[str, ...]
    templates: tuple[str, ...]
    weight: float = 1.0
    """How often it is drawn for training, relative to the others."""

    @cached_property
    def regex(self) -> re.Pattern[str]:
        """All patterns as one; inline flags are scoped to the pattern that sets them."""
        parts = [f"(?i:{p.removeprefix('(?i)')})" if p.startswith("(?i)") else f"(?:{p})" for p in self.patterns]
        return re.compile("|".join(parts))


def sentences(text: str) -> list[str]:
    """The sentences of a text, what is quoted replaced by `"..."` (speech and writing prove nothing).

    Several messages that were joined by a space come apart again; a question keeps the answers listed behind it.
    """
    plain = _QUOTED.sub('"..."', text).strip()
    return [s for s in _SENTENCE_END.split(plain) if s]


@dataclass(frozen=True)
class RuleBook:
    """Families in the order in which they are tried, and the words that fill their templates."""

    version: int
    families: tuple[Family, ...]
    slots: Mapping[str, tuple[str, ...]]

    @classmethod
    def load(cls) -> "RuleBook":
        """The rule book of the package. Raises `RuleError` where its data contradict themselves."""
        folder = resources.files("reward_server.embedded")
        texts = [folder.joinpath(name).read_text("utf-8") for name in ("rules.yaml", "slots.yaml")]
        return cls.parse(texts[0], texts[1])

    @classmethod
    def parse(cls, rules_yaml: str, slots_yaml: str) -> "RuleBook":
        """A rule book from its two YAML documents."""
        data: dict[str, Any] = yaml.safe_load(rules_yaml)
        families = tuple(_family(entry) for entry in data["families"])
        slots = {str(k): tuple(str(v) for v in vs) for k, vs in yaml.safe_load(slots_yaml).items()}
        names = [f.name for f in families]
        if len(set(names)) != len(names):
            raise RuleError(f"rules.yaml: family {next(n for n in names if names.count(n) > 1)!r} is there twice")
        return cls(int(data["version"]), families, slots)

    def label(self, caption: str) -> Verdict:
        """The verdict on a caption: helpful if any of its sentences is, otherwise its first known one decides."""
        first: Verdict | None = None
        for sentence in sentences(caption):
            verdict = self._sentence(sentence)
            if verdict is not None and verdict.label == 1:
                return verdict
            first = first or verdict
        return first or Verdict(0, UNKNOWN)

    def _sentence(self, sentence: str) -> Verdict | None:
        for family in self.families:
            if family.regex.search(sentence):
                return Verdict(family.label, family.name)
        return None


def _family(entry: Mapping[str, Any]) -> Family:
    name = str(entry["name"])
    if entry["label"] not in (0, 1):
        raise RuleError(f"rules.yaml: family {name!r} has label {entry['label']!r}; it must be 0 or 1")
    family = Family(
        name,
        int(entry["label"]),
        str(entry["source"]),
        tuple(map(str, entry["patterns"])),
        tuple(map(str, entry["templates"])),
        float(entry.get("weight", 1.0)),
    )
    try:
        _ = family.regex
    except re.error as error:
        raise RuleError(f"rules.yaml: family {name!r} has a pattern that is no regular expression: {error}") from error
    return family
