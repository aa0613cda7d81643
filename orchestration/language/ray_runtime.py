"""The distributed runtime of language models: engines generate while the learner learns.

The coordinator gives groups of episodes to the engine that plays fewest. A group is *open* from then until it was
trained on: it is played, on its way to the learner, or waits there for a full batch. At most `actors.in_flight` batches
are open. So with 1 playing and learning take turns, with k no episode is trained on more than k − 1 updates after the
weights that it began with (k, where groups do not make whole batches); lag is measured for every turn.

New weights go to each engine while it generates; an engine that is still taking the ones before gets the newest after.

An engine that is let go (`yendor scale`) plays the groups that it has to their end, and gets no others.
"""

import math
import shutil
import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from agents.language.errors import EngineDiedError, LanguageModelError
from agents.report import RolloutReport
from envs.registry import EnvironmentOptionError, EnvironmentUnavailableError
from orchestration import placement
from orchestration.calls import Actor, CloseCall
from orchestration.errors import death, root_cause
from orchestration.language.models import acting_model, tell_of_missing, told_by
from orchestration.language.ray_workers import LanguageFeed, LanguageLearnerWorker, LanguageRolloutWorker
from orchestration.language.tasks import Tasks
from orchestration.ray_loop import RayLoop
from orchestration.results import actor_name

_FAILURES_IN_A_ROW = 3
_TOGETHER_S = 10.0
"""Engines that have machines by then share the first groups; the others come later."""
_FATAL = (LanguageModelError, EnvironmentOptionError, EnvironmentUnavailableError)
"""What another engine could not mend."""


@dataclass(slots=True)
class _Engine:
    """How an actor's engine stands."""

    playing: set[int]
    """Groups."""
    version: int | None = None
    """Of its weights, or of those that it is taking; None while it waits for a machine."""
    taking: bool = True


@dataclass(frozen=True, slots=True)
class _Ready:
    """Of an actor that may have to wait for a machine."""

    actor: Actor


@dataclass(frozen=True, slots=True)
class _Start:
    actor: Actor


@dataclass(frozen=True, slots=True)
class _Play:
    actor: Actor
    group: int
    result: Any
    """Object reference; episodes never pass through the coordinator."""


@dataclass(frozen=True, slots=True)
class _Feed:
    group: int
    report: RolloutReport
    result: Any
    """Object reference, kept for another learner where this one dies."""
    env_steps: int


@dataclass(frozen=True, slots=True)
class _Take:
    actor: Actor
    version: int


class LanguageRayRuntime(RayLoop):
    """Hosts engines and learner as Ray actors and keeps them busy."""

    _feed_call = _Feed

    def _begin(self, resumed: Mapping[str, Any] | None) -> None:
        config = self.config
        self._model = acting_model(config, told_by(self.session.view))
        per_batch = math.ceil(config.language.batch_episodes / config.agent.group_size)
        self._open_limit = per_batch * config.actors.in_flight
        self._together_until = 0.0
        self._engines: dict[int, _Engine] = {}
        """By the `id` of their actors, those that were let go and still play among them."""
        self._open: set[int] = set()
        self._feeding: set[int] = set()
        self._again: list[int] = [] if resumed is None else sorted(resumed.get("open", ()))
        self._next = 0 if resumed is None else int(resumed["group"])
        first = [*self._again, *range(self._next, self._next + self._open_limit)][: self._open_limit]
        tell_of_missing(len(Tasks(config).missing(first)), self.session.view)
        self._state = (
            None if resumed is None else {k: v for k, v in resumed.items() if k not in ("session", "reward_server")}
        )
        self._host_language_learner(self._state)
        self._rollout_worker: Any = ray.remote(LanguageRolloutWorker).options(
            max_concurrency=4096, **placement.actor(config)
        )
        if resumed is not None:
            self._new_incarnation()
        if resumed is None:
            # The first weights are the model's own, so engines start while the learner does.
            self._version, self._weights = 0, self._model
            self._spawn_all()
            self._first_weights()
        else:
            self._first_weights()
            self._spawn_all()

    def _spawn_all(self) -> None:
        for index in range(self.config.actors.count):
            self._spawn(index)

    def _first_weights(self) -> None:
        """Waits until the learner is there, with the weights that it begins with."""
        while True:
            try:
                began = self._learner.begin.remote()
                self._followers.join(self._learner)
                self._version, self._weights = ray.get(began)
                return
            except RayActorError as error:
                worker, cause = self._followers.cause(error)
                self._learner_deaths.died_at_start(cause, worker)
                self._host_language_learner(self._state, takes_over=True)

    def _learner_class(self) -> type[Any]:
        return LanguageLearnerWorker

    def _begins_with(self) -> str | None:
        return self._model

    def _host_language_learner(self, state: Mapping[str, Any] | None, *, takes_over: bool = False) -> None:
        config = self.config
        share = 1.0 - config.actors.gpus if 0 < config.actors.gpus < 1 else 1.0
        self._host_learner(config, self.session.rundir.path, self._model, state, takes_over, gpus=share)

    def _spawn(self, index: int) -> Actor:
        if index in self._used:
            self._new_incarnation()
        self._used.add(index)
        incarnation = self.session.incarnation
        handle = self._rollout_worker.remote(self.config, self.session.rundir.path, index, incarnation, self._model)
        actor = self._actors[index] = Actor(index, incarnation, handle, handle.play.options(num_returns=2))
        self._engines[id(actor)] = _Engine(set())
        self.session.actors = len(self._actors)
        self.session.record.spawned(actor_name(index, incarnation))
        self._calls.expect(handle.ready.remote(), _Ready(actor))
        return actor

    def _start(self, actor: Actor) -> None:
        """Has an engine that has a machine load the newest weights."""
        self._engines[id(actor)].version = self._version
        started = actor.handle.start.remote(self._weights, self._version)
        self._calls.expect(started, _Start(actor))
        self._grant_groups()

    def _grant_first(self) -> None:
        self._together_until = time.monotonic() + _TOGETHER_S

    def _grant_groups(self) -> None:
        """Gives out groups as long as there is room; one more in any case where nothing is under way, as batches may lack
        episodes whose worlds raised. An engine that waits for a machine gets none: they would wait with it."""
        there = [actor for actor in self._actors.values() if self._engines[id(actor)].version is not None]
        if not there or (len(there) < len(self._actors) and time.monotonic() < self._together_until):
            return
        while len(self._open) < self._open_limit or not (self._feeding or self._playing()):
            if self._again:
                group = self._again.pop(0)
            else:
                group, self._next = self._next, self._next + 1
            actor = min(there, key=lambda a: (len(self._engines[id(a)].playing), a.index))
            result, report = actor.collect.remote(group, self.session.reward_model_in_force)
            self._engines[id(actor)].playing.add(group)
            self._open.add(group)
            self._calls.expect(report, _Play(actor, group, result))
            self.session.record.called(actor_name(actor.index, actor.incarnation), group)

    def _playing(self) -> set[int]:
        return {group for engine in self._engines.values() for group in engine.playing}

    def _answered(self, answer: Future[Any], call: Any) -> None:
        if isinstance(call, _Feed):
            self._fed(answer, call)
            return
        if not isinstance(call, _Ready | _Play | _Start | _Take):
            super()._answered(answer, call)
            return
        actor = call.actor
        if id(actor) not in self._engines:
            return
        try:
            value = answer.result()
        except RayError as error:
            self._lost_engine(actor, error)
            return
        actor.heard_at = time.monotonic()
        if isinstance(call, _Ready):
            self._start(actor)
            return
        actor.answered = True
        if isinstance(call, _Play):
            self._played(call, value)
        else:
            self._took(actor, value if isinstance(call, _Start) else call.version)

    def _played(self, call: _Play, report: RolloutReport) -> None:
        self._failures_in_a_row = 0
        self._engines[id(call.actor)].playing.discard(call.group)
        self.session.rolled_out(report, group=call.group)
        self._judge(report)
        self._feed_group(call.group, report, call.result, self.session.env_steps)
        call.actor.read = True
        if call.actor in self._leaving:
            self._close_if_done(call.actor)

    def _feed_group(self, group: int, report: RolloutReport, result: Any, env_steps: int) -> None:
        """Hands a group's episodes to the learner."""
        self._feeding.add(group)
        fed = self._learner.feed.remote(result, *self._needs())
        self._calls.expect(fed, _Feed(group, report, result, env_steps))

    def _needs(self) -> tuple[Any, ...]:
        """The oldest version that an engine may still read."""
        versions = (engine.version for engine in self._engines.values() if engine.version is not None)
        return (min(versions, default=self._version),)

    def _fed(self, answer: Future[Any], call: _Feed) -> None:
        try:
            fed: LanguageFeed = answer.result()
        except RayActorError as error:
            self._learner_died(error, [call])
            return
        except RayError as error:
            self._unread(call, error)
            return
        self._learner_heard_at = time.monotonic()
        self._feeding.discard(call.group)
        if fed.result.updates:
            self._learner_deaths.updated()
        self.session.learned(call.report, fed.result, call.env_steps)
        for actor in self._actors.values():
            if self._engines[id(actor)].version is not None:
                self._tell_again(actor, fed.result)
        self._open = self._playing() | self._feeding | set(fed.waiting)
        if fed.weights is not None:
            self._publish(fed.result.policy_version, fed.weights)
        self._grant_groups()

    def _publish(self, version: int, weights: Any) -> None:
        """Sends new weights to all engines."""
        self._version, self._weights = version, weights
        for actor in (*self._actors.values(), *self._leaving):
            self._send_weights(actor)

    # The learner's death.

    def _host_learner_again(self) -> None:
        self._host_language_learner(None, takes_over=True)

    def _begin_again(self, weights: Any) -> None:
        self._publish(self._version, ray.get(weights))
        # Groups that waited for a full batch died with the learner.
        self._open = self._playing() | self._feeding
        self._grant_groups()

    def _read_again(self, call: Any) -> None:
        self._feed_group(call.group, call.report, call.result, call.env_steps)

    def _renew(self, call: Any) -> None:
        """Makes room for another group in place of one that will not be read."""
        self._feeding.discard(call.group)
        self._open.discard(call.group)
        self._grant_groups()

    def _owing(self) -> set[int]:
        return {id(call.actor) for call in self._calls.of(_Ready | _Play | _Start | _Take | CloseCall)}

    # Scaling.

    def _look_at_scale(self) -> None:
        super()._look_at_scale()
        self._grant_groups()

    def _grant_all(self, actor: Actor) -> None:
        """Groups go to whoever plays fewest, so a new engine gets its own with the next."""

    def _retire(self, actor: Actor) -> None:
        """An engine that never began leaves its groups to the others."""
        if not actor.answered:
            self._play_again(actor)
        super()._retire(actor)

    def _play_again(self, actor: Actor) -> None:
        """Gives up the groups of an engine, which others play from their beginning."""
        lost = self._engines.pop(id(actor)).playing
        self._again = sorted({*self._again, *lost})
        self._open -= lost

    def _close_if_done(self, actor: Actor) -> None:
        if not self._engines[id(actor)].playing:
            del self._engines[id(actor)]
            self._calls.expect(actor.handle.close.remote(), CloseCall(actor))

    def _forget(self, actor: Actor) -> None:
        self._calls.drop(lambda call: isinstance(call, _Ready | _Play | _Start | _Take) and call.actor is actor)

    # Weights.

    def _send_weights(self, actor: Actor) -> None:
        engine = self._engines.get(id(actor))
        if engine is None or engine.taking or engine.version == self._version:
            return
        engine.taking, engine.version = True, self._version
        self._calls.expect(actor.handle.take_weights.remote(self._weights, self._version), _Take(actor, self._version))

    def _took(self, actor: Actor, version: int) -> None:
        engine = self._engines[id(actor)]
        engine.taking, engine.version = False, version
        self._send_weights(actor)

    # The end.

    def _lost_engine(self, actor: Actor, error: RayError) -> None:
        """Replaces an actor that died or raised; its groups are played again. Raises what another could not mend."""
        cause = root_cause(error)
        if isinstance(cause, _FATAL) and not isinstance(cause, EngineDiedError):
            raise error
        if actor in self._leaving:
            self._leaving.remove(actor)
            self._play_again(actor)
            ray.kill(actor.handle)
            self._grant_groups()
            return
        self._failures_in_a_row += 1
        if self._failures_in_a_row >= _FAILURES_IN_A_ROW * len(self._actors):
            raise error
        name, reason = actor_name(actor.index, actor.incarnation), death(error)
        ray.kill(actor.handle)
        self.session.record.lost(name, reason)
        self.session.actor_restarts += 1
        self.session.view.event(f"{name} died and is replaced: {reason}", warning=True)
        self._play_again(actor)
        self._spawn(actor.index)
        self._grant_groups()

    def _own_state(self) -> dict[str, Any]:
        return {"group": self._next, "open": sorted({*self._open, *self._again})}

    def close(self) -> None:
        super().close()
        shutil.rmtree(self.session.rundir.weights, ignore_errors=True)
