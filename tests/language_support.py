"""Random episodes of packed tokens, and views of them as plain lists for slow references."""

import random

import torch

from learner.language.batch import EpisodeTokens, TokenBatch, TokenSequence, pack


def random_episode(
    rng: random.Random, *, turns: int | None = None, group: int = 0, vocabulary: int = 11, version: int = 0
) -> EpisodeTokens:  # fmt: skip
    """An episode of one or several sequences: observations and actions of 1 to 4 tokens in turn, sometimes a tail."""
    turns = rng.randrange(1, 5) if turns is None else turns
    sequences: list[list[tuple[int, bool, int, float]]] = [[]]
    for turn in range(turns):
        if sequences[-1] and rng.random() < 0.3:  # the history was rewritten
            sequences.append([])
        for _ in range(rng.randrange(1, 4)):
            sequences[-1].append((rng.randrange(vocabulary), False, rng.choice([turn, -1]), 0.0))
        for _ in range(rng.randrange(1, 5)):
            sequences[-1].append((rng.randrange(vocabulary), True, turn, -3 * rng.random() - 0.01))
    if turns == 0 or rng.random() < 0.5:
        sequences[-1].append((rng.randrange(vocabulary), False, -1, 0.0))
    return EpisodeTokens(
        sequences=tuple(sequence(rows) for rows in sequences),
        versions=tuple(version + rng.randrange(3) for _ in range(turns)),
        terminated=rng.random() < 0.5,
        group=group,
    )


def sequence(rows: list[tuple[int, bool, int, float]]) -> TokenSequence:
    """From rows of token, whether it is an action, turn, behaviour log-probability."""
    tokens, action, turn, log_prob = zip(*rows, strict=True)
    return TokenSequence(torch.tensor(tokens), torch.tensor(action), torch.tensor(turn), torch.tensor(log_prob))


def random_batch(seed: int, episodes: int = 4, groups: int = 1) -> TokenBatch:
    rng = random.Random(seed)
    return pack([random_episode(rng, group=number % groups) for number in range(episodes)])


def action_rows(batch: TokenBatch) -> list[tuple[int, int]]:
    """Episode and turn row of each action token, in order, by looking at one token after the other."""
    return [
        (int(batch.sequence_episode[s]), int(batch.turn[n]))
        for s in range(batch.sequences)
        for n in range(int(batch.offsets[s]), int(batch.offsets[s + 1]))
        if batch.action[n]
    ]


def randn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
