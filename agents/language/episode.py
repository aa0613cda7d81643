"""Episodes of language-model agents: what travels from the rollouts to the learner. Token ids as they were sampled.

**What the model read.** Turn k was sampled after `LanguageEpisode.prompt_of(k)`. Mostly that is all that came before
it: the prompt and the output of the turn before, and then the ids of the new observation. Only these new ids are kept
(`LanguageTurn.prompt`). Where the history was rewritten (it had outgrown its budget; the chat template is not
append-only), the turn begins a new sequence, and its `prompt` is the whole one. Nothing is ever tokenised again.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]

STOPS = ("stop", "length")
"""Why an output ended: the model ended its turn; the limit of new tokens, or of the context, cut it."""
CUTS = ("steps", "context", "aborted")
"""Why an episode was truncated: the world's step limit; the next prompt did not fit; the rollout was ended."""


@dataclass(frozen=True, slots=True, eq=False)
class LanguageTurn:
    """One turn: what the model was shown, what it said, and what the world made of it. P new prompt tokens, O output tokens."""

    prompt: Ids
    """[P] int32: ids after the previous turn's output; with `rewritten`, the whole prompt."""
    rewritten: bool
    """The turn begins a sequence: true at turn 0, and wherever the prompt is not the previous sequence, continued."""
    output: Ids
    """[O] int32, O ≥ 1: the sampled ids, the end-of-turn token included where the model gave one."""
    log_prob: NDArray[np.float32]
    """[O]: log μ of each output token, at the sampling temperature."""
    version: int
    """Version of the weights that sampled the first output token: the oldest that had a part in the turn."""
    last_version: int
    """Version that sampled the last one. It differs where weights arrived in mid-sentence."""
    stop: str
    """One of `STOPS`."""
    text: str
    """The output, decoded without special tokens."""
    command: str
    """What the world was told; where the output could not be read, the command that the rules give (see `failure`)."""
    failure: str | None
    """Why no command could be read in the output; None: it was read."""
    penalty: float
    """Added to the turn's fused reward for an answer that could not be read, or not be executed; 0 or below."""
    reward: float
    """Extrinsic, unscaled."""
    grounded: bool
    """Whether the command could be executed; false for a failure."""
    caption_id: int
    """Of the text that the step brought; 0 for none. As in `Trajectory.caption_id`."""
    caption_count: int
    """How often that caption came in the episode, this time included; 0 for none."""
    generate_s: float
    """Seconds from asking the engine to having the output."""
    env_s: float
    """Seconds that the world took, waiting for a free thread included."""


@dataclass(frozen=True, slots=True, eq=False)
class SequenceArrays:
    """L tokens that the model read at once; as `learner.language.batch.TokenSequence`, free of torch."""

    tokens: NDArray[np.int64]
    """[L]"""
    action: NDArray[np.bool_]
    """[L]: the policy sampled this token."""
    turn: NDArray[np.int64]
    """[L]: turn of the episode, from 0; −1 outside outputs."""
    log_prob: NDArray[np.float32]
    """[L]: behaviour log-probability of action tokens; 0 elsewhere."""


@dataclass(frozen=True, slots=True, eq=False)
class LanguageEpisode:
    """One finished episode of at least one turn. An episode whose world raised never becomes one: it is counted instead."""

    episode_id: str
    env_id: str
    seed: int
    """What the world was reset with."""
    group: int
    """Episodes of one group began in the same task and seed; unique within a run."""
    member: int
    """Number within the group, from 0."""
    turns: tuple[LanguageTurn, ...]
    final_prompt: Ids
    """What follows the last output where the episode was cut: the last observation, up to where the model would speak.
    The value of the last state is read at its end. Empty where the episode terminated, and where it does not fit."""
    terminated: bool
    """The world's rules ended it."""
    truncated: bool
    """It was cut, see `cut`."""
    cut: str | None
    """One of `CUTS` where truncated."""
    success: bool | None
    """None where the world has no notion of it."""
    metrics: dict[str, float]
    """The world's own, at the end."""
    temperature: float
    """Of sampling; `log_prob` is at this temperature. At 0 (greedy) it is at 1."""
    wall_s: float
    """Seconds from the reset to the end."""

    def __post_init__(self) -> None:
        if not self.turns or not self.turns[0].rewritten:
            raise ValueError(f"episode {self.episode_id}: it needs turns, the first of which begins a sequence")
        for number, turn in enumerate(self.turns):
            if len(turn.output) == 0 or len(turn.output) != len(turn.log_prob) or len(turn.prompt) == 0:
                raise ValueError(
                    f"episode {self.episode_id}, turn {number}: {len(turn.prompt)} prompt tokens, {len(turn.output)} "
                    f"output tokens, {len(turn.log_prob)} log-probabilities"
                )

    @property
    def length(self) -> int:
        """Turns, which are the world's steps."""
        return len(self.turns)

    @property
    def episode_return(self) -> float:
        """Sum of the extrinsic rewards."""
        return sum(turn.reward for turn in self.turns)

    @property
    def failures(self) -> int:
        """Turns whose output could not be read."""
        return sum(turn.failure is not None for turn in self.turns)

    @property
    def output_tokens(self) -> int:
        return sum(len(turn.output) for turn in self.turns)

    @property
    def versions(self) -> tuple[int, ...]:
        """Of each turn, the oldest that had a part in it."""
        return tuple(turn.version for turn in self.turns)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return self.final_prompt.nbytes + sum(
            t.prompt.nbytes + t.output.nbytes + t.log_prob.nbytes for t in self.turns
        )  # fmt: skip

    def prompt_of(self, turn: int) -> Ids:
        """[P]: all ids that turn number `turn` was sampled after, as the engine was given them."""
        first = max(k for k in range(turn + 1) if self.turns[k].rewritten)
        parts: list[Ids] = []
        for k in range(first, turn):
            parts += [self.turns[k].prompt, self.turns[k].output]
        return np.concatenate([*parts, self.turns[turn].prompt])

    def sequences(self) -> tuple[SequenceArrays, ...]:
        """What the model read, in order: one sequence, and another for each rewriting of the history."""
        starts = [k for k, turn in enumerate(self.turns) if turn.rewritten] + [len(self.turns)]
        return tuple(self._sequence(low, high) for low, high in pairwise(starts))

    def _sequence(self, low: int, high: int) -> SequenceArrays:
        tokens: list[Ids] = []
        turn: list[NDArray[np.int64]] = []
        log_prob: list[NDArray[np.float32]] = []

        def add(ids: Ids, number: int, sampled: NDArray[Any] | None) -> None:
            tokens.append(ids)
            turn.append(np.full(len(ids), number, np.int64))
            log_prob.append(np.zeros(len(ids), np.float32) if sampled is None else sampled)

        for k in range(low, high):
            add(self.turns[k].prompt, -1, None)
            add(self.turns[k].output, k, self.turns[k].log_prob)
        if high == len(self.turns):
            add(self.final_prompt, -1, None)
        turns = np.concatenate(turn)
        return SequenceArrays(np.concatenate(tokens).astype(np.int64), turns >= 0, turns, np.concatenate(log_prob))
