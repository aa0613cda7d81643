"""The reward server and its judge, as the coordinator of a distributed run has them: started late, asked now and then."""

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from orchestration import placement
from orchestration.configuration import compares_pairs
from orchestration.errors import death, first_line, root_cause
from orchestration.ray_workers import RewardServerWorker
from orchestration.session import Session
from reward_server.store import DamagedStoreError

_POLL_S = 1.0
_HEAR_S = 10.0
_NAMESPACE = "yendor"
"""Of Ray's, that reward servers have names in: the judge of a run looks there whether the run is there."""


class RewardHost:
    """Never holds the loop up: what it asks it looks for later."""

    def __init__(
        self,
        session: Session,
        state: Any,
        adopt: Callable[[Any], None],
        captions: Callable[[], Sequence[tuple[int, str]]],
    ) -> None:
        """`state`: of the checkpoint that the run goes on from; `adopt` is called with a reference to each new reward model;
        `captions`: those submitted last, for one that takes another's place."""
        self.config = session.config
        self.session = session
        # In a tuple and kept here: Ray would give up what it made of a large argument, and could not make the actor again.
        self._state = None if state is None else (ray.put(state),)
        self._adopt = adopt
        self._captions = captions
        self.worker: Any = None
        """Handle of the RewardServerWorker; None before the first rollout came back, and where there is no judge."""
        self.reward_model: Any = None
        """Reference to the newest reward model; None before there is one."""
        self.asked_since: float | None = None
        """When it was asked what it has not answered, by the monotonic clock."""
        self._poll: tuple[Any, Any] | None = None
        self._poll_at = 0.0
        self._app = _judge_app(session.rundir.path)
        self._judge_started = False
        self._known = session.learning.reward_model_version
        """Version of the reward model that the learner has. One of a checkpoint may be ahead of the reward server's state, which
        then counts on from it."""
        self._died = False
        """Whether it died, and the one in its place has not answered yet."""

    def submit(self, captions: Sequence[tuple[int, str]]) -> None:
        """Hands on new captions. Starts reward server and judge first: the first steps come before that, as together they
        take two cores for a while."""
        worker = self.worker or self._start()
        if captions:
            worker.submit.remote(captions)

    def _start(self) -> Any:
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
            deployment.start(
                self.config.judge,
                app_name=self._app,
                num_cpus=0,
                resources=resources,
                in_flight=self.config.annotator.in_flight,
                pairwise=pairwise,
                owner=deployment.Owner(self._app, _NAMESPACE),
            )
        _end_earlier(self._app)
        self.worker = (
            ray.remote(RewardServerWorker)
            .options(max_restarts=-1, name=self._app, namespace=_NAMESPACE, **placement.reward_server(self.config))
            .remote(self.config, self.session.rundir.path, self.judge_app, self._state)
        )
        return self.worker

    @property
    def judge_app(self) -> str | None:
        """The application of Ray Serve that is the judge; None where this run has started none."""
        return self._app if self._judge_started and self.config.judge.engine != "openai" else None

    def look(self) -> None:
        """Asks it how it stands, or looks whether it has answered."""
        if self.worker is None:
            return
        if self._poll is None:
            if time.monotonic() >= self._poll_at:
                self._poll, self.asked_since = self._ask(), time.monotonic()
                self._poll_at = time.monotonic() + _POLL_S
            return
        ready, _ = ray.wait([self._poll[0]], timeout=0)
        if ready:
            self._take(self._poll)

    def _ask(self) -> tuple[Any, Any]:
        """References to how it stands, and to its reward model, which never passes the coordinator."""
        return self.worker.poll.options(num_returns=2).remote(self._known)

    def hear(self) -> None:
        """Its last word, which in a short run may be its first."""
        if self.worker is not None:
            poll = self._poll or self._ask()
            if ray.wait([poll[0]], timeout=_HEAR_S)[0]:
                self._take(poll)

    def _take(self, poll: tuple[Any, Any]) -> None:
        reference, reward_model = poll
        self._poll = self.asked_since = None
        try:
            status, version = ray.get(reference)
        except RayActorError as error:
            if error.actor_init_failed:
                raise  # so would another: the store cannot be opened
            # Ray makes it again (max_restarts); its labels are in the store.
            if not self._died:
                self.session.faults.reward_server_restarts += 1
                self.session.record.reward_server_lost(death(error))
                self.session.view.event(f"the reward server died and is restarted: {death(error)}", warning=True)
            self._died = True
            return
        except RayError as error:
            if not isinstance(root_cause(error), DamagedStoreError):
                raise
            # The one that Ray makes opens the file anew, and so replaces it.
            self.session.faults.reward_server_restarts += 1
            self.session.record.reward_server_lost(first_line(error))
            self.session.view.event(f"the reward server is restarted: {first_line(error)}", warning=True)
            self._died = True
            ray.kill(self.worker, no_restart=False)
            return
        if self._died:
            # What waited to be asked about, and calls made while it was away, went with it. What it knows costs no question.
            self._died = False
            self.session.view.event("the reward server is there again")
            self.worker.submit.remote(self._captions())
        self.session.judged(status)
        if version:
            self._known, self.reward_model = version, reward_model
            self._adopt(reward_model)

    def stop_judge(self) -> None:
        """Ends the judge, where this run started it."""
        if self._judge_started and self.config.judge.engine != "openai":
            from reward_server.judge import deployment

            with contextlib.suppress(RayError):
                deployment.stop(self._app, keep_serve="RAY_ADDRESS" not in os.environ)


def _end_earlier(name: str) -> None:
    """Ends the reward server of an earlier driver of the same run, whose death Ray has not noticed yet: of two drivers of one
    run, the earlier is dead, as they lock its folder."""
    until = time.monotonic() + _HEAR_S
    with contextlib.suppress(ValueError):  # it is gone
        while time.monotonic() < until:
            ray.kill(ray.get_actor(name, _NAMESPACE))
            time.sleep(0.1)


def _judge_app(rundir: Path) -> str:
    """The application of Ray Serve that is a run's judge. Runs on one cluster have one each: they may ask another model, or
    for another goal, and the one that ends first ends its own. A run that goes on has that of before."""
    return f"judge-{blake2b(str(rundir.resolve()).encode(), digest_size=5).hexdigest()}"
