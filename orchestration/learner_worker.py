"""What the hosts of learners have in common, whoever learns: a sign of life, the group of several workers, and checkpoints
written beside the training."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from learner.errors import GroupError
from orchestration.config import Config
from orchestration.results import Written

if TYPE_CHECKING:
    from learner.parallel import Meeting
    from reward_server.models.base import RewardModelVersion


class LearnerHost:
    """A base of Ray actors, each of which has its learner's part in `_part`; of several workers the one that leads
    (`orchestration.learner_group`)."""

    def __init__(self, config: Config) -> None:
        from learner.background import BackgroundWriter

        self._part: Any
        self._config = config
        self._meeting: Meeting | None = None
        self._writer = BackgroundWriter()

    def invite(self, *nodes: str) -> str:
        """Opens the meeting of a group whose other workers are on the machines `nodes`; its address."""
        from learner.parallel import LOOPBACK, open_meeting

        here = ray.util.get_node_ip_address()
        self._meeting = open_meeting(LOOPBACK if all(node == here for node in nodes) else here)
        return self._meeting.address

    def meet(self) -> None:
        """Waits for the others; from then on they learn with this one."""
        from learner.parallel import Group

        with ending_with_the_group():
            if self._meeting is None:
                raise GroupError("another worker died before the group met")
            device, size = self._part.learner.step.device, self._config.learner.workers
            self._part.learner.lead(Group(self._meeting, 0, size, device, here=self._meeting.host))

    def beat(self) -> None:
        """Answers when the calls before it are done, and so says that this process lives."""

    def adopt(self, version: "RewardModelVersion") -> None:
        self._part.adopt(version)

    def checkpoint(
        self, root: Path, env_steps: int, rest: Mapping[str, Any], reward_server: Any, config_yaml: str, keep: int
    ) -> float:
        """Begins to write a checkpoint of what has been fed so far; the seconds that the learner was held up.

        `reward_server` is the state of that, which comes here without passing the coordinator.
        """
        began = time.perf_counter()
        self._writer.wait()
        try:
            write = self._part.snapshot(root, env_steps, {**rest, "reward_server": reward_server}, config_yaml, keep)
        except OSError as error:
            write = _failed(error)
        self._writer.start(write)
        return time.perf_counter() - began

    def written(self, wait: bool) -> Written | None:
        """What came of the newest checkpoint; None while it is being written, which `wait` waits for."""
        if wait:
            self._writer.wait()
        if self._writer.busy:
            return None
        path, error, seconds = self._writer.outcome()
        if error is None:
            return Written(path, None, seconds)
        return Written(None, f"{type(error).__name__}: {error}", seconds)


def _failed(error: OSError) -> Callable[[], Path]:
    def write() -> Path:
        raise error

    return write


@contextlib.contextmanager
def ending_with_the_group() -> Generator[None]:
    """Ends this process where another worker of the learner is lost: what it was doing with that is half done, so nothing may
    read or keep its state. The coordinator hears of a death either way."""
    try:
        yield
    except GroupError as error:
        sys.stderr.write(f"{error}; this worker ends too\n")
        sys.stderr.flush()
        os._exit(1)
