"""What crosses the boundaries of the reward server: questions' keys, answers, and the judge that gives them."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


class JudgeError(Exception):
    """The judge could not be asked or could not be built. The message names the root cause and what to do."""


class JudgeUnavailableError(JudgeError):
    """The judge does not answer now (starting, down, timed out); asking again later may work."""


class JudgeStatus(StrEnum):
    """What `judge_status` in summaries says."""

    OFF = "off"
    STARTING = "starting"
    READY = "ready"
    DOWN = "down"
    """Asked and not answering (connection refused, timeouts, engine died); annotation resumes by itself when it is back."""
    UNREADABLE = "unreadable"
    """Answers arrive but cannot be read as labels."""
    EXHAUSTED = "exhausted"
    """`annotator.max_labels` is reached; nothing more is asked."""


@dataclass(frozen=True, slots=True)
class JudgeKey:
    """What a label depends on besides the caption: no caption is asked about twice under one key."""

    prompt_version: str
    """Name and content hash of the prompt template; a changed prompt never reuses old labels."""
    goal: str
    model: str
    """Model id or path and, where it is a local folder, a digest of its weights."""
    mode: str
    """`direct` or `reasoned`."""
    sampling: str
    """Canonical JSON of the sampling parameters."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The judge's answer about one caption."""

    label: int | None
    """0 or 1; None where the answer could not be read. An unreadable answer is missing, never 0."""
    probability: float | None
    """P(label = 1) renormalised over the two label tokens, in [0, 1]; None where the engine gives no log-probabilities."""
    raw: str
    latency_s: float


class Judge(Protocol):
    """Answers whether what a caption tells of is helpful for the goal."""

    @property
    def key(self) -> JudgeKey: ...

    async def ask(self, captions: Sequence[str]) -> list[Answer]:
        """One answer a caption, in order.

        Raises `JudgeUnavailableError` where no answer could be had, `JudgeError` where asking again cannot help.
        """
        ...

    async def close(self) -> None: ...
