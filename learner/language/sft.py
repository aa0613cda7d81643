"""Supervised fine-tuning on demonstrations: the cross-entropy of action tokens, in the layout that RL has."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from agents.language.episode import LanguageEpisode
from learner.language.batch import EpisodeTokens, TokenBatch, TokenSequence, pack
from learner.language.episodes import episode_tokens
from learner.language.model import LanguageModel, micro_batches
from learner.language.settings import SFTSettings


@dataclass(frozen=True, slots=True)
class SFTStep:
    """What one optimisation step did."""

    step: int
    """From 1."""
    steps: int
    """Of the whole training."""
    loss: float
    """Cross-entropy of the batch's action tokens before the step, nats a token."""
    tokens: int
    """Read, prompts included."""
    action_tokens: int
    learning_rate: float
    grad_norm: float
    seconds: float


class SFTTrainer:
    """Trains a model on demonstrations by AdamW with linear warm-up and cosine decay."""

    def __init__(
        self, model: LanguageModel, demonstrations: Sequence[EpisodeTokens], settings: SFTSettings, seed: int
    ) -> None:
        """`seed`: of the order. Raises ValueError where there is nothing to learn from."""
        if not demonstrations:
            raise ValueError("there is no demonstration to learn from")
        self.model = model
        self.settings = settings
        self._demonstrations = demonstrations
        self._random = torch.Generator().manual_seed(seed)
        per_epoch = math.ceil(len(demonstrations) / settings.batch_episodes)
        self.steps = max(1, round(per_epoch * settings.epochs))
        self._parameters = model.policy_parameters()
        self._optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in self._parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
                {"params": [p for p in self._parameters if p.ndim <= 1], "weight_decay": 0.0},
            ],
            lr=settings.learning_rate,
            betas=(0.9, settings.adam_beta2),
            fused=True,
        )

    def run(self) -> Iterator[SFTStep]:
        """Trains, step by step. Raises FloatingPointError where a loss is not finite."""
        for step, rows in zip(range(self.steps), self._batches(), strict=False):
            began = time.perf_counter()
            rate = self.settings.learning_rate * self._schedule(step)
            for group in self._optimizer.param_groups:
                group["lr"] = rate
            batch = pack([self._demonstrations[row] for row in rows]).to(self.model.device)
            self._optimizer.zero_grad(set_to_none=True)
            loss = cross_entropy(self.model, batch, self.settings.micro_batch_tokens, train=True)
            norm = torch.nn.utils.clip_grad_norm_(self._parameters, self.settings.max_grad_norm)
            if not math.isfinite(loss) or not bool(norm.isfinite()):
                raise FloatingPointError(f"the loss of step {step + 1} is not finite; lower sft.learning_rate")
            self._optimizer.step()
            yield SFTStep(
                step=step + 1,
                steps=self.steps,
                loss=loss,
                tokens=len(batch.tokens),
                action_tokens=int(batch.action.sum()),
                learning_rate=rate,
                grad_norm=norm.item(),
                seconds=time.perf_counter() - began,
            )

    def _schedule(self, step: int) -> float:
        """Share of the learning rate: a line up over the warm-up, then half a cosine down to a tenth."""
        warmup = math.ceil(self.settings.warmup * self.steps)
        if step < warmup:
            return (step + 1) / warmup
        done = (step - warmup) / max(1, self.steps - warmup)
        return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done))

    def _batches(self) -> Iterator[list[int]]:
        size = self.settings.batch_episodes
        while True:
            order = torch.randperm(len(self._demonstrations), generator=self._random).tolist()
            yield from (order[low : low + size] for low in range(0, len(order), size))


def cross_entropy(model: LanguageModel, batch: TokenBatch, limit: int, *, train: bool) -> float:
    """Nats a token, over the action tokens of a batch; `train` also adds its gradient to the parameters'."""
    count = int(batch.action.sum())
    total = 0.0
    for rows in micro_batches(batch.lengths.tolist(), limit):
        part = batch.take(torch.tensor(rows, device=batch.tokens.device))
        with torch.set_grad_enabled(train):
            loss = -model.score(part).log_prob.sum() / count
            if train:
                loss.backward()  # pyright: ignore[reportUnknownMemberType]
        total += loss.item()
    return total


def demonstration_tokens(episode: LanguageEpisode, context: int | None = None) -> EpisodeTokens:
    """A demonstration without what follows its last answer, which nothing is learnt from."""
    return episode_tokens(replace(episode, final_prompt=episode.final_prompt[:0]), context)


def all_tokens(episode: EpisodeTokens) -> EpisodeTokens:
    """The same text with every token to be predicted but the first of each sequence: for training on text as such."""
    sequences = tuple(
        TokenSequence(
            tokens=s.tokens,
            action=torch.arange(len(s.tokens)) > 0,
            turn=torch.full_like(s.turn, number),
            behaviour_log_prob=torch.zeros_like(s.behaviour_log_prob),
        )
        for number, s in enumerate(episode.sequences)
    )
    return EpisodeTokens(sequences, tuple(0 for _ in sequences), episode.terminated, episode.group)
