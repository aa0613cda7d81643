"""A learner of several workers: the leader in this process, each follower in one of its own, which serves group after group."""

import multiprocessing
import os
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch

from learner.language.step import LanguageStep
from learner.language.team import LanguageFollower
from learner.parallel import LOOPBACK, Group, join_meeting, open_meeting
from learner.step import PolicyStep
from learner.team import Follower

CPU = torch.device("cpu")
_ANSWER_S = 60.0


@dataclass(frozen=True)
class Task:
    """What a follower is to be."""

    build: Callable[..., PolicyStep | LanguageStep]
    arguments: tuple[Any, ...]
    address: str
    rank: int
    size: int


def _serve(pipe: Connection) -> None:
    torch.set_num_threads(1)
    while (task := pipe.recv()) is not None:
        try:
            step = task.build(*task.arguments)
            meeting = join_meeting(task.address)
            kind = LanguageFollower if isinstance(step, LanguageStep) else Follower
            kind(Group(meeting, task.rank, task.size, CPU, here=meeting.host), step).follow()
            critics = getattr(step, "critics", None)
            found = {"step": step.state_dict(), "critics": None if critics is None else critics.state_dict()}
            pipe.send(("done", _plain(found)))
        except Exception as error:  # for the test to look at
            pipe.send((type(error).__name__, str(error)))
            return  # torch's group of this process is broken


def _plain(state: Any) -> Any:
    """Tensors as arrays: torch would pass them through shared memory, whose files go with the process."""
    if isinstance(state, dict):
        return {key: _plain(value) for key, value in state.items()}
    return state.numpy().copy() if isinstance(state, torch.Tensor) else state


class FollowerProcess:
    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other,), daemon=True)
        self.process.start()

    def answer(self) -> tuple[str, Any]:
        """How the task ended."""
        assert self.pipe.poll(_ANSWER_S), "the follower does not answer"
        return self.pipe.recv()

    def close(self) -> None:
        self.process.kill()
        self.process.join()


def lead(
    followers: list[FollowerProcess],
    build: Callable[..., PolicyStep | LanguageStep],
    *arguments: Any,
    host: str = LOOPBACK,
) -> Group:
    """A group of this process and the followers, each of which has what `build(*arguments)` gives."""
    meeting = open_meeting(host)
    size = len(followers) + 1
    for rank, follower in enumerate(followers, 1):
        follower.pipe.send(Task(build, arguments, meeting.address, rank, size))
    return Group(meeting, 0, size, CPU, here=host)


def listening(pid: int) -> set[str]:
    """The IPv4 addresses that a process listens on."""
    import psutil

    return {c.laddr.ip for c in psutil.Process(pid).net_connections("inet") if c.status == psutil.CONN_LISTEN}


PID = os.getpid()
