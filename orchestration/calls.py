"""Calls of Ray actors whose answers are awaited, and what follows from each."""

import contextlib
import queue
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import UnionType
from typing import Any

from agents.report import RolloutReport


@dataclass(slots=True)
class Actor:
    index: int
    incarnation: int
    handle: Any
    """Ray's handle; its methods are those of RolloutWorker with `remote`."""
    collect: Any
    """Its method that rolls out, which answers with two objects. Kept, because to make it costs as much as a tenth of a call."""
    spawned_at: float = field(default_factory=time.monotonic)
    answered: bool = False
    """Whether it has answered a call: before that it may be waiting for a processor."""
    read: bool = False
    """Whether the learner has read something of it."""
    without_weights: int = 0
    """Calls since its last answer that failed as the weights for them were lost."""
    heard_at: float = field(default_factory=time.monotonic)
    """When it last answered, by the monotonic clock."""


@dataclass(frozen=True, slots=True)
class RolloutCall:
    actor: Actor
    trajectory: Any
    """Object reference; the trajectory itself never passes through the coordinator."""


@dataclass(frozen=True, slots=True)
class CloseCall:
    """Of an actor that was let go and has answered all its calls."""

    actor: Actor


@dataclass(frozen=True, slots=True)
class FeedCall:
    actor: Actor
    report: RolloutReport
    trajectory: Any
    """Object reference, kept for another learner where this one dies."""
    env_steps: int
    weights: Any
    """Object reference to the weights after this call, or to None."""


class Calls:
    """What each answer that is awaited answers."""

    def __init__(self) -> None:
        self._calls: dict[Future[Any], Any] = {}
        # Answers that came, put there by Ray's thread: `ray.wait` over the references of hundreds of calls costs a millisecond.
        self._ended: queue.SimpleQueue[Future[Any]] = queue.SimpleQueue()

    def expect(self, reference: Any, call: Any) -> None:
        """Notes a call by the reference to its answer, which `wait` gives when it is there."""
        answer = reference.future()
        self._calls[answer] = call
        answer.add_done_callback(self._ended.put)

    def wait(self, timeout_s: float) -> list[Future[Any]]:
        """The answers that came since the last time, also to calls that were dropped; waits for one where there is none."""
        answers: list[Future[Any]] = []
        with contextlib.suppress(queue.Empty):
            answers.append(self._ended.get(timeout=timeout_s))
        # Not those that come meanwhile: there may be no end of them.
        answers.extend(self._ended.get_nowait() for _ in range(self._ended.qsize()))
        return answers

    def take(self, answer: Future[Any]) -> Any:
        """The call that was answered; None where it was dropped."""
        return self._calls.pop(answer, None)

    def of(self, kind: type[Any] | UnionType) -> list[Any]:
        """The calls of a kind, in the order in which they were made."""
        return [call for call in self._calls.values() if isinstance(call, kind)]

    def take_all(self, kind: type[Any]) -> list[tuple[Future[Any], Any]]:
        """Those of a kind with their answers; they are no longer awaited."""
        taken = [(answer, call) for answer, call in self._calls.items() if isinstance(call, kind)]
        for answer, _ in taken:
            del self._calls[answer]
        return taken

    def drop(self, which: Callable[[Any], bool]) -> None:
        """Those that are no longer awaited."""
        self._calls = {answer: call for answer, call in self._calls.items() if not which(call)}
