"""The parts of a run as Ray actors: thin hosts, nothing else. What they host runs, and is tested, without Ray."""

import asyncio
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from agents.report import FinishedEpisode, RolloutReport
from orchestration.config import Config
from orchestration.configuration import compares_pairs
from orchestration.heap import HeapTrimmer
from orchestration.learner_worker import LearnerHost, ending_with_the_group
from orchestration.part_log import log_to
from orchestration.results import FeedResult, Floor, TakenOver, actor_name
from orchestration.rundir import RunDir
from reward_server.status import RewardServerStatus
from reward_server.types import Judge, PairJudge

if TYPE_CHECKING:
    from agents.trajectory import Trajectory
    from learner.learner import Weights
    from reward_server.models.base import RewardModelVersion

# The coordinator loads this module to start the workers. What they are made of, torch above all, is loaded where they run:
# on two cores it would delay the first step by seconds.

BACKGROUND_NICENESS = 10
"""Annotation and distillation give way to acting and learning where they share cores."""


class RolloutWorker:
    """Hosts one rollout."""

    def __init__(self, config: Config, rundir: Path, index: int, incarnation: int) -> None:
        log_to(RunDir(rundir).logs, actor_name(index))
        import torch

        from orchestration.parts import build_observer, build_rollout

        torch.set_num_threads(1)
        observer = build_observer(config, RunDir(rundir).traces, index, incarnation)
        self._rollout = build_rollout(config, index, incarnation=incarnation, observer=observer)
        # While the learner is being built.
        self._rollout.prepare()
        self._version = -1
        self._idle_since = time.perf_counter()

    def collect(
        self, weights: "Weights", version: int, reward_model_version: int | None
    ) -> tuple["Trajectory", tuple[RolloutReport, float]]:
        """One trajectory under the given weights; its report, and the seconds this worker waited for the call."""
        waited = time.perf_counter() - self._idle_since
        self._rollout.reward_model_version = reward_model_version
        if version != self._version:
            self._rollout.set_weights(weights, version)
            self._version = version
        trajectory, report = self._rollout.collect()
        self._idle_since = time.perf_counter()
        return trajectory, (report, waited)

    def tell_again(self, captions: Sequence[int]) -> None:
        """Ids that the learner does not know."""
        self._rollout.tell_again(captions)

    def close(self) -> None:
        self._rollout.close()


class LearnerWorker(LearnerHost):
    """Hosts the learner."""

    def __init__(self, config: Config, rundir: Path, state: Mapping[str, Any] | None) -> None:
        log_to(RunDir(rundir).logs, "learner")
        super().__init__(config)
        import torch

        from orchestration.parts import LearnerPart, action_count

        torch.set_num_threads(config.learner.threads)
        self._part = LearnerPart(config, action_count(config))
        self._root = RunDir(rundir).checkpoints
        if state is not None:
            self._part.load_state_dict(state)

    def begin(self) -> tuple[int, "Weights"]:
        """Version and weights to begin with; two objects."""
        return self._part.learner.version, self._part.weights()

    def take_over(
        self, floor: Floor, captions: Sequence[tuple[int, str]], reward_model: "RewardModelVersion | None"
    ) -> tuple[TakenOver, "Weights"]:
        """Goes on in place of a learner that died; how, and the weights to begin with; two objects. `captions` are
        those that the run met last, `reward_model` is the one in force where a reward server gave it."""
        taken = self._part.take_over(self._root, floor, captions)
        if reward_model is not None:
            self._part.adopt(reward_model)
        return taken, self._part.weights()

    def feed(
        self,
        source: str,
        trajectory: "Trajectory",
        captions: Sequence[tuple[int, str]],
        episodes: Sequence[FinishedEpisode] = (),
    ) -> tuple[FeedResult, "Weights | None"]:
        with ending_with_the_group():
            return self._part.feed(source, trajectory, captions, episodes)


class RewardServerWorker:
    """Hosts the reward server; an asyncio actor, so that asking, training and answering the coordinator overlap."""

    def __init__(self, config: Config, rundir: Path, judge_app: str | None, state: tuple[Any] | None) -> None:
        """`judge_app`: the application of Ray Serve that is the judge, if one is. `state`: a reference to that of the
        checkpoint that the run goes on from."""
        log_to(RunDir(rundir).logs, "reward-server")
        import torch

        from orchestration.parts import build_reward_server

        torch.set_num_threads(1)
        os.nice(BACKGROUND_NICENESS)
        self._server = build_reward_server(
            config, RunDir(rundir), _judge(config, judge_app), 1 if judge_app is None else config.judge.replicas
        )
        # One that takes another's place goes on from what lies in the store: the state is of when the run began.
        if state is not None and not ray.get_runtime_context().was_current_actor_reconstructed:
            self._server.load_state_dict(ray.get(state[0]), in_turn=False)
        self._serving: asyncio.Task[None] | None = None
        self._heap = HeapTrimmer()

    async def submit(self, captions: Sequence[tuple[int, str]]) -> None:
        self._server.submit(captions)

    async def poll(self, known: int) -> tuple[tuple[RewardServerStatus, int], "RewardModelVersion | None"]:
        """Two objects: how it stands, with the version of the reward model or 0; and the reward model itself, for the
        learner, where it is newer than version `known`.

        Raises what ended annotation or distillation, if anything did.
        """
        if self._serving is None:
            self._serving = asyncio.ensure_future(self._server.serve())
        if self._serving.done():
            self._serving.result()
        self._heap.trim()
        newest = self._server.newest(known)
        return (self._server.status(), 0 if newest is None else newest.version), newest

    async def state_dict(self) -> tuple[bool, dict[str, Any]]:
        """Two objects: True once it is taken, and the state itself, for the learner's checkpoint."""
        return True, await asyncio.to_thread(self._server.state_dict)

    async def close(self) -> None:
        """Ends annotation; answers on their way are awaited for a few seconds and kept."""
        self._server.stop()
        if self._serving is not None:
            await self._serving
        await self._server.close()


def _judge(config: Config, app: str | None) -> Judge | PairJudge:
    """A client of the deployed judge; an OpenAI-compatible server is asked directly."""
    pairs = compares_pairs(config)
    if app is None:
        from reward_server.judge import build_judge, build_pair_judge

        return build_pair_judge(config.judge) if pairs else build_judge(config.judge)
    from reward_server.judge import judge_key
    from reward_server.judge.deployment import ServeJudge
    from reward_server.judge.pairs import PointwiseJudge, asks_pairwise

    if pairs and asks_pairwise(config.judge):
        return ServeJudge(judge_key(config.judge, pairs=True), app)
    judge = ServeJudge(config.judge, app)
    return PointwiseJudge(judge) if pairs else judge
