"""Offline labelling: a judge is asked about captions that were collected, until all have a label.

Invariant: every answer that came is in the store when this returns, however it ends.
"""

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from orchestration.errors import YendorError
from reward_server.annotator import Annotator
from reward_server.annotator_status import AnnotatorStatus
from reward_server.types import JudgeStatus

_LOOK_S = 0.25
_GRACE_S = 10.0


class AnnotationError(YendorError):
    """The judge gave no more answers. What it had answered is in the store."""


@dataclass(frozen=True, slots=True)
class Annotation:
    """What came of it; counts of questions (captions, or pairs of them)."""

    asked_for: int
    """That were to be labelled."""
    known_before: int
    """Labelled by an earlier run of the command."""
    labelled: int
    """That the judge labelled now."""
    reused: int
    failed: int
    """Whose answers could not be read."""
    left: int
    """Neither labelled nor failed: the budget was spent, or it was interrupted."""
    interrupted: bool
    seconds: float


async def annotate(
    annotator: Annotator[Any],
    asked_for: int,
    *,
    patience_s: float,
    progress: Callable[[AnnotatorStatus], None] = lambda status: None,
) -> Annotation:
    """Lets `annotator`, to which `asked_for` questions were submitted, ask until none is left or its budget is spent.

    Ctrl-C (SIGINT, SIGTERM) ends it once answers on their way have come, after ten seconds at most; a second one at
    once. Raises `AnnotationError` where no answer comes for `patience_s` seconds while the judge is out of order, and
    `AnnotationStoreError` where labels cannot be written.
    """
    began = time.monotonic()
    before = annotator.status()
    running = asyncio.ensure_future(annotator.run())
    stopper = _Stopper(annotator)
    gave_up: str | None = None
    with stopper:
        answered, answered_at = -1, began
        while not running.done():
            await asyncio.wait({running}, timeout=_LOOK_S)
            status = annotator.status()
            progress(status)
            if (count := status.labelled + status.failed) != answered:
                answered, answered_at = count, time.monotonic()
            waits = status.queued + status.in_flight
            if not waits or (status.judge_status is JudgeStatus.EXHAUSTED and not status.in_flight):
                annotator.stop(_GRACE_S)
            elif status.judge_status is not JudgeStatus.READY and time.monotonic() - answered_at > patience_s:
                gave_up = f"the judge is {status.judge_status}: {status.last_error or 'it has not answered'}"
                annotator.stop(0.0)
        running.result()
    status = annotator.status()
    progress(status)
    if gave_up is not None:
        kept = status.labelled_this_run
        raise AnnotationError(
            f"{gave_up}; {kept:,} new labels are kept, and the same command goes on with the {status.queued:,} left"
        )
    done = status.labelled + status.failed
    return Annotation(
        asked_for=asked_for,
        known_before=asked_for - before.queued,
        labelled=status.labelled_this_run,
        reused=status.reused,
        failed=status.failed,
        left=max(before.queued - (done - before.labelled - before.failed), 0),
        interrupted=stopper.signals > 0,
        seconds=time.monotonic() - began,
    )


class _Stopper:
    """While entered, the first signal stops the annotator gently, and a second one cancels the task."""

    def __init__(self, annotator: Annotator[Any]) -> None:
        self.signals = 0
        self._annotator = annotator

    def __enter__(self) -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        for number in (signal.SIGINT, signal.SIGTERM):
            # In a thread other than the main one signals cannot be caught, and need not be.
            with contextlib.suppress(ValueError, RuntimeError):
                loop.add_signal_handler(number, self._stop, task)

    def __exit__(self, *_: object) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(ValueError, RuntimeError):
                asyncio.get_running_loop().remove_signal_handler(number)

    def _stop(self, task: "asyncio.Task[object] | None") -> None:
        self.signals += 1
        if self.signals == 1:
            self._annotator.stop(_GRACE_S)
        elif task is not None:
            task.cancel()
