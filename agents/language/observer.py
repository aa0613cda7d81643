"""What a language rollout tells about its episodes to somebody who follows them: a trace recorder, a person who watches."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from agents.language.episode import Ids, LanguageEpisode, LanguageTurn


@dataclass(frozen=True, slots=True)
class LanguageStart:
    """The beginning of an episode."""

    episode_id: str
    env_id: str
    env_options: Mapping[str, Any]
    seeds: Mapping[str, str]
    policy_version: int
    reward_model_version: int | None
    """Of the newest reward model that the rollout was told of; None where there is none."""
    objective: str
    observation: str
    screen: str
    caption: str


@dataclass(frozen=True, slots=True, eq=False)
class LanguageStep:
    """One turn and what came of it."""

    turn: LanguageTurn
    reward_model_version: int | None
    """As in `LanguageStart`, by now."""
    prompt: Ids
    """[P] all that the model read."""
    caption: str
    observation: str
    """What the world answered."""
    screen: str
    terminated: bool
    truncated: bool
    success: bool | None
    metrics: Mapping[str, float]
    sampling: Mapping[str, Any]


class LanguageObserver(Protocol):
    """Follows the episodes of one rollout. Its calls come from one thread, those of one episode in order."""

    def start(self, start: LanguageStart) -> None: ...

    def step(self, episode_id: str, step: LanguageStep) -> None: ...

    def finish(self, episode: LanguageEpisode) -> None: ...

    def fail(self, episode_id: str, error: str) -> None:
        """The episode's world raised: it has no regular end."""
        ...

    def take_trouble(self) -> tuple[str, ...]:
        """Why episodes could not be recorded, a line each; since the last call."""
        ...

    def close(self) -> None:
        """Gives up the episodes that still run."""
        ...
