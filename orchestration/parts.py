"""The plain parts of a run, built from its configuration. Both runtimes use them: one calls them, one hosts them."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.networks import NETWORKS, build_policy
from agents.observer import EpisodeObserver
from agents.report import FinishedEpisode
from agents.rollout import Rollout
from agents.trajectory import Trajectory
from envs import make
from envs.vector import VectorEnv
from learner.checkpoint import save_checkpoint
from learner.credit.fragments import Origin
from learner.credit.online import OnlineCredit
from learner.credit.outcomes import EpisodeOutcome
from learner.fusion import fuse
from learner.learner import Learner, NoIntrinsicReward, Weights, policy_step, resolve_device
from learner.precision import resolve_precision
from learner.returns import EpisodeSums, sums_by_id
from learner.step import PolicyStep
from orchestration.config import Config
from orchestration.configuration import attributes_credit, is_traced
from orchestration.heap import HeapTrimmer
from orchestration.restoring import learned_samples, newest_state
from orchestration.results import FeedResult, Floor, TakenOver, actor_name
from orchestration.rundir import RunDir, code_revision
from orchestration.scoring import CaptionViews, ToldScores, scorer_of
from orchestration.seeds import derive_seed, training_seed
from orchestration.traces.again import AsideKeeper, Recipe
from orchestration.traces.recorder import TraceRecorder
from orchestration.traces.room import Room
from orchestration.traces.writers import ASIDE_FROM, EpisodeWriters, TraceRun, WritersAside
from reward_server.distiller import Distiller
from reward_server.kinds import KINDS, Source
from reward_server.models.base import RewardModelVersion
from reward_server.pairs import PairSource
from reward_server.server import RewardServer
from reward_server.store import AnnotationStore
from reward_server.types import Judge, PairJudge


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
        if config.trace.rate >= ASIDE_FROM
        else EpisodeWriters(traces, run, agent, aside=True),
        agent=agent,
        asked=config.trace.asked,
        keeper=AsideKeeper(Recipe(config.env.id, view, config.env.options, traces, run)) if config.trace.rate else None,
        room=Room(traces),
    )


def build_reward_server(config: Config, rundir: RunDir, judge: Judge | PairJudge, replicas: int = 1) -> RewardServer:
    """Annotator, store and distiller, around a judge: of pairs where the reward model learns from pairs.

    `replicas` that the judge may have: each is sent as many requests.
    """
    store = AnnotationStore(rundir.annotations)
    seed = config.run.seed
    compares = KINDS[config.reward.model].source is Source.PAIRS
    annotator = replace(config.annotator, in_flight=config.annotator.in_flight * replicas)
    return RewardServer(
        judge,
        store,
        annotator,
        Distiller(
            store.pairs if compares else store,
            judge.key,
            config.distiller,
            model=config.reward.model,
            seed=derive_seed(seed, "distiller"),
        ),
        seed=derive_seed(seed, "annotator"),
        pairs=PairSource(config.annotator, seed=derive_seed(seed, "pairs")) if compares else None,
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


def build_follower(config: Config, actions: int) -> PolicyStep:
    """What a worker of the learner has that follows another, whose state it is going to be sent."""
    policy = build_policy(config.agent.network, actions)
    credit = build_credit(config, policy.state_size, actions) if attributes_credit(config) else None
    return policy_step(policy, config.learner, credit)


class LearnerPart:
    """The learner, the scorer of captions that gives it intrinsic rewards, and their checkpoints."""

    def __init__(self, config: Config, actions: int) -> None:
        torch.manual_seed(derive_seed(config.run.seed, "policy"))
        self.config = config
        self.scorer = scorer_of(config)
        intrinsic = NoIntrinsicReward() if self.scorer is None else self.scorer
        policy = build_policy(config.agent.network, actions)
        credit = build_credit(config, policy.state_size, actions) if attributes_credit(config) else None
        self.learner = Learner(policy, config.learner, config.reward, intrinsic, credit)
        self._sums = EpisodeSums()
        self._told = ToldScores(config, self.scorer)
        self._idle_since = time.perf_counter()
        self._views = CaptionViews(self.scorer)
        self._heap = HeapTrimmer()

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
        unknown: tuple[int, ...] = ()
        if self.scorer is not None:
            self.scorer.observe(new_captions)
            unknown = self.scorer.count(trajectory.caption_id)
        r_int = self.learner.intrinsic.lookup(trajectory.caption_id)
        scores = self._told.new(trajectory.caption_id, r_int)
        rewards = fuse(trajectory.reward, r_int, trajectory.caption_count, self.config.reward)
        returns = self._sums.add(source, trajectory, rewards.bonus)
        self._views.refresh()
        rewarded = time.perf_counter()
        updates = self.learner.feed(trajectory, _origin(source, trajectory, episodes))
        if self.scorer is not None:
            self.scorer.learn(source, trajectory.caption_id)
        result = FeedResult(
            updates=tuple(updates),
            intrinsic_returns=returns,
            earned=self._earned(trajectory, rewards.bonus),
            policy_version=self.learner.version,
            reward_model_version=0 if self.scorer is None else self.scorer.version,
            samples_dropped=self.learner.dropped_samples,
            unknown=unknown,
            steps_unknown=0 if self.scorer is None else self.scorer.unknown,
            credit={} if self.learner.credit is None else self.learner.credit.metrics(),
            liked=self._views.liked,
            disliked=self._views.disliked,
            scores=scores,
            reward_model=None if self.scorer is None else self.scorer.metrics,
            reward_s=rewarded - began,
            waited_s=waited,
        )
        weights = self.learner.weights() if updates else None
        self._heap.trim()
        self._idle_since = time.perf_counter()
        return result, weights

    def _earned(self, trajectory: Trajectory, bonus: NDArray[np.float32]) -> tuple[tuple[str, float], ...]:
        """What each caption earned in the trajectory. Few steps are rewarded, so this costs microseconds."""
        if self.scorer is None:
            return ()
        sums = sums_by_id(trajectory.caption_id, bonus)
        return tuple(zip(self.scorer.texts(sums), sums.values(), strict=True))

    def checkpoint(self, root: Path, env_steps: int, rest: Mapping[str, Any], config_yaml: str, keep: int) -> Path:
        """Writes a checkpoint of the learner and of `rest`, the state of the other parts."""
        return self.snapshot(root, env_steps, rest, config_yaml, keep)()

    def snapshot(
        self, root: Path, env_steps: int, rest: Mapping[str, Any], config_yaml: str, keep: int
    ) -> Callable[[], Path]:
        """What writes that checkpoint, also while the learner goes on: it has copies of all that changes."""
        state = {**rest, "learner": self.state_dict()}
        policy: dict[str, Tensor] = state["learner"]["learner"]["policy"]
        return lambda: save_checkpoint(root, env_steps, policy=policy, state=state, config=config_yaml, keep=keep)

    def take_over(self, root: Path, floor: Floor, captions: Sequence[tuple[int, str]]) -> TakenOver:
        """Takes the place of a learner that died, from the newest sound checkpoint below `root`, or from the beginning.

        `captions`: those that the run met last. Parts of episodes are forgotten, as what followed them died.
        """
        newest, state = newest_state(root)
        samples = 0
        if state is not None:
            self.load_state_dict(state["learner"])
            samples = learned_samples(state)
        samples -= self.learner.take_over(floor.policy_version, floor.samples_dropped)
        self._sums = EpisodeSums()
        if self.scorer is not None:
            self.scorer.observe(captions)
            self.scorer.take_over(floor.reward_model_version)
        return TakenOver(self.learner.version, newest, samples)

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
