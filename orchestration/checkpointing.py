"""Checkpoints of a distributed run: asked for while training goes on, and heard of later. At most one is on its way.

One takes three steps: the reward server gives its state, the learner copies its own (which holds it up for milliseconds)
and writes both in a thread. What a checkpoint says of the run's counters is what they were when the learner was asked, as
its calls are answered in order: it has read all that was counted then.
"""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError

from orchestration.config import Config
from orchestration.errors import CheckpointWriteError, root_cause
from orchestration.results import Written
from orchestration.session import Session
from reward_server.store import DamagedStoreError

_LOOK_S = 0.5
_STATE_S = 5.0
"""Longest wait for the reward server's state. One that hangs or dies must not keep the learner's from being written: the
state before stands, as labels given since are in the store, and come again."""
_LAST_STATE_S = 30.0
"""... for that of a run's last checkpoint, which nothing waits for."""

Then = Callable[[Future[Any]], None]


class Checkpoints:
    """Has them written every `checkpoint.interval_s`."""

    def __init__(
        self,
        config: Config,
        session: Session,
        *,
        then: Callable[[Any, Then], None],
        own_state: Callable[[], Mapping[str, Any]],
        reward_server_state: Any,
    ) -> None:
        """`then` has a function called with the answer to a reference; `own_state`: what else there is to keep of the loop;
        `reward_server_state`: that of the checkpoint that the run goes on from, or None."""
        self._config = config
        self._session = session
        self._then = then
        self._own_state = own_state
        self.reward_server_state = reward_server_state
        self._interval_s = config.checkpoint.interval_s
        self._due = time.monotonic() + self._interval_s
        self._learner: Any = None
        """The one that was asked for the checkpoint on its way; None where none is."""
        self._taking = False
        """Whether the reward server is asked for its state."""
        self._state_by: float | None = None
        """Until when the reward server's state is waited for; None where it is not."""
        self._writing = False
        self._look_at = 0.0

    def tick(self, learner: Any, reward_server: Any | None) -> None:
        """Does what is due. Called a few times a second."""
        now = time.monotonic()
        if self._writing and now >= self._look_at:
            self._look_at = float("inf")
            self._then(learner.written.remote(False), lambda answer: self._told(learner, answer))
        elif self._learner is None and now >= self._due:
            self._due = now + self._interval_s
            self._learner = learner
            if reward_server is None or self._taking:  # one that hangs is not asked again
                self._ask(learner)
                return
            self._state_by, self._taking = now + _STATE_S, True
            taken, state = reward_server.state_dict.options(num_returns=2).remote()
            self._then(taken, lambda answer: self._taken(learner, answer, state))
        elif self._learner is learner and self._state_by is not None and now >= self._state_by:
            self._ask(learner)

    def forget(self) -> None:
        """The learner died, and with it the checkpoint that it was asked for. The next is due at once."""
        if self._learner is not None:
            self._learner, self._writing, self._state_by = None, False, None
            self._due = time.monotonic()

    def _taken(self, learner: Any, answer: Future[Any], state: Any) -> None:
        self._taking = False
        if _taken_well(answer):
            self.reward_server_state = state
        if self._learner is learner and self._state_by is not None:
            self._ask(learner)

    def _ask(self, learner: Any) -> None:
        self._state_by = None
        self._then(self._begin(learner), lambda answer: self._begun(learner, answer))

    def _begin(self, learner: Any) -> Any:
        session = self._session
        return learner.checkpoint.remote(
            session.rundir.checkpoints,
            session.env_steps,
            {"runtime": "ray", "session": session.state_dict(), **self._own_state()},
            self.reward_server_state,
            session.config_yaml(),
            self._config.checkpoint.keep,
        )

    def _begun(self, learner: Any, answer: Future[Any]) -> None:
        if self._learner is not learner:
            return
        if isinstance(answer.exception(), RayActorError):
            return  # Its death is noticed by who feeds it.
        self._session.waited("learner", "checkpoint", answer.result())
        self._writing, self._look_at = True, time.monotonic() + _LOOK_S

    def _told(self, learner: Any, answer: Future[Any]) -> None:
        if self._learner is not learner or isinstance(answer.exception(), RayActorError):
            return
        written: Written | None = answer.result()
        if written is None:
            self._look_at = time.monotonic() + _LOOK_S
            return
        self._learner, self._writing = None, False
        self._note(written)

    def _note(self, written: Written) -> None:
        for warning in written.warnings:
            self._session.view.event(warning, warning=True)
        if written.path is None:
            self._session.checkpoint_failed(written.error or "")
            return
        self._session.checkpoint_written()
        self._session.checkpoint = written.path

    def finish(self, learner: Any, reward_server: Any | None) -> None:
        """Writes the last checkpoint of the run and waits for it.

        Raises `CheckpointWriteError` where it cannot be written, and `RayActorError` where the learner dies over it.
        """
        if reward_server is not None:
            taken, state = reward_server.state_dict.options(num_returns=2).remote()
            try:
                ray.get(taken, timeout=_LAST_STATE_S)
                self.reward_server_state = state
            except RayError as error:
                if not isinstance(error, GetTimeoutError) and not _is_made_again(error):
                    raise
        ray.get(self._begin(learner))
        written: Written = ray.get(learner.written.remote(True))
        self._learner, self._writing = None, False
        self._note(written)
        if written.path is None:
            newest = self._session.checkpoint
            there = "there is no other of this run" if newest is None else f"the newest is {newest}"
            raise CheckpointWriteError(f"the last checkpoint was not written: {written.error}; {there}")


def _taken_well(answer: Future[Any]) -> bool:
    """Whether the reward server gave its state. Raises what is neither its death nor a damaged store, both of which are met
    by making it again."""
    error = answer.exception()
    if error is not None and not _is_made_again(error):
        raise error
    return error is None


def _is_made_again(error: BaseException) -> bool:
    return isinstance(error, RayActorError) or isinstance(root_cause(error), DamagedStoreError)
