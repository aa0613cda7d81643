"""One optimisation step of a recurrent policy on a batch, or on a worker's share of one."""

import copy
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.networks.base import PolicyOutput, RecurrentPolicy
from agents.precision import products_in
from agents.trajectory import Arrays, Trajectory
from learner.credit.components import ComponentCritics
from learner.objective import Loss, appo_loss, normalise
from learner.parallel import ALONE, Workers
from learner.precision import resolve_precision
from learner.settings import LearnerSettings
from learner.vtrace import VTrace, vtrace

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What the policy says of a batch [T, B]; `output` carries the gradient."""

    output: PolicyOutput
    """Of all T + 1 observations."""
    final_value: Tensor
    """[T, B], of the observations after truncated steps; 0 elsewhere."""
    final_state: Tensor | None
    """[K, H], the recurrent states there; None where no step was truncated."""


@dataclass(frozen=True, slots=True)
class StepRewards:
    """What a batch is paid."""

    total: Floats
    """[T, B]"""
    components: Floats | None = None
    """[C, T, B], which add up to it; wanted where each component has a critic."""


class PolicyStep:
    """A policy with its optimiser. Every worker of a group has one, in the same state before and after each step."""

    def __init__(
        self,
        policy: RecurrentPolicy,
        settings: LearnerSettings,
        device: torch.device,
        *,
        critics: ComponentCritics | None = None,
        weights: Tensor | None = None,
    ) -> None:
        """`critics` and `weights` [C]: of the reward's components, where each has an advantage of its own."""
        self.settings = settings
        self.device = device
        self.dtype = resolve_precision(settings.precision, device)
        self.policy = policy.to(device).train()
        self.critics = critics
        self.workers: Workers = ALONE
        """Those who have a share of each batch."""
        self._weights = weights

    @functools.cached_property
    def optimizer(self) -> torch.optim.Adam:
        """Made when it is first needed: torch loads its compiler with it, and actors wait for the first weights."""
        settings = self.settings
        return torch.optim.Adam(
            self.policy.parameters(),
            lr=settings.learning_rate,
            betas=(settings.adam_beta1, settings.adam_beta2),
            eps=settings.adam_eps,
            fused=True,
        )

    def evaluate(self, batch: Trajectory) -> Evaluation:
        """The policy on all T + 1 observations, and on those after truncated steps.

        The observation after a truncated step is read with the recurrent state of that step: it is one more
        observation of the same episode, not the first of the next.
        """
        start = self._tensor(batch.start)
        with products_in(self.dtype, self.device):
            output = self.policy(self._observation(batch.observation), start, self._tensor(batch.initial_state))
        final_value = torch.zeros(batch.steps, batch.batch, device=self.device)
        final_state = None
        if len(batch.final_index):
            index = self._tensor(batch.final_index).to(torch.int64)
            with torch.no_grad(), products_in(self.dtype, self.device):
                final = {k: v.unsqueeze(0) for k, v in self._observation(batch.final_observation).items()}
                state = output.state[index[:, 0], index[:, 1]]
                fresh = torch.zeros(1, state.shape[0], dtype=torch.bool, device=self.device)
                after = self.policy(final, fresh, state)
            final_value[index[:, 0], index[:, 1]], final_state = after.value[0], after.state[0]
        return Evaluation(output, final_value, final_state)

    def take(self, batch: Trajectory, rewards: StepRewards, evaluation: Evaluation) -> dict[str, float]:
        """One optimisation step; its metrics, over the whole batch.

        Raises FloatingPointError where the loss is not finite: the policy is then still that before the step.
        """
        loss, targets = self._loss(batch, rewards, evaluation)
        self.optimizer.zero_grad(set_to_none=True)
        loss.total.backward()  # pyright: ignore[reportUnknownMemberType]
        samples = batch.steps * batch.batch
        self.workers.average_gradients(self.policy.parameters(), samples)
        grad_norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.settings.max_grad_norm)
        total, policy, value, entropy, clipped, kl = self._means(loss, samples)
        if not torch.isfinite(grad_norm) or not np.isfinite(total):
            raise FloatingPointError(
                f"the loss is not finite (loss {total}, gradient norm {grad_norm.item()}); lower learner.learning_rate, or "
                "look at the rewards"
            )
        self.optimizer.step()
        return {
            "loss/total": total,
            "loss/policy": policy,
            "loss/value": value,
            "policy/entropy": entropy,
            "policy/clipped": clipped,
            "policy/kl": kl,
            "policy/grad_norm": grad_norm.item(),
            "value/explained_variance": self._explained(batch, targets),
        }

    def _means(self, loss: Loss, samples: int) -> list[float]:
        parts = (loss.total, loss.policy, loss.value, loss.entropy, loss.clipped, loss.kl)
        return self.workers.average(torch.stack([part.detach() for part in parts]), samples).tolist()

    def _explained(self, batch: Trajectory, targets: VTrace) -> float:
        """(target − V) is V-trace's excess; its variance against the target's says how much the critic explains."""
        residual = targets.target - self._tensor(batch.value)
        _, variance = self.workers.moments(torch.stack([targets.target.flatten(), residual.flatten()]))
        return float(1.0 - variance[1] / variance[0].clamp(min=1e-8))

    def _loss(self, batch: Trajectory, rewards: StepRewards, evaluation: Evaluation) -> tuple[Loss, VTrace]:
        output, settings = evaluation.output, self.settings
        log_probs = torch.log_softmax(output.logits[:-1], dim=-1)
        action = self._tensor(batch.action)
        behaviour_log_prob = self._tensor(batch.log_prob)
        value = output.value[:-1]
        with torch.no_grad():
            log_ratio = log_probs.gather(2, action.unsqueeze(2)).squeeze(2) - behaviour_log_prob
            targets = vtrace(
                log_ratio=log_ratio,
                reward=self._tensor(rewards.total),
                value=value,
                bootstrap=output.value[-1],
                final_value=evaluation.final_value,
                terminated=self._tensor(batch.terminated),
                truncated=self._tensor(batch.truncated),
                discount=settings.discount,
                rho=settings.vtrace_rho,
                c=settings.vtrace_c,
            )
        loss = appo_loss(
            log_probs=log_probs.flatten(0, 1),
            action=action.flatten(),
            behaviour_log_prob=behaviour_log_prob.flatten(),
            value=value.flatten(),
            behaviour_value=self._tensor(batch.value).flatten(),
            advantage=self._advantage(batch, rewards, evaluation, targets, log_ratio).flatten(),
            target=targets.target.flatten(),
            settings=settings,
        )
        return loss, targets

    def _advantage(
        self, batch: Trajectory, rewards: StepRewards, evaluation: Evaluation, targets: VTrace, log_ratio: Tensor
    ) -> Tensor:
        """[T, B], without gradient; also a step of the components' critics, where there are any."""
        if self.critics is None or self._weights is None:
            if self.settings.normalise_advantage:
                return normalise(targets.advantage, self.workers)
            return targets.advantage
        assert rewards.components is not None  # whoever has critics has them too
        return self.critics.advantage(
            log_ratio=log_ratio,
            rewards=self._tensor(rewards.components),
            weights=self._weights,
            state=evaluation.output.state,
            final_state=evaluation.final_state,
            final_index=self._tensor(batch.final_index).to(torch.int64),
            terminated=self._tensor(batch.terminated),
            truncated=self._tensor(batch.truncated),
            discount=self.settings.discount,
            rho=self.settings.vtrace_rho,
            c=self.settings.vtrace_c,
            workers=self.workers,
        )

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        # Arrays from an object store are read-only and may be views; the learner never writes into them.
        return torch.from_numpy(np.require(array, requirements=["C", "W"])).to(self.device, non_blocking=True)

    def _observation(self, arrays: Arrays) -> dict[str, Tensor]:
        return {k: self._tensor(v) for k, v in arrays.items()}

    def state_dict(self) -> dict[str, Any]:
        """Policy and optimiser; those of critics are kept with the credit."""
        return {
            "policy": {k: v.detach().cpu().clone() for k, v in self.policy.state_dict().items()},
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state_dict` was taken."""
        self.policy.load_state_dict(state["policy"])
        self.optimizer.load_state_dict(state["optimizer"])
