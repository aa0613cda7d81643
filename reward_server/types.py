"""What crosses the boundaries of the reward server: questions' keys, answers, and the judge that gives them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, Protocol


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
    """The judge's answer about one caption, or about one pair of them."""

    label: int | None
    """Of a caption 0 or 1; of a pair 1 or 2 (which is better) or 0 (neither). None where the answer could not be read:
    an unreadable answer is missing, never 0."""
    probability: float | None
    """Renormalised over the label tokens, in [0, 1]: of a caption P(label = 1); of a pair the preference for the first,
    P(label = 1) + P(label = 0) / 2. None where the engine gives no log-probabilities."""
    raw: str
    latency_s: float
    prompt_tokens: int = 0
    """Tokens that were read for it, as far as the engine tells; 0 where the answer was there already."""
    cached_tokens: int = 0
    """Of these, what came from the prefix cache."""
    output_tokens: int = 0


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


class Pair(NamedTuple):
    """Two captions to be compared, in the order in which the judge is shown them."""

    first_id: int
    second_id: int
    first: str
    second: str

    @classmethod
    def of(cls, a: tuple[int, str], b: tuple[int, str]) -> "Pair":
        """The pair of two captions (id, text).

        Which comes first is drawn by a hash of the two ids: as good as random over pairs, so that a judge that favours
        a position errs on either side alike, and the same in every run, so that labels can be shared.
        """
        low, high = sorted((a, b))
        if pair_id(low[0], high[0]) & 1:
            low, high = high, low
        return cls(low[0], high[0], low[1], high[1])

    @property
    def id(self) -> int:
        return pair_id(self.first_id, self.second_id)


def pair_id(a: int, b: int) -> int:
    """The id of two captions, whatever their order: blake2b of their ids with a 64-bit digest, as SQLite can hold it."""
    ids = b"".join(i.to_bytes(8, "little", signed=True) for i in sorted((a, b)))
    return int.from_bytes(hashlib.blake2b(ids, digest_size=8).digest(), "little", signed=True)


class PairJudge(Protocol):
    """Answers which of two captions tells of more progress towards the goal."""

    @property
    def key(self) -> JudgeKey: ...

    async def ask(self, captions: Sequence[Pair]) -> list[Answer]:
        """One answer a pair, in order. Raises as `Judge.ask` does."""
        ...

    async def close(self) -> None: ...
