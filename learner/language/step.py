"""The optimisation steps of a language model: of one learner, or of a worker that takes them together with others.

Losses are sums of weighted tokens of the whole batch, so gradients of parts of it add up to its own, whoever has which.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from learner.checkpoint import on_cpu
from learner.language.batch import PackedTokens
from learner.language.losses import importance_weight
from learner.language.model import ActionScores, LanguageModel, micro_batches
from learner.language.objective import LanguageLoss, Objective, Targets
from learner.language.settings import LanguageSettings
from learner.language.trained import Trained
from learner.parallel import ALONE, Workers


@dataclass(frozen=True, slots=True)
class Reading:
    """How an update reads its tokens."""

    version: int
    """Of the weights that are about to be trained."""
    temperature: float
    """At which they were sampled."""
    fused: bool
    """π_prox is read in the training pass: there is one step, and nothing before it needs π_prox."""


@dataclass(frozen=True, slots=True)
class Minibatch:
    """The sequences of one optimisation step."""

    rows: list[int]
    count: int
    """Of how many parts of the batch they are one."""


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """What the trainer and the reference think of S sequences with M action tokens before they are trained on; float32, zeros
    where nobody asks for it."""

    log_prob: Tensor
    """[M]"""
    reference: Tensor
    """[M]"""
    value: Tensor
    """[M]"""
    final_value: Tensor
    """[S]"""


class LanguageStep:
    """Owns the model and its optimiser."""

    def __init__(self, model: LanguageModel, objective: Objective, settings: LanguageSettings) -> None:
        """`model` has a critic where the objective needs one, and a reference (or adapters) where it needs that."""
        if objective.needs_value and model.critic is None:
            raise ValueError(f"{type(objective).__name__} needs a model with a critic")
        self.model = model
        self.objective = objective
        self.settings = settings
        self.workers: Workers = ALONE
        self.steps = 0
        self.optimizer = torch.optim.AdamW(
            [
                {"params": group, "lr": rate, "base_lr": rate}
                for group, rate in (
                    (model.policy_parameters(), settings.learning_rate),
                    (model.critic_parameters(), settings.critic_learning_rate),
                )
                if group
            ],
            betas=(settings.adam_beta1, settings.adam_beta2),
            eps=settings.adam_eps,
            weight_decay=settings.weight_decay,
            fused=True,
        )

    @property
    def device(self) -> torch.device:
        return self.model.device

    @torch.no_grad()
    def evaluate(self, packed: PackedTokens, reading: Reading) -> Evaluation:
        """Reads what the objective asks for before the first step."""
        objective, m, device = self.objective, int(packed.action.sum()), packed.tokens.device
        own = (self.settings.recompute and not reading.fused) or objective.needs_value
        log_prob, value, reference = (torch.zeros(m, device=device) for _ in range(3))
        final_value = torch.zeros(packed.sequences, device=device)
        for rows in micro_batches(packed.lengths.tolist(), self.settings.micro_batch_tokens):
            index = torch.tensor(rows, device=device)
            part = packed.take(index)
            if own:
                scores = self.model.score(part, reading.temperature)
                log_prob[part.rows] = scores.log_prob
                if scores.value is not None and scores.final_value is not None:
                    value[part.rows], final_value[index] = scores.value, scores.final_value
            if objective.needs_reference:
                reference[part.rows] = self.model.reference_log_prob(part, reading.temperature)
        return Evaluation(log_prob, reference, value, final_value)

    def take(
        self, packed: PackedTokens, targets: Targets, minibatches: Sequence[Minibatch], reading: Reading
    ) -> Trained:
        """One optimisation step for each of `minibatches`, of which some may have no sequence here: other workers have theirs.

        Raises FloatingPointError where a loss is not finite (the weights are then those before the step).
        """
        trained = Trained(len(targets.advantage), self.device)
        for minibatch in minibatches:
            self._step(packed, targets, minibatch, reading, trained)
        return trained

    def _step(
        self, packed: PackedTokens, targets: Targets, minibatch: Minibatch, reading: Reading, trained: Trained
    ) -> None:
        """The losses are sums of weighted tokens of all of the batch, so those of one of its parts stand for as many times as
        much."""
        lengths, rows, count = packed.lengths.tolist(), minibatch.rows, minibatch.count
        self.optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for part_rows in micro_batches([lengths[row] for row in rows], self.settings.micro_batch_tokens):
            part = packed.take(torch.tensor([rows[i] for i in part_rows], device=packed.tokens.device))
            scores = self.model.score(part, reading.temperature)
            mine = targets.take(part.rows)
            if reading.fused:
                mine = _with_proximal(mine, scores.log_prob, self.objective.policy_settings.importance_cap)
            loss = self._loss(mine, scores, reading.version)
            (count * loss.total).backward()  # pyright: ignore[reportUnknownMemberType]
            total += loss.total.item()
            trained.add(part.rows, scores, mine, loss, count)
        self._optimise(total, reading.version, trained)

    def _loss(self, targets: Targets, scores: ActionScores, version: int) -> LanguageLoss:
        if version < self.settings.critic_warmup and self.objective.needs_value:
            targets = dataclasses.replace(targets, weight=torch.zeros_like(targets.weight))
        return self.objective.loss(
            targets, scores.log_prob, scores.entropy, scores.value if self.objective.needs_value else None
        )

    def _optimise(self, total: float, version: int, trained: Trained) -> None:
        parameters = [*self.model.policy_parameters(), *self.model.critic_parameters()]
        total = self.workers.add_gradients(parameters, total)
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.settings.max_grad_norm)
        if not np.isfinite(total) or not bool(norm.isfinite()):
            raise FloatingPointError(
                f"the loss is not finite at policy version {version} (loss {total}, gradient norm {norm.item()}); "
                "lower language.learning_rate, or look at the rewards"
            )
        self.steps += 1
        rise = min(1.0, self.steps / self.settings.warmup) if self.settings.warmup else 1.0
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * rise
        self.optimizer.step()
        trained.norms.append(norm.item())

    # What a worker that follows is told.

    def state_dict(self) -> dict[str, Any]:
        """All that training changes, on the CPU."""
        named = self.model.network.named_parameters()
        return on_cpu(
            {
                "weights": {name: p.detach() for name, p in named if p.requires_grad},
                "critic": None if self.model.critic is None else self.model.critic.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "steps": self.steps,
            }
        )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state_dict` was taken, of a step that was made from the same model."""
        self.model.network.load_state_dict(state["weights"], strict=False)
        if self.model.critic is not None:
            self.model.critic.load_state_dict(state["critic"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps = int(state["steps"])


def _with_proximal(targets: Targets, log_prob: Tensor, cap: float) -> Targets:
    """Targets of a first and only step, in which π_prox is π before it."""
    proximal = log_prob.detach()
    return dataclasses.replace(
        targets,
        proximal_log_prob=proximal,
        importance=importance_weight(proximal, targets.behaviour_log_prob, cap),
    )
