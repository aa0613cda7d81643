"""The learner's workers beside the first (`learner.workers`), as Ray actors.

Invariants:

- Trajectories, checkpoints and weights are the first worker's business alone (`LearnerWorker`, which leads). The others hold
  what it sent them, so a checkpoint does not tell how many there were.
- A group lives and dies as a whole. Whichever worker dies, all are ended, and others take their place from the newest
  checkpoint, as for a learner alone.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError

from learner.errors import GroupError
from orchestration import placement
from orchestration.config import Config
from orchestration.errors import root_cause
from orchestration.part_log import log_to
from orchestration.rundir import RunDir
from orchestration.watch.run_watch import Part

_CAUSE_S = 2.0
"""A worker that died may be heard of later than the one that missed it."""


class LearnerFollower:
    """Hosts a worker that follows; thin, as the workers of `orchestration.ray_workers`."""

    def __init__(self, config: Config, rundir: Path, rank: int, model: str | None) -> None:
        """`model`: where a language model begins; None: a network learns."""
        log_to(RunDir(rundir).logs, f"learner-{rank}")
        import torch

        torch.set_num_threads(config.learner.threads)
        self._rank = rank
        self._size = config.learner.workers
        self._step, self._follower = _follower(config, model)

    def node(self) -> str:
        """The address of its machine."""
        return ray.util.get_node_ip_address()

    def follow(self, address: str) -> None:
        """Takes every step with the worker that leads, whose group is met at `address`. Raises GroupError where that ends."""
        from learner.parallel import Group, join_meeting

        meeting = join_meeting(address)
        here = meeting.host if meeting.on_loopback else self.node()
        self._follower(Group(meeting, self._rank, self._size, self._step.device, here=here), self._step).follow()


def _follower(config: Config, model: str | None) -> tuple[Any, type[Any]]:
    """What takes the steps, and what follows the leader with it."""
    if model is not None:
        from learner.language.team import LanguageFollower
        from orchestration.language.parts import build_language_step

        return build_language_step(config, model), LanguageFollower
    from learner.team import Follower
    from orchestration.parts import action_count, build_follower

    return build_follower(config, action_count(config)), Follower


class Followers:
    """Those of the learner that there is now, as the coordinator has them; none with one worker."""

    def __init__(
        self,
        config: Config,
        rundir: Path,
        *,
        then: Callable[[Any, Callable[[Future[Any]], None]], None],
        died: Callable[[RayActorError], None],
    ) -> None:
        """`then` has a function called with the answer to a reference; `died` is called once for a group that lost one."""
        self._config = config
        self._rundir = rundir
        self._then = then
        self._died = died
        self._handles: list[Any] = []
        self._following: list[Any] = []
        """References to the answers that come when they end."""

    def start(self, model: str | None = None) -> None:
        """Makes them, for a learner that is being made too; the ones before are ended. `model`: where a language model begins."""
        self.end()
        workers = self._config.learner.workers
        if workers > 1:
            options = placement.learner(self._config)
            made: Any = ray.remote(LearnerFollower).options(**options)
            self._handles = [made.remote(self._config, self._rundir, rank, model) for rank in range(1, workers)]

    def parts(self) -> list[Part]:
        """As the watchdog knows them. They owe the coordinator nothing, so being idle is no fault; being stopped is one."""
        return [Part(f"learner-{rank}", handle, 0.0, False) for rank, handle in enumerate(self._handles, 1)]

    def join(self, learner: Any) -> None:
        """Has them and the learner find together, before it answers any later call."""
        if not self._handles:
            return
        address = learner.invite.remote(*(handle.node.remote() for handle in self._handles))
        self._following = following = [handle.follow.remote(address) for handle in self._handles]

        def ended(answer: Future[Any]) -> None:
            if following is not self._following:
                return
            error = answer.exception()
            if isinstance(error, RayActorError):
                if error.actor_init_failed:  # as another's would
                    raise error
                self._died(error)
            # What misses another worker says nothing new: that one's death is heard of too.
            elif error is not None and not isinstance(root_cause(error), GroupError | RayActorError):
                raise error

        for reference in (*following, learner.meet.remote()):
            self._then(reference, ended)

    def cause(self, error: RayActorError) -> tuple[str, RayActorError]:
        """The class of the worker that died first, and its death, where the learner was lost with `error`: it ends itself
        when it misses another."""
        end = time.monotonic() + _CAUSE_S
        waiting = self._following
        while waiting:
            ready, waiting = ray.wait(waiting, timeout=max(end - time.monotonic(), 0.0))
            if not ready:
                break
            try:
                ray.get(ready)
            except RayActorError as death:
                return LearnerFollower.__name__, death
            except Exception:  # what it says of the others is not the cause
                continue
        return "", error

    def end(self) -> None:
        """Kills them."""
        self._following = []
        for handle in self._handles:
            ray.kill(handle)
        self._handles = []
