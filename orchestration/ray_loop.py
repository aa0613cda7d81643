"""What both distributed runtimes have in common: a loop that hears the answers of Ray actors and does what follows from them.

It hosts the learner and puts another in the place of one that died, scales the actors, has checkpoints written, watches
what stands still, and ends it all. What actors are asked for, and when, is the subclass's.
"""

import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from agents.report import RolloutReport
from orchestration import placement
from orchestration.calls import Actor, Calls, CloseCall
from orchestration.checkpointing import Checkpoints
from orchestration.config import Config
from orchestration.configuration import uses_judge
from orchestration.elastic import Elastic, room
from orchestration.errors import CheckpointWriteError, first_line
from orchestration.learner_group import Followers
from orchestration.recent_captions import RecentCaptions
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
_LAST_WAIT_S = 120.0
"""For a learner that is to write the last checkpoint and has no machine."""


class RayLoop(ABC):
    """Hosts the parts of a run as Ray actors and hears their answers."""

    _feed_call: type[Any]
    """Of a call that has the learner read something: it has a `report` and `env_steps`."""

    def __init__(self, config: Config, session: Session, *, resumed: Mapping[str, Any] | None) -> None:
        self.config = config
        self.session = session
        self._actors: dict[int, Actor] = {}
        self._used: set[int] = set()
        """Indices that actors of this incarnation have had."""
        self._leaving: list[Actor] = []
        """Actors that were let go and finish the calls that they have."""
        self._wish = ScaleWish(session.rundir)
        self._elastic = Elastic(config, session)
        self._calls = Calls()
        """What awaited answers answer: a `CloseCall`, a function that takes the answer, or a call of the subclass's own."""
        self._report_at = 0.0
        saved = None if resumed is None else resumed["reward_server"]
        self._captions = RecentCaptions()
        self._reward = RewardHost(
            session,
            saved,
            lambda reward_model: self._learner.adopt.remote(reward_model),
            captions=self._captions.oldest_first,
        )
        self._checkpoints = Checkpoints(
            config, session, then=self._calls.expect, own_state=self._own_state, reward_server_state=saved
        )  # fmt: skip
        self._failures_in_a_row = 0
        self._version: int = 0
        self._learner: Any = None
        self._learner_deaths = LearnerDeaths(session, self._learner_class().__name__)
        self._followers = Followers(
            config, session.rundir.path, then=self._calls.expect, died=lambda error: self._learner_died(error, [])
        )
        self._waits = LearnerWait(session)
        self._actor_waits = ActorWait(session)
        self._taking_over = False
        """Whether a learner that is to take another's place has not begun yet. What is lost is not known until then, so no
        checkpoint is made."""
        self._beat_at = 0.0
        self._learner_heard_at = 0.0
        """When it last answered, by the monotonic clock."""
        self._begin(resumed)
        self._watch = RunWatch(
            session, then=self._calls.expect, parts=self._parts, judge=lambda: self._reward.judge_app
        )

    # What actors are asked for.

    @abstractmethod
    def _begin(self, resumed: Mapping[str, Any] | None) -> None:
        """Starts learner and actors."""

    @abstractmethod
    def _learner_class(self) -> type[Any]:
        """Of the Ray actor that learns."""

    @abstractmethod
    def _spawn(self, index: int) -> Actor:
        """Makes actor number `index`."""

    @abstractmethod
    def _grant_all(self, actor: Actor) -> None:
        """Makes the calls that a new actor begins with."""

    @abstractmethod
    def _close_if_done(self, actor: Actor) -> None:
        """Has an actor that was let go end, if it has nothing left to do."""

    @abstractmethod
    def _forget(self, actor: Actor) -> None:
        """Drops the calls of an actor, whose answers will never come or are not wanted."""

    @abstractmethod
    def _owing(self) -> set[int]:
        """Actors, by `id`, whose answer is awaited."""

    @abstractmethod
    def _renew(self, call: Any) -> None:
        """Makes up for a call to read something that came to nothing."""

    @abstractmethod
    def _read_again(self, call: Any) -> None:
        """Hands to the learner again what another did not read."""

    @abstractmethod
    def _host_learner_again(self) -> None:
        """Makes a learner that is to take another's place."""

    @abstractmethod
    def _begin_again(self, weights: Any) -> None:
        """Takes the first weights of a learner that took another's place."""

    def _begins_with(self) -> str | None:
        """The language model that learns; None where a network does."""
        return None

    def _needs(self) -> tuple[Any, ...]:
        """What else a learner has to be told that takes another's place."""
        return ()

    def _own_state(self) -> dict[str, Any]:
        """What else a checkpoint keeps of this loop."""
        return {}

    # The loop.

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

    def _grant_first(self) -> None:
        """Makes the calls that the run begins with."""
        for actor in self._actors.values():
            self._grant_all(actor)

    def _answered(self, answer: Future[Any], call: Any) -> None:
        """Does what follows a call that was answered."""
        if isinstance(call, CloseCall):
            self._leaving.remove(call.actor)
            ray.kill(call.actor.handle)
        else:
            call(answer)

    def _wait(self) -> list[Future[Any]]:
        """The answers that came since the last time; waits for one, but not for long."""
        began = time.perf_counter()
        answers = self._calls.wait(_WAIT_S)
        self.session.waited("coordinator", "wait", time.perf_counter() - began)
        return answers

    def _new_incarnation(self) -> None:
        """The actors made from now on play episodes that none has played before."""
        self.session.incarnation += 1
        self._used.clear()

    def _judge(self, report: RolloutReport) -> None:
        """Keeps the captions that are new, and has them judged."""
        self._captions.add(report.new_captions)
        if uses_judge(self.config):
            self._reward.submit(report.new_captions)

    def _tell_again(self, actor: Actor, result: FeedResult) -> None:
        """Asks an actor for the captions that the learner does not know. One that died needs no telling: another tells of all."""
        if result.unknown:
            actor.handle.tell_again.remote(result.unknown)

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

    # The learner and its death.

    def _host_learner(self, *arguments: Any, gpus: float = 1.0) -> None:
        """Makes the learner's actor; `gpus`: how many it takes, if it is to run on one."""
        options = placement.learner(self.config, gpus=gpus)
        self._learner = ray.remote(self._learner_class()).options(**options).remote(*arguments)
        self._feed: Any = self._learner.feed.options(num_returns=2)
        self._learner_heard_at = time.monotonic()
        self._followers.start(self._begins_with())

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
            floor, self._captions.oldest_first(), self._reward.reward_model, *self._needs()
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
