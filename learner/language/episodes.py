"""From finished episodes to what the learner reads: packed tokens, and the reward of every turn with its parts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from agents.language.episode import LanguageEpisode
from learner.credit.outcomes import EpisodeOutcome, outcome_of
from learner.credit.settings import CreditSettings
from learner.fusion import fuse
from learner.language.batch import EpisodeTokens, TokenSequence
from learner.learner import IntrinsicReward
from learner.settings import RewardSettings

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class TurnRewards:
    """The reward of each of K turns, episode by episode, and what it is made of: `total` is the sum of the parts. All [K]."""

    extrinsic: Floats
    intrinsic: Floats
    penalty: Floats
    """For answers that could not be read; 0 or below."""
    bonus: Floats
    """r_int / N^β alone, before `w_int`; not a part of the sum."""
    progress: Floats | None = None
    """w_prog · ĉ, or a shaping made of it; None where credit is not attributed."""
    grounding: Floats | None = None
    """w_ground · g; None where credit is not attributed."""

    @property
    def total(self) -> Floats:
        total = self.extrinsic + self.intrinsic + self.penalty
        for part in (self.progress, self.grounding):
            total = total if part is None else total + part
        return total

    def parts(self) -> Mapping[str, Floats]:
        """The parts of the sum by name, and the sum."""
        return {
            "extrinsic": self.extrinsic,
            "intrinsic": self.intrinsic,
            "penalty": self.penalty,
            **({} if self.progress is None else {"progress": self.progress}),
            **({} if self.grounding is None else {"grounding": self.grounding}),
            "total": self.total,
        }


def turn_rewards(
    episodes: Sequence[LanguageEpisode], intrinsic: IntrinsicReward, settings: RewardSettings
) -> TurnRewards:  # fmt: skip
    """The one place where turns are rewarded: R_k = w_ext clip(s r_k) + w_int r_int(c_k) / N(c_k)^β + penalty_k."""
    turns = [turn for episode in episodes for turn in episode.turns]
    reward = np.array([turn.reward for turn in turns], dtype=np.float32)
    captions = np.array([turn.caption_id for turn in turns], dtype=np.int64)
    counts = np.array([turn.caption_count for turn in turns], dtype=np.int32)
    fused = fuse(reward, intrinsic.lookup(captions), counts, settings)
    penalty = np.array([turn.penalty for turn in turns], dtype=np.float32)
    return TurnRewards(fused.extrinsic, fused.intrinsic, penalty, fused.bonus)


def outcomes(episodes: Sequence[LanguageEpisode], settings: CreditSettings) -> NDArray[np.float64]:
    """[E]: R of each episode. Raises `OutcomeError` where one has none, or one that is not in [0, 1]."""
    ends = [EpisodeOutcome(e.length - 1, row, e.success, e.episode_return) for row, e in enumerate(episodes)]
    return np.array([outcome_of(end, settings) for end in ends])


def episode_tokens(episode: LanguageEpisode, context: int | None = None) -> EpisodeTokens:
    """The episode as `pack` takes it. Raises `ValueError` for a sequence of more than `context` tokens."""
    sequences = episode.sequences()
    longest = max(len(sequence.tokens) for sequence in sequences)
    if context is not None and longest > context:
        raise ValueError(
            f"episode {episode.episode_id} has a sequence of {longest} tokens, and the model reads {context}; "
            f"set agent.context={context} or less"
        )
    return EpisodeTokens(
        sequences=tuple(
            TokenSequence(
                tokens=torch.from_numpy(sequence.tokens),
                action=torch.from_numpy(sequence.action),
                turn=torch.from_numpy(sequence.turn),
                behaviour_log_prob=torch.from_numpy(sequence.log_prob),
            )
            for sequence in sequences
        ),
        versions=episode.versions,
        terminated=episode.terminated,
        group=episode.group,
    )


def temperature_of(episodes: Sequence[LanguageEpisode]) -> float:
    """The sampling temperature of a batch. Raises `ValueError` where episodes differ in it, or were played greedily."""
    found = {episode.temperature for episode in episodes}
    if len(found) > 1:
        raise ValueError(f"the batch mixes sampling temperatures: {', '.join(map(str, sorted(found)))}")
    (temperature,) = found
    if temperature <= 0:
        raise ValueError("the batch was played greedily, so its actions have no probabilities to learn from")
    return temperature
