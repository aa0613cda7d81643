"""Credit while recurrent agents learn: attributes rewards to the turns of a batch, and teaches the progress estimator.

Exploration, the estimator and the policy go on together. The estimator reads what the policy's core has made of the
episode so far (its state, no gradient reaches it) and the action, and is used in the version published last.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import one_hot

from agents.trajectory import Trajectory
from learner.credit.assembly import Slots
from learner.credit.attribution import Attribution, CreditRule, Floats
from learner.credit.components import ComponentCritics
from learner.credit.estimator import ProgressEstimator
from learner.credit.fragments import Origin, carry, flat, square, turns_of
from learner.credit.outcomes import outcome_of
from learner.credit.registry import build_credit
from learner.credit.settings import CreditSettings
from learner.credit.stages import Stage
from learner.fusion import FusedReward
from learner.settings import RewardSettings


def turn_features(state: Tensor, action: Tensor, actions: int) -> Tensor:
    """[..., H + A]: the core's state [..., H] after an observation, and the action [...] that was then taken.

    The counterpart of a language model's hidden state at a turn's last token: all that came, what was done included.
    """
    return torch.cat([state.detach().float(), one_hot(action, actions).float()], dim=-1)


class OnlineCredit:
    """A credit method with its estimator, and what is known of running episodes.

    H is the size of the policy's core, A the number of actions.
    """

    def __init__(
        self,
        settings: CreditSettings,
        reward: RewardSettings,
        *,
        discount: float,
        state_size: int,
        actions: int,
        seed: int,
        device: torch.device,
    ) -> None:
        self.settings = settings
        rule = CreditRule(reward.w_prog, reward.w_ground, discount, settings.conserve)
        self.method = build_credit(settings.method, rule)
        if self.method.whole_episodes:
            raise ValueError(f"credit.method={settings.method} wants whole episodes, and rollouts bring parts of them")
        self._actions = actions
        self._slots = Slots(settings.max_turns, seed=seed)
        self.estimator: ProgressEstimator | None = None
        if self.method.needs_progress and reward.w_prog != 0.0:
            self.estimator = ProgressEstimator(settings, state_size + actions, seed=seed, device=device)
        self.critics: ComponentCritics | None = None
        if settings.advantage == "separate":
            self.critics = ComponentCritics(state_size, 4, learning_rate=settings.learning_rate, device=device)
        weights = (reward.w_ext, reward.w_int, reward.w_prog, reward.w_ground)
        self.weights = torch.tensor([abs(w) for w in weights], device=device)
        """[4], of the components' advantages where each has its own; their signs are in the rewards."""
        self._stage = Stage(settings, self.estimator)

    @property
    def exploring(self) -> bool:
        """Staged: the policy does not learn yet."""
        return self._stage.exploring

    def attribute(
        self, batch: Trajectory, origins: Sequence[Origin], fused: FusedReward, state: Tensor, version: int
    ) -> FusedReward:
        """The reward of every step of a batch; finished episodes go to the estimator.

        `batch` is the trajectories that came from `origins`, side by side; `fused` their rewards without credit; state
        [T + 1, B, H] the core's, under the policy's `version`.
        """
        outcome = np.full(batch.action.shape, np.nan)
        progress = np.zeros(batch.action.size)
        deviation = progress
        features: Tensor | None = None
        if self.estimator is not None:
            outcome = self._outcomes(batch, origins)
            action = torch.from_numpy(np.array(batch.action)).to(state.device)
            features = turn_features(state[:-1], action, self._actions).transpose(0, 1)  # [B, T, F]
            progress, deviation = self.estimator.contributions(features.flatten(0, 1))
        paid = self._attribute(batch, origins, fused, progress, flat(outcome))
        self._collect(batch, origins, features, outcome, version)
        extrinsic, intrinsic, earned, grounding = (square(x, batch.steps) for x in paid)
        return replace(
            fused,
            extrinsic=extrinsic,
            intrinsic=intrinsic,
            progress=earned,
            grounding=grounding,
            uncertainty=float(deviation.mean()),
        )

    def _attribute(
        self, batch: Trajectory, origins: Sequence[Origin], fused: FusedReward, progress: Floats, outcome: Floats
    ) -> list[Floats]:
        """The four components [K]. One origin after the other: a batch may hold two parts of the same episode."""
        paid: list[Attribution] = []
        first = 0
        for origin in origins:
            self._slots.hear(origin.source)
            slots = self._slots.of(origin.source, origin.first, origin.width)
            columns = slice(first, first + origin.width)
            rows = slice(first * batch.steps, columns.stop * batch.steps)
            turns = turns_of(batch, fused, progress[rows], outcome[rows], slots, columns)
            paid.append(self.method.attribute(turns))
            carry(turns, slots)
            first = columns.stop
        names = ("extrinsic", "intrinsic", "progress", "grounding")
        return [np.concatenate([getattr(each, name) for each in paid]) for name in names]

    def _outcomes(self, batch: Trajectory, origins: Sequence[Origin]) -> NDArray[np.float64]:
        """R [T, B] where episodes ended whose outcome is told, NaN elsewhere."""
        outcome = np.full(batch.action.shape, np.nan)
        offset = 0
        for origin in origins:
            for end in origin.ends:
                outcome[end.t, offset + end.b] = outcome_of(end, self.settings)
            offset += origin.width
        return outcome

    def _collect(
        self,
        batch: Trajectory,
        origins: Sequence[Origin],
        features: Tensor | None,
        outcome: NDArray[np.float64],
        version: int,
    ) -> None:
        kept = None if features is None else features.to("cpu", torch.float16)
        ended = batch.terminated | batch.truncated
        slots = [slot for each in origins for slot in self._slots.of(each.source, each.first, each.width)]
        for b, slot in enumerate(slots):
            outcomes = outcome[ended[:, b], b].tolist()
            part = None if kept is None else kept[b]
            for episode in self._slots.add(slot, part, batch.start[:-1, b], ended[:, b], outcomes, version):
                assert self.estimator is not None  # without one there are no features
                self.estimator.observe(episode)

    def miss(self, origin: Origin) -> None:
        """A trajectory was dropped unread."""
        self._slots.miss(origin.source, origin.first, origin.width)

    def forget_running(self) -> None:
        """Parts of all running episodes were lost."""
        self._slots.clear()

    def learn(self) -> None:
        """The estimator's part of an optimisation step of the policy."""
        self._stage.learn()

    def explored(self, steps: int) -> None:
        """Counts exploration; fits the estimator when there is enough of it, and ends that stage."""
        self._stage.explored(steps)

    def metrics(self) -> dict[str, float]:
        """How it stands: `progress/…`."""
        if self.estimator is None:
            return {}
        lost = {"progress/episodes_lost": float(self._slots.lost)}
        return {**self.estimator.metrics(), **lost, **self._stage.metrics()}

    def state_dict(self) -> dict[str, Any]:
        return {
            "slots": self._slots.state_dict(),
            "estimator": None if self.estimator is None else self.estimator.state_dict(),
            "critics": None if self.critics is None else self.critics.state_dict(),
            "stage": self._stage.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state_dict` was taken."""
        self._slots.load_state_dict(state["slots"])
        if self.estimator is not None and state["estimator"] is not None:
            self.estimator.load_state_dict(state["estimator"])
        if self.critics is not None and state["critics"] is not None:
            self.critics.load_state_dict(state["critics"])
        self._stage.load_state_dict(state["stage"])
