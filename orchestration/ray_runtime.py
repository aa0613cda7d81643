"""The distributed runtime: a pull loop over Ray actors.

Each actor has `actors.in_flight` tokens. A token is a rollout call, then a trajectory that the learner reads, then a
rollout call again, with the newest weights. So back-pressure (a slow learner holds the tokens), bounded policy lag (no
more trajectories are on their way than there are tokens) and the death of an actor (its tokens are gone) are one mechanism.
"""

import itertools
import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from agents.report import RolloutReport
from orchestration import placement
from orchestration.calls import Actor, Calls, CloseCall, FeedCall, RolloutCall
from orchestration.checkpointing import Checkpoints
from orchestration.config import Config
from orchestration.configuration import attributes_credit, uses_judge
from orchestration.elastic import Elastic, room
from orchestration.errors import CheckpointWriteError, death, first_line
from orchestration.learner_group import Followers
from orchestration.ray_workers import LearnerWorker, RolloutWorker
from orchestration.recovery import ActorWait, LearnerDeaths, LearnerWait, lost_object
from orchestration.results import FeedResult, TakenOver, actor_name
from orchestration.reward_host import RewardHost
from orchestration.scaling import ScaleWish
from orchestration.session import Session
from orchestration.traces.run_trace import LEARNER
from orchestration.watch.run_watch import Part, RunWatch

_WAIT_S = 0.25
_REPORT_S = 0.1
_BEAT_S = 1.0
_CLOSE_S = 10.0
_FAILURES_IN_A_ROW = 3
_WITHOUT_WEIGHTS = 12
"""Calls in a row of an actor whose weights were lost before it is replaced: its machine may not reach the learner's."""
_LAST_WAIT_S = 120.0
"""For a learner that is to write the last checkpoint and has no machine."""


@dataclass(frozen=True, slots=True)
class Hosts:
    """The worker classes that play and that learn. A benchmark of the runtime itself puts stand-ins in their place."""

    rollout: type[Any] = RolloutWorker
    learner: type[Any] = LearnerWorker


class RayRuntime:
    """Hosts the parts of a run as Ray actors and keeps them busy."""

    _feed_call: type[Any] = FeedCall
    """Of a call that has the learner read a trajectory."""

    def __init__(
        self, config: Config, session: Session, *, resumed: Mapping[str, Any] | None, hosts: Hosts | None = None
    ) -> None:
        self.config = config
        self.session = session
        self._hosts = hosts or Hosts()
        self._actors: dict[int, Actor] = {}
        self._used: set[int] = set()
        """Indices that actors of this incarnation have had."""
        self._leaving: list[Actor] = []
        """Actors that were let go and finish the calls that they have."""
        self._wish = ScaleWish(session.rundir)
        self._elastic = Elastic(config, session)
        self._calls = Calls()
        """What awaited answers answer: a `RolloutCall`, `FeedCall` or `CloseCall`, or a function that takes the answer."""
        self._report_at = 0.0
        saved = None if resumed is None else resumed["reward_server"]
        self._reward = RewardHost(
            session,
            saved,
            lambda reward_model: self._learner.adopt.remote(reward_model),
            captions=lambda: list(self._captions.items()),
        )
        self._checkpoints = Checkpoints(
            config, session, then=self._calls.expect, own_state=self._own_state, reward_server_state=saved
        )  # fmt: skip
        self._attributes_credit = attributes_credit(config)
        self._failures_in_a_row = 0
        self._version: int = 0
        self._learner: Any = None
        self._learner_deaths = LearnerDeaths(session, self._learner_class().__name__)
        self._followers = Followers(
            config, session.rundir.path, then=self._calls.expect, died=lambda error: self._learner_died(error, [])
        )
        self._parked: list[Actor] = []
        """A token each of actors that could not read the weights."""
        self._waits = LearnerWait(session)
        self._actor_waits = ActorWait(session)
        self._taking_over = False
        """Whether a learner that is to take another's place has not begun yet. What is lost is not known until then, so no
        checkpoint is made."""
        self._beat_at = 0.0
        self._learner_heard_at = 0.0
        """When it last answered, by the monotonic clock."""
        self._captions: dict[int, str] = {}
        """All that actors brought: a learner that takes another's place has to know them, and each text comes once."""
        self._begin(resumed)
        self._watch = RunWatch(
            session, then=self._calls.expect, parts=self._parts, judge=lambda: self._reward.judge_app
        )

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

    def _begins_with(self) -> str | None:
        """The language model that learns; None where a network does."""
        return None

    def _host_learner(self, *arguments: Any, gpus: float = 1.0) -> None:
        """Makes the learner's actor; `gpus`: how many it takes, if it is to run on one."""
        options = placement.learner(self.config, gpus=gpus)
        self._learner = ray.remote(self._learner_class()).options(**options).remote(*arguments)
        self._feed: Any = self._learner.feed.options(num_returns=2)
        self._learner_heard_at = time.monotonic()
        self._followers.start(self._begins_with())

    def run(self) -> None:
        """Trains until the session is finished or somebody asked it to stop. Raises what ends the run."""
        self._grant_first()
        while not self.session.finished and not self.session.stop_requested:
            self._hear()
            if time.monotonic() >= self._report_at:
                self._report_at = time.monotonic() + _REPORT_S
                self._reward.look()
                if not self._taking_over:
                    self._checkpoints.tick(self._learner, self._reward.worker)
                self._look_at_learner()
                self._waits.look(waiting=self._taking_over)
                self._actor_waits.look(self._actors.values())
                self.session.report(due=self.session.metrics.due())
                self._look_at_scale()
                self._watch.tick()
        self._reward.hear()

    def _hear(self) -> None:
        """Does what follows the answers that came."""
        for answer in self._wait():
            # A failed call takes the other calls of its actor with it, so it may be gone by now.
            call = self._calls.take(answer)
            if call is not None:
                self._answered(answer, call)

    # Calls.

    def _grant_first(self) -> None:
        """Makes the calls that the run begins with."""
        for actor in self._actors.values():
            self._grant_all(actor)

    def _answered(self, answer: Future[Any], call: Any) -> None:
        """Does what follows a call that was answered."""
        if isinstance(call, RolloutCall):
            self._rolled_out(answer, call)
        elif isinstance(call, CloseCall):
            self._leaving.remove(call.actor)
            ray.kill(call.actor.handle)
        elif isinstance(call, FeedCall):
            self._learned(answer, call)
        else:
            call(answer)

    def _wait(self) -> list[Future[Any]]:
        """The answers that came since the last time; waits for one, but not for long."""
        began = time.perf_counter()
        answers = self._calls.wait(_WAIT_S)
        self.session.waited("coordinator", "wait", time.perf_counter() - began)
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
        self._calls.expect(report, RolloutCall(actor, trajectory))
        self.session.record.called(actor_name(actor.index, actor.incarnation))

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

    def _judge(self, report: RolloutReport) -> None:
        """Keeps the captions that are new, and has them judged."""
        self._captions.update(report.new_captions)
        if uses_judge(self.config):
            self._reward.submit(report.new_captions)

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
        call.actor.read = True
        self._renew(call)

    def _renew(self, call: Any) -> None:
        """Gives the actor its token back."""
        if self._actors.get(call.actor.index) is call.actor:
            self._grant(call.actor)

    def _unread(self, call: Any, error: RayError) -> None:
        """A trajectory that the learner did not read. Raises `error` where that is not for want of the trajectory."""
        if not lost_object(error):
            raise error
        self.session.faults.samples_lost += call.report.steps
        self.session.record.unread(call.report.source)
        self.session.view.event(
            f"a trajectory of {call.report.source} was lost with its machine: {first_line(error)}", warning=True
        )
        self._renew(call)

    # The learner's death.

    def _look_at_learner(self) -> None:
        """Asks for a sign of life every second: there may be nothing else that it has to answer."""
        if time.monotonic() < self._beat_at:
            return
        self._beat_at = float("inf")
        learner = self._learner

        def answered(answer: Future[Any]) -> None:
            if learner is self._learner:
                self._learner_heard_at = time.monotonic()
                self._beat_at = time.monotonic() + _BEAT_S
                error = answer.exception()
                if isinstance(error, RayActorError):
                    self._learner_died(error, [])

        self._calls.expect(learner.beat.remote(), answered)

    def _learner_died(self, error: RayActorError, unanswered: list[Any]) -> None:
        """Puts another in its place, which goes on from the newest checkpoint. Raises where they die again and again.

        `unanswered`: calls to read a trajectory that failed and are no longer awaited.
        """
        for answer, call in self._calls.take_all(self._feed_call):
            if answer.done() and answer.exception() is None:  # heard of later than of the death
                self._answered(answer, call)
            else:
                unanswered.append(call)
        worker, cause = self._followers.cause(error)
        self._learner_deaths.died(cause, worker)
        ray.kill(self._learner)  # it may only be out of reach
        self._checkpoints.forget()
        self._beat_at, self._taking_over = 0.0, True
        self._host_learner_again()
        again = sorted(unanswered, key=lambda call: call.env_steps) if self._learner_deaths.reads_again else []
        read = self.session.env_steps - sum(call.report.steps for call in again)
        floor = self._learner_deaths.floor(self._version)
        learner = self._learner
        taken, weights = learner.take_over.options(num_returns=2).remote(
            floor, list(self._captions.items()), self._reward.reward_model, *self._needs()
        )
        self._followers.join(learner)

        def answered(answer: Future[Any]) -> None:
            if learner is not self._learner:
                return
            if isinstance(death := answer.exception(), RayActorError):
                self._learner_died(death, [])
                return
            self._taking_over = False
            told: TakenOver = answer.result()
            self._learner_deaths.taken_over(told, read)
            self._version = told.policy_version
            self._begin_again(weights)

        self._calls.expect(taken, answered)
        for call in again:
            self._read_again(call)
        if not again:
            for call in unanswered:
                self.session.record.unread(call.report.source)
                self._renew(call)

    def _host_learner_again(self) -> None:
        self._host_learner(self.config, self.session.rundir.path, None)

    def _needs(self) -> tuple[Any, ...]:
        """What else a learner has to be told that takes another's place."""
        return ()

    def _begin_again(self, weights: Any) -> None:
        """Takes the first weights of a learner that took another's place."""
        self._weights = weights
        self._grant_parked()

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

    def _read_again(self, call: Any) -> None:
        self._have_learned(call.actor, call.report, call.trajectory, call.env_steps)

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

    # What stands still.

    def _parts(self) -> list[Part]:
        """The parts of the run that are Ray actors of this loop."""
        owing = self._owing()
        actors = [
            Part(actor_name(actor.index, actor.incarnation), actor.handle, actor.heard_at, id(actor) in owing)
            for actor in (*self._actors.values(), *self._leaving)
        ]
        # A sign of life is always asked of it. One that leads others may do nothing but wait for them: exchanges have an end of
        # their own, so it is looked at for stops alone.
        followers = self._followers.parts()
        parts = [*actors, Part(LEARNER, self._learner, self._learner_heard_at, not followers), *followers]
        if self._reward.worker is not None:
            asked = self._reward.asked_since
            heard_at = time.monotonic() if asked is None else asked
            parts.append(Part("reward server", self._reward.worker, heard_at, asked is not None))
        return parts

    def _owing(self) -> set[int]:
        """Actors, by `id`, whose answer is awaited."""
        return {id(call.actor) for call in self._calls.of(RolloutCall | CloseCall)}

    # Scaling.

    def _look_at_scale(self) -> None:
        """Does what a user wishes, and otherwise what the cluster gives (`actors.auto`)."""
        wanted = self._wish.take()
        if wanted is None:
            settled = all(actor.read for actor in self._actors.values())
            wanted = self._elastic.look(len(self._actors), settled=settled)
        if wanted is not None:
            self._scale(wanted)

    def _scale(self, wanted: int) -> None:
        """Adds actors, or lets some go: those that never began, then the newest. They finish the calls that they have, and
        what they bring is learned from."""
        before = len(self._actors)
        free = (index for index in itertools.count() if index not in self._actors)
        while len(self._actors) < wanted:
            self._grant_all(self._spawn(next(free)))
        order = sorted(self._actors, key=lambda index: (self._actors[index].answered, -index))
        for index in order[: len(self._actors) - wanted]:
            self._retire(self._actors.pop(index))
        self.session.actors = len(self._actors)
        self.session.view.event(f"scaled from {before} to {wanted} actors{self._room(wanted)}")

    def _room(self, wanted: int) -> str:
        """Says so where the cluster has no room for all of them yet."""
        fits = room(self.config, ray.nodes())
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
        if not any(call.actor is actor for call in self._calls.of(RolloutCall)):
            self._calls.expect(actor.handle.close.remote(), CloseCall(actor))

    def _forget(self, actor: Actor) -> None:
        """Drops the calls of an actor, whose answers will never come or are not wanted."""
        self._calls.drop(lambda call: isinstance(call, RolloutCall) and call.actor is actor)

    # Checkpoints and the end.

    def checkpoint(self) -> None:
        """Writes the last checkpoint: state of learner, reward server and counters. Games cannot be frozen: actors begin
        new episodes."""
        while True:
            while self._taking_over:
                self._hear()
                self._waits.look(waiting=self._taking_over)
                self.session.report(due=self.session.metrics.due())
                if self._waits.seconds > _LAST_WAIT_S:
                    newest = self.session.checkpoint or "the newest checkpoint"
                    raise CheckpointWriteError(
                        f"the learner has had no machine for {_LAST_WAIT_S:.0f} s, so there is no last checkpoint; "
                        f"--resume goes on from {newest}"
                    )
            try:
                self._checkpoints.finish(self._learner, self._reward.worker)
                return
            except RayActorError as error:
                self._learner_died(error, [])

    def _own_state(self) -> dict[str, Any]:
        """What else a checkpoint keeps of this loop."""
        return {}

    def close(self) -> None:
        """Ends everything that the run started; a part that does not answer in time is killed."""
        self._elastic.close()
        self._watch.close()
        parts: list[Any] = [actor.handle for actor in (*self._actors.values(), *self._leaving)]
        if self._reward.worker is not None:
            parts.append(self._reward.worker)
        closing = [part.close.remote() for part in parts]
        ray.wait(closing, num_returns=len(closing), timeout=_CLOSE_S)
        self._followers.end()
        for part in [*parts, self._learner]:
            ray.kill(part)
        self._reward.stop_judge()
