"""The registry of reward models. Apart from them, so that checking a configuration loads neither torch nor numpy."""

from dataclasses import dataclass
from enum import StrEnum


class Source(StrEnum):
    """What a reward model learns from."""

    CAPTIONS = "captions"
    """The judge's labels of captions."""
    PAIRS = "pairs"
    """The judge's labels of pairs of captions."""
    EXPERIENCE = "experience"
    """What the agent meets; no judge."""
    NOTHING = "nothing"
    """It is fixed from the start; no judge."""

    @property
    def asks_judge(self) -> bool:
        return self in (Source.CAPTIONS, Source.PAIRS)


@dataclass(frozen=True, slots=True)
class Registered:
    """A module that defines `KIND` (`reward_server.models.base.RewardModelKind`); it is imported on use."""

    module: str
    source: Source


KINDS: dict[str, Registered] = {
    "hash": Registered("reward_server.models.hash", Source.CAPTIONS),
    "classification": Registered("reward_server.models.classification", Source.CAPTIONS),
    "ranking": Registered("reward_server.models.ranking", Source.PAIRS),
    "counts": Registered("reward_server.models.counts", Source.NOTHING),
    "rnd": Registered("reward_server.models.rnd", Source.EXPERIENCE),
    "ellm": Registered("reward_server.models.ellm", Source.NOTHING),
    "offline": Registered("reward_server.models.offline", Source.NOTHING),
}
"""Name in the configuration (`reward.model`) -> where it is."""
