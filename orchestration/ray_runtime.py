"""The distributed runtime of networks: a pull loop over Ray actors.

Each actor has `actors.in_flight` tokens. A token is a rollout call, then a trajectory that the learner reads, then a
rollout call again, with the newest weights. So back-pressure (a slow learner holds the tokens), bounded policy lag (no
more trajectories are on their way than there are tokens) and the death of an actor (its tokens are gone) are one mechanism.
"""

import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from agents.report import RolloutReport
from orchestration import placement
from orchestration.calls import Actor, CloseCall, FeedCall, RolloutCall
from orchestration.config import Config
from orchestration.configuration import attributes_credit
from orchestration.errors import death, first_line
from orchestration.ray_loop import RayLoop
from orchestration.ray_workers import LearnerWorker, RolloutWorker
from orchestration.recovery import lost_object
from orchestration.results import FeedResult, actor_name
from orchestration.session import Session

_FAILURES_IN_A_ROW = 3
_WITHOUT_WEIGHTS = 12
"""Calls in a row of an actor whose weights were lost before it is replaced: its machine may not reach the learner's."""


@dataclass(frozen=True, slots=True)
class Hosts:
    """The worker classes that play and that learn. A benchmark of the runtime itself puts stand-ins in their place."""

    rollout: type[Any] = RolloutWorker
    learner: type[Any] = LearnerWorker


class RayRuntime(RayLoop):
    """Hosts networks that act and their learner, and keeps them busy."""

    _feed_call = FeedCall

    def __init__(
        self, config: Config, session: Session, *, resumed: Mapping[str, Any] | None, hosts: Hosts | None = None
    ) -> None:
        self._hosts = hosts or Hosts()
        self._attributes_credit = attributes_credit(config)
        self._parked: list[Actor] = []
        """A token each of actors that could not read the weights."""
        super().__init__(config, session, resumed=resumed)

    def _begin(self, resumed: Mapping[str, Any] | None) -> None:
        """Starts learner and actors."""
        config = self.config
        if resumed is not None:
            self._new_incarnation()
        state = None if resumed is None else resumed["learner"]
        self._host_learner(config, self.session.rundir.path, state)
        # Made once: Ray pickles and publishes every one that is made.
        self._rollout_worker: Any = ray.remote(self._hosts.rollout).options(**placement.actor(config))
        for index in range(config.actors.count):
            self._spawn(index)
        while True:
            version, self._weights = self._learner.begin.options(num_returns=2).remote()
            self._followers.join(self._learner)
            try:
                self._version = int(ray.get(version))
                return
            except RayActorError as error:
                worker, cause = self._followers.cause(error)
                self._learner_deaths.died_at_start(cause, worker)
                self._host_learner(config, self.session.rundir.path, state)

    def _learner_class(self) -> type[Any]:
        return self._hosts.learner

    # Tokens.

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
        self._calls.expect(report, RolloutCall(actor, trajectory))
        self.session.record.called(actor_name(actor.index, actor.incarnation))

    def _answered(self, answer: Future[Any], call: Any) -> None:
        if isinstance(call, RolloutCall):
            self._rolled_out(answer, call)
        elif isinstance(call, FeedCall):
            self._learned(answer, call)
        else:
            super()._answered(answer, call)

    def _rolled_out(self, answer: Future[Any], call: RolloutCall) -> None:
        try:
            report, waited = answer.result()
        except RayError as error:
            if lost_object(error) and call.actor.without_weights < _WITHOUT_WEIGHTS:
                self._without_weights(call.actor, error)
            else:
                self._lost(call.actor, error)
            return
        self._failures_in_a_row = call.actor.without_weights = 0
        call.actor.answered, call.actor.heard_at = True, time.monotonic()
        if call.actor in self._leaving:
            self._close_if_done(call.actor)
        self.session.rolled_out(report)
        self.session.waited("actor", "wait", waited)
        self._judge(report)
        self._have_learned(call.actor, report, call.trajectory, self.session.env_steps)

    def _have_learned(self, actor: Actor, report: RolloutReport, trajectory: Any, env_steps: int) -> None:
        """Hands a trajectory to the learner."""
        episodes = (report.episodes,) if self._attributes_credit else ()
        result, weights = self._feed.remote(report.source, trajectory, report.new_captions, *episodes)
        self._calls.expect(result, FeedCall(actor, report, trajectory, env_steps, weights))

    def _learned(self, answer: Future[Any], call: FeedCall) -> None:
        try:
            result: FeedResult = answer.result()
        except RayActorError as error:
            self._learner_died(error, [call])
            return
        except RayError as error:
            self._unread(call, error)
            return
        self._learner_heard_at = time.monotonic()
        if result.updates:
            self._version, self._weights = result.policy_version, call.weights
            self._learner_deaths.updated()
        self.session.learned(call.report, result, call.env_steps)
        self._tell_again(call.actor, result)
        call.actor.read = True
        self._renew(call)

    def _renew(self, call: Any) -> None:
        """Gives the actor its token back."""
        if self._actors.get(call.actor.index) is call.actor:
            self._grant(call.actor)

    def _owing(self) -> set[int]:
        """Actors, by `id`, whose answer is awaited."""
        return {id(call.actor) for call in self._calls.of(RolloutCall | CloseCall)}

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

    # The learner's death.

    def _host_learner_again(self) -> None:
        self._host_learner(self.config, self.session.rundir.path, None)

    def _begin_again(self, weights: Any) -> None:
        """Takes the first weights of a learner that took another's place."""
        self._weights = weights
        self._grant_parked()

    def _read_again(self, call: Any) -> None:
        self._have_learned(call.actor, call.report, call.trajectory, call.env_steps)

    # Weights that were lost with the learner's machine.

    def _without_weights(self, actor: Actor, error: RayError) -> None:
        """Keeps the token of an actor that could not read the weights, and asks the learner for them anew; where it was lost
        with them, the one in its place brings some."""
        name = actor_name(actor.index, actor.incarnation)
        self.session.record.unanswered(name)
        if actor in self._leaving:
            self._close_if_done(actor)
            return
        actor.without_weights += 1
        self._parked.append(actor)
        if len(self._parked) > 1:
            return
        self.session.view.event(
            f"the weights for {name} were lost with their machine: {first_line(error)}", warning=True
        )
        if not self._taking_over:
            self._ask_for_weights()

    def _ask_for_weights(self) -> None:
        learner = self._learner
        version, weights = learner.begin.options(num_returns=2).remote()

        def answered(answer: Future[Any]) -> None:
            if learner is not self._learner:  # Another is taking its place.
                return
            if isinstance(death := answer.exception(), RayActorError):
                self._learner_died(death, [])
                return
            self._version = int(answer.result())
            self._begin_again(weights)

        self._calls.expect(version, answered)

    def _grant_parked(self) -> None:
        parked, self._parked = self._parked, []
        for actor in parked:
            if self._actors.get(actor.index) is actor:
                self._grant(actor)

    # Scaling.

    def _close_if_done(self, actor: Actor) -> None:
        if not any(call.actor is actor for call in self._calls.of(RolloutCall)):
            self._calls.expect(actor.handle.close.remote(), CloseCall(actor))

    def _forget(self, actor: Actor) -> None:
        """Drops the calls of an actor, whose answers will never come or are not wanted."""
        self._calls.drop(lambda call: isinstance(call, RolloutCall) and call.actor is actor)
