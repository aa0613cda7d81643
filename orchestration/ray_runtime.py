"""The distributed runtime: a pull loop over Ray actors.

Each actor has `actors.in_flight` tokens. A token is a rollout call, then a trajectory that the learner reads, then a
rollout call again, with the newest weights. So back-pressure (a slow learner holds the tokens), bounded policy lag (no
more trajectories are on their way than there are tokens) and the death of an actor (its tokens are gone) are one mechanism.
"""

import contextlib
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from agents.rollout import RolloutReport
from orchestration.config import Config
from orchestration.configuration import uses_judge
from orchestration.errors import WorkerDiedError, death
from orchestration.parts import FeedResult, actor_name
from orchestration.ray_workers import LearnerWorker, RewardServerWorker, RolloutWorker
from orchestration.session import Session
from reward_server.embedded import is_built

_WAIT_S = 0.25
_POLL_S = 1.0
_CLOSE_S = 10.0
_FAILURES_IN_A_ROW = 3
_JUDGE_APP = "judge"


@dataclass(slots=True)
class _Actor:
    index: int
    incarnation: int
    handle: Any
    """Ray's handle; its methods are those of RolloutWorker with `remote`."""


@dataclass(frozen=True, slots=True)
class _RolloutCall:
    actor: _Actor
    trajectory: Any
    """Object reference; the trajectory itself never passes through the coordinator."""


@dataclass(frozen=True, slots=True)
class _FeedCall:
    actor: _Actor
    report: RolloutReport
    env_steps: int
    weights: Any
    """Object reference to the weights after this call, or to None."""


class RayRuntime:
    """Hosts the parts of a run as Ray actors and keeps them busy."""

    def __init__(self, config: Config, session: Session, *, resumed: Mapping[str, Any] | None) -> None:
        self.config = config
        self.session = session
        learner_state = None if resumed is None else resumed["learner"]
        self._reward_server_state: Any = None if resumed is None else resumed["reward_server"]
        self._actors: dict[int, _Actor] = {}
        self._calls: dict[Any, _RolloutCall | _FeedCall] = {}
        self._reward_server: Any = None
        """Handle of the RewardServerWorker; None before the first rollout came back, and where there is no judge."""
        self._poll: Any = None
        self._poll_at = 0.0
        self._judge_started = False
        self._known_reward_model = 0
        self._failures_in_a_row = 0
        self._checkpoint_at = time.monotonic() + config.checkpoint.interval_s
        self._learner: Any = (
            ray.remote(LearnerWorker)
            .options(
                num_cpus=config.learner.threads,
                num_gpus=1 if config.learner.device == "cuda" else 0,
            )
            .remote(config, learner_state)
        )
        for index in range(config.actors.count):
            self._spawn(index, incarnation=session.actor_restarts)
        self._version, weights = ray.get(self._learner.begin.remote())
        self._weights = ray.put(weights)

    def run(self) -> None:
        """Trains until the session is finished or somebody asked it to stop. Raises what ends the run."""
        for actor in self._actors.values():
            self._grant_all(actor)
        while not self.session.finished and not self.session.stop_requested:
            began = time.perf_counter()
            ready, _ = ray.wait(list(self._calls), num_returns=1, timeout=_WAIT_S)
            if ready:
                ready, _ = ray.wait(list(self._calls), num_returns=len(self._calls), timeout=0)
            self.session.waited("coordinator", "wait", time.perf_counter() - began)
            for reference in ready:
                # A failed call takes the other calls of its actor with it, so it may be gone by now.
                call = self._calls.pop(reference, None)
                if isinstance(call, _RolloutCall):
                    self._rolled_out(reference, call)
                elif isinstance(call, _FeedCall):
                    self._learned(reference, call)
            self._look_at_reward_server()
            self.session.report(due=self.session.metrics.due())
            if time.monotonic() >= self._checkpoint_at:
                self.checkpoint()
        self._hear_reward_server()

    # Tokens.

    def _spawn(self, index: int, incarnation: int) -> _Actor:
        handle = (
            ray.remote(RolloutWorker)
            .options(num_cpus=1)
            .remote(self.config, self.session.rundir.path, index, incarnation)
        )
        actor = self._actors[index] = _Actor(index, incarnation, handle)
        self.session.actors = len(self._actors)
        return actor

    def _grant_all(self, actor: _Actor) -> None:
        for _ in range(self.config.actors.in_flight):
            self._grant(actor)

    def _grant(self, actor: _Actor) -> None:
        trajectory, report = actor.handle.collect.options(num_returns=2).remote(self._weights, self._version)
        self._calls[report] = _RolloutCall(actor, trajectory)

    def _rolled_out(self, reference: Any, call: _RolloutCall) -> None:
        try:
            report, waited = ray.get(reference)
        except RayError as error:
            self._lost(call.actor, error)
            return
        self._failures_in_a_row = 0
        self.session.rolled_out(report)
        self.session.waited("actor", "wait", waited)
        if uses_judge(self.config):
            reward_server = self._reward_server or self._start_reward_server()
            if report.new_captions:
                reward_server.submit.remote(report.new_captions)
        result, weights = self._learner.feed.options(num_returns=2).remote(
            report.source, call.trajectory, report.new_captions
        )
        self._calls[result] = _FeedCall(call.actor, report, self.session.env_steps, weights)

    def _learned(self, reference: Any, call: _FeedCall) -> None:
        try:
            result: FeedResult = ray.get(reference)
        except RayActorError as error:
            raise WorkerDiedError(
                f"the learner (LearnerWorker) died: {death(error)}; --resume goes on from the newest checkpoint"
            ) from error
        if result.updates:
            self._version, self._weights = result.policy_version, call.weights
        self.session.learned(call.report, result, call.env_steps)
        if self._actors.get(call.actor.index) is call.actor:
            self._grant(call.actor)

    def _lost(self, actor: _Actor, error: RayError) -> None:
        """Replaces an actor that died or raised, and forgets its calls. Raises where replacements fail again and again."""
        self._calls = {r: c for r, c in self._calls.items() if not (isinstance(c, _RolloutCall) and c.actor is actor)}
        if self._actors.get(actor.index) is not actor:
            return
        reason = death(error)
        self._failures_in_a_row += 1
        if self._failures_in_a_row >= _FAILURES_IN_A_ROW * len(self._actors):
            raise error
        ray.kill(actor.handle)
        self.session.actor_restarts += 1
        self.session.view.event(
            f"{actor_name(actor.index, actor.incarnation)} died and is replaced: {reason}", warning=True
        )
        self._grant_all(self._spawn(actor.index, incarnation=self.session.actor_restarts))

    # The reward server.

    def _start_reward_server(self) -> Any:
        """Starts reward server and judge. The first steps come before that: together they take two cores for a while."""
        self._judge_started = True
        if self.config.judge.engine != "openai":
            from reward_server.judge import deployment

            if self.config.judge.model == "embedded" and not is_built(self.config.judge.cache_dir):
                self.session.view.event(
                    "the embedded judge is made first, once, which takes minutes beside the training"
                )
            deployment.start(self.config.judge, app_name=_JUDGE_APP, num_cpus=0)
        self._reward_server = (
            ray.remote(RewardServerWorker)
            .options(num_cpus=0, max_restarts=-1)
            .remote(self.config, self.session.rundir.path, self._reward_server_state)
        )
        return self._reward_server

    def _look_at_reward_server(self) -> None:
        if self._reward_server is None:
            return
        if self._poll is None:
            if time.monotonic() >= self._poll_at:
                self._poll = self._reward_server.poll.remote(self._known_reward_model)
                self._poll_at = time.monotonic() + _POLL_S
            return
        ready, _ = ray.wait([self._poll], timeout=0)
        if ready:
            self._take_poll()

    def _hear_reward_server(self) -> None:
        """The last word of the reward server, which in a short run may be its first."""
        if self._reward_server is not None:
            self._poll = self._poll or self._reward_server.poll.remote(self._known_reward_model)
            if ray.wait([self._poll], timeout=_CLOSE_S)[0]:
                self._take_poll()

    def _take_poll(self) -> None:
        reference, self._poll = self._poll, None
        try:
            status, version = ray.get(reference)
        except RayActorError as error:
            # Ray makes it again (max_restarts); its labels are in the store.
            self.session.view.event(f"the reward server died and is restarted: {death(error)}", warning=True)
            return
        self.session.judged(status)
        if version is not None:
            self._known_reward_model = version.version
            self._learner.adopt.remote(version)

    # Checkpoints and the end.

    def checkpoint(self) -> None:
        """Writes the state of learner, reward server and counters. Games cannot be frozen: actors begin new episodes."""
        if self._reward_server is not None:
            # While it is being restarted the state before stands: labels given since are in the store, and come again.
            with contextlib.suppress(RayActorError):
                self._reward_server_state = ray.get(self._reward_server.state_dict.remote())
        state = {"runtime": "ray", "session": self.session.state_dict(), "reward_server": self._reward_server_state}
        self.session.checkpoint = ray.get(
            self._learner.checkpoint.remote(
                self.session.rundir.checkpoints,
                self.session.env_steps,
                state,
                self.session.config_yaml(),
                self.config.checkpoint.keep,
            )
        )
        self._checkpoint_at = time.monotonic() + self.config.checkpoint.interval_s

    def close(self) -> None:
        """Ends everything that the run started; a part that does not answer in time is killed."""
        parts: list[Any] = [actor.handle for actor in self._actors.values()]
        if self._reward_server is not None:
            parts.append(self._reward_server)
        closing = [part.close.remote() for part in parts]
        ray.wait(closing, num_returns=len(closing), timeout=_CLOSE_S)
        for part in [*parts, self._learner]:
            ray.kill(part)
        if self._judge_started and self.config.judge.engine != "openai":
            from reward_server.judge import deployment

            with contextlib.suppress(RayError):
                deployment.stop(_JUDGE_APP, keep_serve="RAY_ADDRESS" not in os.environ)
