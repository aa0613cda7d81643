"""The plain parts of a run, built from its configuration. Both runtimes use them: one calls them, one hosts them."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from agents.networks import NETWORKS, build_policy
from agents.observer import EpisodeObserver
from agents.report import FinishedEpisode
from agents.rollout import Rollout
from agents.trajectory import Trajectory
from envs import make
from envs.captions import EMPTY_CAPTION_ID
from envs.vector import VectorEnv
from learner.checkpoint import save_checkpoint
from learner.credit.fragments import Origin
from learner.credit.online import OnlineCredit
from learner.credit.outcomes import EpisodeOutcome
from learner.fusion import fuse
from learner.learner import IntrinsicReward, Learner, NoIntrinsicReward, Weights, resolve_device
from learner.precision import resolve_precision
from learner.returns import EpisodeSums, sums_by_id
from orchestration.config import Config
from orchestration.configuration import attributes_credit, is_traced, learns_intrinsic
from orchestration.results import FeedResult, actor_name
from orchestration.rundir import RunDir, code_revision
from orchestration.seeds import derive_seed, training_seed
from orchestration.summary import CaptionScore
from orchestration.traces.again import AsideKeeper, Recipe
from orchestration.traces.recorder import TraceRecorder
from orchestration.traces.writers import EpisodeWriters, TraceRun, WritersAside
from reward_server.distiller import Distiller, RewardModelVersion
from reward_server.models.base import reward_model_kind
from reward_server.scorer import CaptionScorer
from reward_server.server import RewardServer
from reward_server.store import AnnotationStore
from reward_server.types import Judge

_SHOWN_CAPTIONS = 5
_ASIDE_FROM = 0.1
"""From this share of traced episodes on it is worth a process to write them."""
_REFRESH_SHOWN_S = 5.0


def action_count(config: Config) -> int:
    """Number of actions of the run's environment."""
    env = make(config.env.id, NETWORKS[config.agent.network].view, **config.env.options)
    try:
        return len(env.env_spec.action_names)
    finally:
        env.close()


def build_rollout(config: Config, index: int, *, incarnation: int = 0, observer: EpisodeObserver | None) -> Rollout:
    """Rollout number `index`. A replaced one has a higher `incarnation`: it plays new episodes, not the old ones again."""
    seed = config.run.seed
    name = actor_name(index, incarnation)
    view = NETWORKS[config.agent.network].view
    envs = VectorEnv(
        lambda: make(config.env.id, view, **config.env.options),
        config.actors.envs,
        lambda env, episode: training_seed(seed, "env", index, incarnation, env, episode),
    )
    policy = build_policy(config.agent.network, len(envs.env_spec.action_names))
    return Rollout(
        envs,
        policy,
        length=config.actors.rollout_length,
        seed=derive_seed(seed, "actions", index, incarnation),
        name=name,
        observer=observer,
        dtype=resolve_precision(config.learner.precision, torch.device("cpu")),
    )


def build_observer(config: Config, traces: Path, index: int, incarnation: int = 0) -> EpisodeObserver | None:
    """The trace recorder of one actor; None where nothing is traced."""
    if not is_traced(config):
        return None
    run = TraceRun(
        run=config.run.name,
        seed=config.run.seed,
        code_revision=code_revision(),
        count_exponent=config.reward.count_exponent,
        policy=config.agent.network,
    )
    view = NETWORKS[config.agent.network].view
    agent = actor_name(index, incarnation)
    return TraceRecorder(
        traces,
        config.trace.rate,
        run,
        WritersAside(traces, run, agent)
        if config.trace.rate >= _ASIDE_FROM
        else EpisodeWriters(traces, run, agent, aside=True),
        agent=agent,
        asked=[name for name in config.trace.episodes.split(",") if name],
        keeper=AsideKeeper(Recipe(config.env.id, view, config.env.options, traces, run)) if config.trace.rate else None,
    )


def build_reward_server(config: Config, rundir: RunDir, judge: Judge) -> RewardServer:
    """Annotator, store and distiller, around a judge."""
    store = AnnotationStore(rundir.annotations)
    return RewardServer(
        judge,
        store,
        config.annotator,
        Distiller(
            store,
            judge.key,
            config.distiller,
            model=config.reward.model,
            seed=derive_seed(config.run.seed, "distiller"),
        ),
        seed=derive_seed(config.run.seed, "annotator"),
    )


def build_credit(config: Config, state_size: int, actions: int) -> OnlineCredit:
    """What attributes rewards to turns, for a policy whose core has `state_size` numbers."""
    return OnlineCredit(
        config.credit,
        config.reward,
        discount=config.learner.discount,
        state_size=state_size,
        actions=actions,
        seed=derive_seed(config.run.seed, "credit"),
        device=resolve_device(config.learner.device),
    )


class LearnerPart:
    """The learner, the scorer of captions that gives it intrinsic rewards, and their checkpoints."""

    def __init__(self, config: Config, actions: int) -> None:
        torch.manual_seed(derive_seed(config.run.seed, "policy"))
        self.config = config
        self.scorer: CaptionScorer | None = None
        intrinsic: IntrinsicReward = NoIntrinsicReward()
        if learns_intrinsic(config):
            self.scorer = intrinsic = CaptionScorer(
                reward_model_kind(config.reward.model).model(config.distiller, "cpu")
            )
        policy = build_policy(config.agent.network, actions)
        credit = build_credit(config, policy.state_size, actions) if attributes_credit(config) else None
        self.learner = Learner(policy, config.learner, config.reward, intrinsic, credit)
        self._sums = EpisodeSums()
        self._told: set[int] = set()
        self._told_version = 0
        self._idle_since = time.perf_counter()
        self._shown: tuple[tuple[CaptionScore, ...], tuple[CaptionScore, ...]] = ((), ())
        self._shown_at = -_REFRESH_SHOWN_S

    def weights(self) -> Weights:
        return self.learner.weights()

    def adopt(self, version: RewardModelVersion) -> None:
        """Takes a new reward model: every caption is scored anew when it comes next."""
        if self.scorer is not None:
            self.scorer.update(version)

    def feed(
        self,
        source: str,
        trajectory: Trajectory,
        new_captions: Sequence[tuple[int, str]],
        episodes: Sequence[FinishedEpisode] = (),
    ) -> tuple[FeedResult, Weights | None]:
        """Learns from one trajectory; the weights are None where no batch was full.

        `episodes` are those that ended in it; wanted where credit is attributed.
        """
        waited = time.perf_counter() - self._idle_since
        began = time.perf_counter()
        if self.scorer is not None:
            self.scorer.observe(new_captions)
            self.scorer.count(trajectory.caption_id)
        r_int = self.learner.intrinsic.lookup(trajectory.caption_id)
        scores = self._new_scores(trajectory.caption_id, r_int)
        rewards = fuse(trajectory.reward, r_int, trajectory.caption_count, self.config.reward)
        returns = self._sums.add(source, trajectory, rewards.bonus)
        self._refresh_shown()
        rewarded = time.perf_counter()
        updates = self.learner.feed(trajectory, _origin(source, trajectory, episodes))
        result = FeedResult(
            updates=tuple(updates),
            intrinsic_returns=returns,
            earned=self._earned(trajectory, rewards.bonus),
            policy_version=self.learner.version,
            reward_model_version=0 if self.scorer is None else self.scorer.version,
            samples_dropped=self.learner.dropped_samples,
            credit={} if self.learner.credit is None else self.learner.credit.metrics(),
            liked=self._shown[0],
            disliked=self._shown[1],
            scores=scores,
            reward_s=rewarded - began,
            waited_s=waited,
        )
        weights = self.learner.weights() if updates else None
        self._idle_since = time.perf_counter()
        return result, weights

    def _new_scores(self, caption_id: NDArray[np.int64], r_int: NDArray[np.float32]) -> dict[int, float]:
        """r_int of captions [T, B] that was not told before, for the traces."""
        if self.scorer is None or not self.scorer.version or not is_traced(self.config):
            return {}
        if self.scorer.version != self._told_version:
            self._told, self._told_version = {EMPTY_CAPTION_ID}, self.scorer.version
        ids, first = np.unique(caption_id, return_index=True)
        found = zip(ids.tolist(), r_int.ravel()[first].tolist(), strict=True)
        new = {caption: value for caption, value in found if caption not in self._told}
        self._told.update(new)
        return new

    def _earned(self, trajectory: Trajectory, bonus: NDArray[np.float32]) -> tuple[tuple[str, float], ...]:
        """What each caption earned in the trajectory. Few steps are rewarded, so this costs microseconds."""
        if self.scorer is None:
            return ()
        sums = sums_by_id(trajectory.caption_id, bonus)
        return tuple(zip(self.scorer.texts(sums), sums.values(), strict=True))

    def _refresh_shown(self) -> None:
        if self.scorer is None or time.perf_counter() - self._shown_at < _REFRESH_SHOWN_S:
            return
        self._shown_at = time.perf_counter()
        self._shown = self.favourites()

    def favourites(self) -> tuple[tuple[CaptionScore, ...], tuple[CaptionScore, ...]]:
        """The captions that the reward model likes most and least, the frequent ones first among equals."""
        if self.scorer is None:
            return (), ()
        top = self.scorer.top(_SHOWN_CAPTIONS)
        liked, disliked = (
            tuple(CaptionScore(caption.text, caption.probability, caption.count) for caption in captions)
            for captions in (top.liked, top.disliked)
        )
        return liked, disliked

    def checkpoint(self, root: Path, env_steps: int, rest: Mapping[str, Any], config_yaml: str, keep: int) -> Path:
        """Writes a checkpoint of the learner and of `rest`, the state of the other parts."""
        state = {**rest, "learner": self.state_dict()}
        policy = self.learner.policy.state_dict()
        return save_checkpoint(
            root,
            env_steps,
            policy={k: v.detach().cpu() for k, v in policy.items()},
            state=state,
            config=config_yaml,
            keep=keep,
        )

    def state_dict(self) -> dict[str, Any]:
        return {
            "learner": self.learner.state_dict(),
            "sums": self._sums.state_dict(),
            "scorer": None if self.scorer is None else self.scorer.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.learner.load_state_dict(state["learner"])
        self._sums.load_state_dict(state["sums"])
        if self.scorer is not None and state["scorer"] is not None:
            self.scorer.load_state_dict(state["scorer"])


def _origin(source: str, trajectory: Trajectory, episodes: Sequence[FinishedEpisode]) -> Origin:
    ends = tuple(EpisodeOutcome(e.t, e.end.env_index, e.end.success, e.end.episode_return) for e in episodes)
    return Origin(source, 0, trajectory.batch, ends)
