"""The distributed runtime: a pull loop over Ray actors.

Each actor has `actors.in_flight` tokens. A token is a rollout call, then a trajectory that the learner reads, then a
rollout call again, with the newest weights. So back-pressure (a slow learner holds the tokens), bounded policy lag (no
more trajectories are on their way than there are tokens) and the death of an actor (its tokens are gone) are one mechanism.
"""

import contextlib
import itertools
import os
import queue
import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from agents.report import RolloutReport
from orchestration import placement
from orchestration.config import Config
from orchestration.configuration import attributes_credit, compares_pairs, uses_judge
from orchestration.errors import WorkerDiedError, death
from orchestration.ray_workers import LearnerWorker, RewardServerWorker, RolloutWorker
from orchestration.results import FeedResult, actor_name
from orchestration.scaling import ScaleWish
from orchestration.session import Session

_WAIT_S = 0.25
_REPORT_S = 0.1
_POLL_S = 1.0
_CLOSE_S = 10.0
_FAILURES_IN_A_ROW = 3
_JUDGE_APP = "judge"


@dataclass(frozen=True, slots=True)
class Hosts:
    """The worker classes that play and that learn. A benchmark of the runtime itself puts stand-ins in their place."""

    rollout: type[Any] = RolloutWorker
    learner: type[Any] = LearnerWorker


@dataclass(slots=True)
class Actor:
    index: int
    incarnation: int
    handle: Any
    """Ray's handle; its methods are those of RolloutWorker with `remote`."""
    collect: Any
    """Its method that rolls out, which answers with two objects. Kept, because to make it costs as much as a tenth of a call."""
    answered: bool = False
    """Whether it has answered a call: before that it may be waiting for a processor."""


@dataclass(frozen=True, slots=True)
class _RolloutCall:
    actor: Actor
    trajectory: Any
    """Object reference; the trajectory itself never passes through the coordinator."""


@dataclass(frozen=True, slots=True)
class _CloseCall:
    """Of an actor that was let go and has answered all its calls."""

    actor: Actor


@dataclass(frozen=True, slots=True)
class _FeedCall:
    actor: Actor
    report: RolloutReport
    env_steps: int
    weights: Any
    """Object reference to the weights after this call, or to None."""


class RayRuntime:
    """Hosts the parts of a run as Ray actors and keeps them busy."""

    def __init__(
        self, config: Config, session: Session, *, resumed: Mapping[str, Any] | None, hosts: Hosts | None = None
    ) -> None:
        self.config = config
        self.session = session
        self._hosts = hosts or Hosts()
        self._reward_server_state: Any = None if resumed is None else resumed["reward_server"]
        self._actors: dict[int, Actor] = {}
        self._used: set[int] = set()
        """Indices that actors of this incarnation have had."""
        self._leaving: list[Actor] = []
        """Actors that were let go and finish the calls that they have."""
        self._wish = ScaleWish(session.rundir)
        self._calls: dict[Future[Any], Any] = {}
        """What each answer that is awaited answers: a `_RolloutCall` or `_FeedCall`."""
        # Answers that came, put there by Ray's thread: `ray.wait` over the references of hundreds of calls costs a millisecond.
        self._ended: queue.SimpleQueue[Future[Any]] = queue.SimpleQueue()
        self._report_at = 0.0
        self._reward_server: Any = None
        """Handle of the RewardServerWorker; None before the first rollout came back, and where there is no judge."""
        self._poll: tuple[Any, Any] | None = None
        self._poll_at = 0.0
        self._judge_started = False
        self._known_reward_model = 0
        self._attributes_credit = attributes_credit(config)
        self._failures_in_a_row = 0
        self._checkpoint_at = time.monotonic() + config.checkpoint.interval_s
        self._version = 0
        self._learner: Any = None
        self._begin(resumed)

    def _begin(self, resumed: Mapping[str, Any] | None) -> None:
        """Starts learner and actors."""
        config = self.config
        if resumed is not None:
            self._new_incarnation()
        state = None if resumed is None else resumed["learner"]
        self._learner = self._host_learner(self._hosts.learner, config, self.session.rundir.path, state)
        self._feed: Any = self._learner.feed.options(num_returns=2)
        # Made once: Ray pickles and publishes every one that is made.
        self._rollout_worker: Any = ray.remote(self._hosts.rollout).options(**placement.actor(config))
        for index in range(config.actors.count):
            self._spawn(index)
        version, self._weights = self._learner.begin.options(num_returns=2).remote()
        self._version = ray.get(version)

    def _host_learner(self, worker: type[Any], *arguments: Any, gpus: float = 1.0) -> Any:
        """A handle of the learner; `gpus`: how many it takes, if it is to run on one."""
        return ray.remote(worker).options(**placement.learner(self.config, gpus=gpus)).remote(*arguments)

    def run(self) -> None:
        """Trains until the session is finished or somebody asked it to stop. Raises what ends the run."""
        self._grant_first()
        while not self.session.finished and not self.session.stop_requested:
            for answer in self._wait():
                # A failed call takes the other calls of its actor with it, so it may be gone by now.
                call = self._calls.pop(answer, None)
                if call is not None:
                    self._answered(answer, call)
            if time.monotonic() >= self._report_at:
                self._report_at = time.monotonic() + _REPORT_S
                self._look_at_reward_server()
                self.session.report(due=self.session.metrics.due())
                wanted = self._wish.take()
                if wanted is not None:
                    self._scale(wanted)
            if time.monotonic() >= self._checkpoint_at:
                self.checkpoint()
        self._hear_reward_server()

    # Calls.

    def _grant_first(self) -> None:
        """Makes the calls that the run begins with."""
        for actor in self._actors.values():
            self._grant_all(actor)

    def _answered(self, answer: Future[Any], call: Any) -> None:
        """Does what follows a call that was answered."""
        if isinstance(call, _RolloutCall):
            self._rolled_out(answer, call)
        elif isinstance(call, _CloseCall):
            self._leaving.remove(call.actor)
            ray.kill(call.actor.handle)
        else:
            self._learned(answer, call)

    def _expect(self, reference: Any, call: Any) -> None:
        """Notes a call by its answer, which `_wait` gives when it is there."""
        answer = reference.future()
        self._calls[answer] = call
        answer.add_done_callback(self._ended.put)

    def _wait(self) -> list[Future[Any]]:
        """The answers that came since the last time; waits for one, but not for long."""
        began = time.perf_counter()
        answers: list[Future[Any]] = []
        with contextlib.suppress(queue.Empty):
            answers.append(self._ended.get(timeout=_WAIT_S))
        self.session.waited("coordinator", "wait", time.perf_counter() - began)
        # Not those that come meanwhile: there may be no end of them.
        answers.extend(self._ended.get_nowait() for _ in range(self._ended.qsize()))
        return answers

    # Tokens.

    def _new_incarnation(self) -> None:
        """The actors made from now on play episodes that none has played before."""
        self.session.incarnation += 1
        self._used.clear()

    def _spawn(self, index: int) -> Actor:
        if index in self._used:
            self._new_incarnation()
        self._used.add(index)
        incarnation = self.session.incarnation
        handle = self._rollout_worker.remote(self.config, self.session.rundir.path, index, incarnation)
        actor = self._actors[index] = Actor(index, incarnation, handle, handle.collect.options(num_returns=2))
        self.session.actors = len(self._actors)
        self.session.record.spawned(actor_name(index, incarnation))
        return actor

    def _grant_all(self, actor: Actor) -> None:
        for _ in range(self.config.actors.in_flight):
            self._grant(actor)

    def _grant(self, actor: Actor) -> None:
        trajectory, report = actor.collect.remote(self._weights, self._version, self.session.reward_model_in_force)
        self._expect(report, _RolloutCall(actor, trajectory))
        self.session.record.called(actor_name(actor.index, actor.incarnation))

    def _rolled_out(self, answer: Future[Any], call: _RolloutCall) -> None:
        try:
            report, waited = answer.result()
        except RayError as error:
            self._lost(call.actor, error)
            return
        self._failures_in_a_row = 0
        call.actor.answered = True
        if call.actor in self._leaving:
            self._close_if_done(call.actor)
        self.session.rolled_out(report)
        self.session.waited("actor", "wait", waited)
        if uses_judge(self.config):
            reward_server = self._reward_server or self._start_reward_server()
            if report.new_captions:
                reward_server.submit.remote(report.new_captions)
        episodes = (report.episodes,) if self._attributes_credit else ()
        result, weights = self._feed.remote(report.source, call.trajectory, report.new_captions, *episodes)
        self._expect(result, _FeedCall(call.actor, report, self.session.env_steps, weights))

    def _learned(self, answer: Future[Any], call: _FeedCall) -> None:
        try:
            result: FeedResult = answer.result()
        except RayActorError as error:
            raise WorkerDiedError(
                f"the learner (LearnerWorker) died: {death(error)}; --resume goes on from the newest checkpoint"
            ) from error
        if result.updates:
            self._version, self._weights = result.policy_version, call.weights
        self.session.learned(call.report, result, call.env_steps)
        if self._actors.get(call.actor.index) is call.actor:
            self._grant(call.actor)

    def _lost(self, actor: Actor, error: RayError) -> None:
        """Replaces an actor that died or raised, and forgets its calls. Raises where replacements fail again and again."""
        self._forget(actor)
        if actor in self._leaving:
            self._leaving.remove(actor)
            ray.kill(actor.handle)
        if self._actors.get(actor.index) is not actor:
            return
        reason = death(error)
        self._failures_in_a_row += 1
        if self._failures_in_a_row >= _FAILURES_IN_A_ROW * len(self._actors):
            raise error
        ray.kill(actor.handle)
        self.session.record.lost(actor_name(actor.index, actor.incarnation), reason)
        self.session.actor_restarts += 1
        self.session.view.event(
            f"{actor_name(actor.index, actor.incarnation)} died and is replaced: {reason}", warning=True
        )
        self._grant_all(self._spawn(actor.index))

    # Scaling.

    def _scale(self, wanted: int) -> None:
        """Adds actors, or lets the newest go. Those finish the calls that they have, and what they bring is learned from."""
        before = len(self._actors)
        free = (index for index in itertools.count() if index not in self._actors)
        while len(self._actors) < wanted:
            self._grant_all(self._spawn(next(free)))
        for index in sorted(self._actors, reverse=True)[: len(self._actors) - wanted]:
            self._retire(self._actors.pop(index))
        self.session.actors = len(self._actors)
        self.session.view.event(f"scaled from {before} to {wanted} actors{self._room(wanted)}")

    def _room(self, wanted: int) -> str:
        """Says so where the cluster has no room for all of them yet."""
        cpus = self.config.actors.cpus
        fits = int((ray.cluster_resources().get("CPU", 0.0) - self.config.learner.threads) / cpus) if cpus else wanted
        return "" if fits >= wanted else f"; the cluster has room for {fits} now, the others start when it grows"

    def _retire(self, actor: Actor) -> None:
        self.session.record.retired(actor_name(actor.index, actor.incarnation))
        if not actor.answered:  # It may never start, so its calls are not waited for.
            self._forget(actor)
            ray.kill(actor.handle)
            return
        self._leaving.append(actor)
        self._close_if_done(actor)

    def _close_if_done(self, actor: Actor) -> None:
        if not any(isinstance(call, _RolloutCall) and call.actor is actor for call in self._calls.values()):
            self._expect(actor.handle.close.remote(), _CloseCall(actor))

    def _forget(self, actor: Actor) -> None:
        """Drops the calls of an actor, whose answers will never come or are not wanted."""
        self._calls = {r: c for r, c in self._calls.items() if not (isinstance(c, _RolloutCall) and c.actor is actor)}

    # The reward server.

    def _start_reward_server(self) -> Any:
        """Starts reward server and judge. The first steps come before that: together they take two cores for a while."""
        self._judge_started = True
        if self.config.judge.engine != "openai":
            from reward_server.embedded import is_built
            from reward_server.judge import deployment
            from reward_server.judge.pairs import asks_pairwise

            if self.config.judge.model == "embedded" and not is_built(self.config.judge.cache_dir):
                self.session.view.event(
                    "the embedded judge is made first, once, which takes minutes beside the training"
                )
            pairwise = compares_pairs(self.config) and asks_pairwise(self.config.judge)
            resources = placement.judge(self.config)
            deployment.start(self.config.judge, app_name=_JUDGE_APP, num_cpus=0, resources=resources, pairwise=pairwise)
        self._reward_server = (
            ray.remote(RewardServerWorker)
            .options(max_restarts=-1, **placement.reward_server(self.config))
            .remote(self.config, self.session.rundir.path, self._reward_server_state)
        )
        return self._reward_server

    def _look_at_reward_server(self) -> None:
        if self._reward_server is None:
            return
        if self._poll is None:
            if time.monotonic() >= self._poll_at:
                self._poll = self._ask_reward_server()
                self._poll_at = time.monotonic() + _POLL_S
            return
        ready, _ = ray.wait([self._poll[0]], timeout=0)
        if ready:
            self._take_poll(self._poll)

    def _ask_reward_server(self) -> tuple[Any, Any]:
        """References to how it stands, and to its reward model, which never passes the coordinator."""
        return self._reward_server.poll.options(num_returns=2).remote(self._known_reward_model)

    def _hear_reward_server(self) -> None:
        """The last word of the reward server, which in a short run may be its first."""
        if self._reward_server is not None:
            poll = self._poll or self._ask_reward_server()
            if ray.wait([poll[0]], timeout=_CLOSE_S)[0]:
                self._take_poll(poll)

    def _take_poll(self, poll: tuple[Any, Any]) -> None:
        reference, reward_model = poll
        self._poll = None
        try:
            status, version = ray.get(reference)
        except RayActorError as error:
            # Ray makes it again (max_restarts); its labels are in the store.
            self.session.view.event(f"the reward server died and is restarted: {death(error)}", warning=True)
            return
        self.session.judged(status)
        if version:
            self._known_reward_model = version
            self._learner.adopt.remote(reward_model)

    # Checkpoints and the end.

    def checkpoint(self) -> None:
        """Writes the state of learner, reward server and counters. Games cannot be frozen: actors begin new episodes."""
        if self._reward_server is not None:
            # While it is being restarted the state before stands: labels given since are in the store, and come again.
            with contextlib.suppress(RayActorError):
                taken, state = self._reward_server.state_dict.options(num_returns=2).remote()
                ray.get(taken)
                self._reward_server_state = state
        self.session.checkpoint = ray.get(
            self._learner.checkpoint.remote(
                self.session.rundir.checkpoints,
                self.session.env_steps,
                {"runtime": "ray", "session": self.session.state_dict(), **self._own_state()},
                self._reward_server_state,
                self.session.config_yaml(),
                self.config.checkpoint.keep,
            )
        )
        self._checkpoint_at = time.monotonic() + self.config.checkpoint.interval_s

    def _own_state(self) -> dict[str, Any]:
        """What else a checkpoint keeps of this loop."""
        return {}

    def close(self) -> None:
        """Ends everything that the run started; a part that does not answer in time is killed."""
        parts: list[Any] = [actor.handle for actor in (*self._actors.values(), *self._leaving)]
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
