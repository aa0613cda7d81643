"""The annotator: asks the judge about captions, newest first, and writes the answers into the store.

Every caption is in one state: `unseen -> queued -> in flight -> labelled | failed`. Invariants:

- A caption is in one request at most, and no caption is asked about again under one key once it is labelled, in this
  run or a later one. One that `failed` may be asked about again by a later run.
- A label counts as given only once the store has it. What the store refuses (a full disk) is kept and written first
  as soon as the annotator is asked to go on.
- What never came (refused, timed out, broken) is no answer: the captions go back to where they were, uncounted.
  What came and cannot be read is asked about `attempts` times, then `failed`. It is never 0.
- `max_labels` holds exactly: captions on their way are reserved for.

No error of the judge leaves `run` or `drain`: it becomes `status()`. Errors of the store do leave them.

Nothing here is bound to an event loop between calls, and `submit`, `stop` and `status` may be called from any thread.
"""

import asyncio
import math
import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from envs.captions import EMPTY_CAPTION_ID
from reward_server.annotator_status import AnnotatorStatus, Meter
from reward_server.backlog import Backlog, Caption
from reward_server.breaker import CircuitBreaker
from reward_server.settings import AnnotatorSettings
from reward_server.store import AnnotationStore, AnnotationStoreError, LabelRecord
from reward_server.types import Answer, Judge, JudgeError, JudgeStatus, JudgeUnavailableError

_PROBE_SHARE = 4.0
"""`drain` lets so many times as long pass after a failed probe as the probe took: a judge that hangs costs a serial
run a fifth of its time at most."""


class CaptionState(StrEnum):
    """Where a caption is on its way to a label."""

    UNSEEN = "unseen"
    QUEUED = "queued"
    IN_FLIGHT = "in_flight"
    LABELLED = "labelled"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class _Request:
    captions: tuple[Caption, ...]
    known: Mapping[int, LabelRecord]
    """Answers that the store has already (set aside by a resume); these captions are not asked about."""

    @property
    def asked(self) -> tuple[Caption, ...]:
        return tuple(caption for caption in self.captions if caption[0] not in self.known)


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What became of a request: answers for `request.asked`, in order, or the error why there are none."""

    answers: Sequence[Answer] | None
    latency_s: float
    error: str | None = None
    permanent: bool = False
    """The judge says that asking again cannot help."""
    timed_out: bool = False


@dataclass(frozen=True, slots=True)
class _Flight:
    request: _Request
    task: asyncio.Task[_Outcome]


class Annotator:
    """Keeps up to `settings.in_flight` requests of up to `settings.batch` captions at the judge.

    `run` goes on until `stop`; `drain` asks until nothing waits, in an order that depends on nothing but what was
    submitted (given the judge's answers). `clock` is in seconds and only grows; `seed` seeds the jitter of backoffs.
    """

    def __init__(
        self,
        judge: Judge,
        store: AnnotationStore,
        settings: AnnotatorSettings,
        *,
        clock: Callable[[], float] = time.monotonic,
        seed: int = 0,
    ) -> None:
        self._judge = judge
        self._key = judge.key
        self._store = store
        self._settings = settings
        self._clock = clock
        self._guard = threading.RLock()
        self._backlog = Backlog(settings.backlog)
        self._breaker = CircuitBreaker(
            settings.breaker_failures, settings.backoff_s, settings.probe_interval_s, random.Random(seed)
        )
        self._meter = Meter()
        self._state: dict[int, CaptionState] = dict.fromkeys(store.labelled_ids(self._key), CaptionState.LABELLED)
        self._labelled = len(self._state)
        self._aside = store.aside(self._key)
        self._seen: set[int] = set()
        self._failed: set[int] = set()
        self._attempts: dict[int, int] = {}
        self._alone: set[int] = set()
        """Captions of requests that the judge refused for good: asked about one by one, to find the one at fault."""
        self._spell: dict[int, str] = {}
        """Captions that failed since the last readable answer; if the judge turns out to have been at fault, they get
        a second chance (each one once)."""
        self._second_chance: set[int] = set()
        self._reserved = 0
        """Captions that are on their way to the judge, or answered and not yet written."""
        self._new_captions: list[Caption] = []
        self._unwritten: list[LabelRecord] = []
        self._store_error: AnnotationStoreError | None = None
        self._last_error: str | None = None
        self._fatal = False
        self._answered = False
        self._batch = float(settings.batch)
        self._started_at: float | None = None
        self._stop_at: float | None = None
        self._running = False
        self._wake: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None

    # -- from any thread ----------------------------------------------------------------------------------------

    def submit(self, captions: Iterable[Caption]) -> None:
        """Queues the (id, normalised text) pairs that are unseen, in order: the last is the newest. Idempotent."""
        with self._guard:
            before = len(self._backlog)
            for caption_id, text in captions:
                if caption_id == EMPTY_CAPTION_ID:
                    continue
                if caption_id not in self._seen:
                    self._seen.add(caption_id)
                    self._new_captions.append((caption_id, text))
                if caption_id not in self._state:
                    self._state[caption_id] = CaptionState.QUEUED
                    self._dropped(self._backlog.push(caption_id, text))
            if len(self._backlog) != before:
                self._notify()

    def stop(self, grace_s: float = 5.0) -> None:
        """Lets `run` return: nothing new is asked, answers on their way are awaited for up to `grace_s` seconds."""
        with self._guard:
            self._stop_at = self._clock() + grace_s
            self._notify()

    def state(self, caption_id: int) -> CaptionState:
        with self._guard:
            return self._state.get(caption_id, CaptionState.UNSEEN)

    def status(self) -> AnnotatorStatus:
        with self._guard:
            meter, now = self._meter, self._clock()
            mean, p95 = meter.latency()
            return AnnotatorStatus(
                judge_status=self._judge_status(now),
                last_error=self._last_error,
                seen=len(self._seen),
                queued=len(self._backlog),
                in_flight=self._reserved,
                labelled=self._labelled,
                labelled_this_run=meter.labelled,
                failed=len(self._failed),
                dropped=meter.dropped,
                requests=meter.requests,
                request_failures=meter.request_failures,
                unreadable=meter.unreadable,
                late=meter.late,
                latency_mean_s=mean,
                latency_p95_s=p95,
                batch=int(self._batch),
                labels_per_second=meter.rate(now),
                waiting_s=meter.waiting_s,
                busy_s=meter.busy_s,
                blocked_s=meter.blocked_s,
            )

    # -- asking -------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Asks whenever captions wait and the judge can be asked, until `stop`. Raises `AnnotationStoreError`."""
        await self._pump(ordered=False)

    async def drain(self) -> None:
        """Asks until nothing waits, nothing is on its way, or the judge may not be asked now (it is down and its next
        probe is not due, or the budget is spent). Raises `AnnotationStoreError`.

        Requests are settled in the order in which they left, and their size does not follow the clock, so the order of
        labels is the same whenever the judge's answers are.
        """
        await self._pump(ordered=True)

    async def _pump(self, *, ordered: bool) -> None:
        wake = asyncio.Event()
        with self._guard:
            if self._running:
                raise RuntimeError("the annotator runs already: either `run` or `drain`, and one at a time")
            self._running = True
            self._wake = (asyncio.get_running_loop(), wake)
            self._store_error = None
            if self._started_at is None:
                self._started_at = self._clock()
            self._meter.start(self._clock())
        flights: list[_Flight] = []
        try:
            self._flush()  # what an earlier call could not write
            while True:
                self._launch(flights, ordered)
                if not flights and self._ends(ordered):
                    break
                if not ordered and self._overdue():
                    break
                await self._wait(flights, wake, ordered)
                self._settle(_landed(flights, ordered), ordered)
            if self._store_error is not None:
                raise self._store_error
        finally:
            with self._guard:
                self._wake = None
                self._running = False
                for flight in reversed(flights):  # the annotator stops before they came back
                    flight.task.cancel()
                    self._return(flight.request)

    def _launch(self, flights: list[_Flight], ordered: bool) -> None:
        with self._guard:
            while (request := self._next_request(len(flights))) is not None:
                flights.append(_Flight(request, asyncio.create_task(self._ask(request))))
        del ordered

    def _next_request(self, on_their_way: int) -> _Request | None:
        """The newest captions that may be asked about now, moved from the backlog into flight."""
        if self._stop_at is not None or self._store_error is not None or self._clock() < self._breaker.retry_at:
            return None
        probing = self._breaker.is_open
        if on_their_way >= (1 if probing else self._settings.in_flight):
            return None
        size = 1 if probing else int(self._batch)
        captions: list[Caption] = []
        known: dict[int, LabelRecord] = {}
        while len(captions) < size and len(self._backlog):
            caption_id, _ = self._backlog.newest()
            if caption_id in self._aside:
                known[caption_id] = self._aside[caption_id]
            elif self._room() < 1:
                break
            elif caption_id in self._alone:
                if captions:
                    break
                size = 1
            if caption_id not in known:
                self._reserved += 1
            self._state[caption_id] = CaptionState.IN_FLIGHT
            captions.append(self._backlog.pop())
        return _Request(tuple(captions), known) if captions else None

    def _room(self) -> float:
        """How many more captions the budget lets through."""
        if self._settings.max_labels is None:
            return math.inf
        return self._settings.max_labels - self._labelled - len(self._aside) - self._reserved

    async def _ask(self, request: _Request) -> _Outcome:
        """Asks the judge within the deadline. Never raises for what the judge does."""
        texts = [text for _, text in request.asked]
        if not texts:
            return _Outcome((), 0.0)
        started = self._clock()
        call = asyncio.ensure_future(self._judge.ask(texts))
        try:
            done, _ = await asyncio.wait({call}, timeout=self._settings.timeout_s)
        except asyncio.CancelledError:
            call.cancel()
            raise
        latency = self._clock() - started
        if not done:
            # Not awaited: a judge that does not heed the cancellation must not hold the annotator.
            call.cancel()
            call.add_done_callback(_forget)
            limit = f"the judge did not answer within {self._settings.timeout_s:g} s (annotator.timeout_s)"
            return _Outcome(None, latency, limit, timed_out=True)
        try:
            return _Outcome(call.result(), latency)
        except JudgeUnavailableError as error:
            return _Outcome(None, latency, _first_line(error))
        except JudgeError as error:
            return _Outcome(None, latency, _first_line(error), permanent=True)
        except asyncio.CancelledError:
            return _Outcome(None, latency, "the judge gave the request up")
        except Exception as error:
            # What a judge raises beyond its contract must stop annotation no more than what is within it.
            return _Outcome(None, latency, f"{type(error).__name__}: {_first_line(error)}")

    async def _wait(self, flights: list[_Flight], wake: asyncio.Event, ordered: bool) -> None:
        """Until a request comes back, a caption comes in, the breaker lets the next one through, or `stop`."""
        now = self._clock()
        with self._guard:
            queued = len(self._backlog) > 0
            due = [self._breaker.retry_at] if queued and self._breaker.retry_at > now else []
            if self._stop_at is not None:
                due = [self._stop_at]
        timeout = max(min(due) - now, 0.001) if due else None
        if ordered:
            if flights:
                await asyncio.wait({flights[0].task})
            elif timeout is not None:
                await asyncio.sleep(timeout)
        else:
            waker = asyncio.ensure_future(wake.wait())
            try:
                pending = {waker, *(flight.task for flight in flights)}
                await asyncio.wait(pending, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            finally:
                waker.cancel()
            wake.clear()
        spent = self._clock() - now
        with self._guard:
            if flights:
                self._meter.busy_s += spent
            elif queued:
                self._meter.blocked_s += spent
            else:
                self._meter.waiting_s += spent

    def _ends(self, ordered: bool) -> bool:
        """Whether a pump with nothing in flight is done."""
        with self._guard:
            if self._store_error is not None or self._stop_at is not None:
                return True
            if not ordered:
                self._flush()
                return self._store_error is not None
            blocked = self._breaker.is_open and self._clock() < self._breaker.retry_at
            unaffordable = self._room() < 1 and not (len(self._backlog) and self._backlog.newest()[0] in self._aside)
            if not len(self._backlog) or blocked or unaffordable:
                self._flush()
                return True
            return False

    def _overdue(self) -> bool:
        return self._stop_at is not None and self._clock() >= self._stop_at

    # -- settling -----------------------------------------------------------------------------------------------

    def _settle(self, landed: Sequence[_Flight], ordered: bool) -> None:
        with self._guard:
            for flight in landed:
                self._settle_one(flight.request, flight.task.result(), ordered)
            if landed or self._new_captions:
                self._flush()

    def _settle_one(self, request: _Request, outcome: _Outcome, ordered: bool) -> None:
        now = self._clock()
        if request.asked:
            self._meter.requests += 1
        if outcome.answers is None:
            self._meter.request_failures += 1
            self._meter.late += outcome.timed_out
            self._last_error = outcome.error
            self._fatal = outcome.permanent
            was_open = self._breaker.is_open
            self._breaker.failure(now)
            if ordered and was_open:
                self._breaker.retry_at = max(self._breaker.retry_at, now + _PROBE_SHARE * outcome.latency_s)
            if outcome.timed_out:
                self._batch = max(1.0, self._batch // 2)
            if outcome.permanent:
                self._refused(request, outcome)
            else:
                self._return(request)
            return
        answers = outcome.answers
        if len(answers) != len(request.asked):
            self._last_error = f"the judge gave {len(answers)} answers to {len(request.asked)} captions"
            answers = [Answer(None, None, self._last_error, outcome.latency_s)] * len(request.asked)
        given = {caption[0]: _checked(answer) for caption, answer in zip(request.asked, answers, strict=True)}
        if given:
            self._meter.answered(outcome.latency_s)
            self._judge_answered(now, given)
            self._adapt(len(given), outcome.latency_s, ordered)
        retried: list[Caption] = []
        for caption_id, text in request.captions:
            if caption_id in request.known:
                self._unwritten.append(request.known[caption_id])
            else:
                self._answer(caption_id, text, given[caption_id], retried)
        for caption_id, text in retried:  # behind all others: an odd caption does not hold up new ones
            self._requeue_oldest(caption_id, text)

    def _judge_answered(self, now: float, given: Mapping[int, Answer]) -> None:
        """Tells the breaker whether anything could be read, and gives captions back that failed for the judge's sake."""
        unreadable = sum(answer.label is None for answer in given.values())
        self._meter.unreadable += unreadable
        if unreadable == len(given):
            self._breaker.unreadable(now, set(given))
            raw = " ".join(next(iter(given.values())).raw.split())
            self._last_error = f"the judge's answers cannot be read as labels, such as {raw[:120]!r}"
            return
        self._answered = True
        self._fatal = False
        self._last_error = None
        was_unreadable = self._breaker.reason is JudgeStatus.UNREADABLE or self._fatal
        if self._breaker.success() and was_unreadable:
            for caption_id, text in self._spell.items():
                if caption_id not in self._second_chance:
                    self._second_chance.add(caption_id)
                    self._failed.discard(caption_id)
                    self._attempts.pop(caption_id, None)
                    self._requeue_oldest(caption_id, text)
        self._spell.clear()

    def _answer(self, caption_id: int, text: str, answer: Answer, retried: list[Caption]) -> None:
        attempts = self._attempts.get(caption_id, 0) + 1
        if answer.label is None and attempts < self._settings.attempts:
            self._attempts[caption_id] = attempts
            self._reserved -= 1
            retried.append((caption_id, text))
            return
        self._attempts.pop(caption_id, None)
        if answer.label is None:
            self._spell[caption_id] = text
        self._unwritten.append(LabelRecord(caption_id, answer, attempts))

    def _refused(self, request: _Request, outcome: _Outcome) -> None:
        """A request that the judge will never answer: its captions are tried one by one, and each so often."""
        self._alone.update(caption_id for caption_id, _ in request.asked)
        if len(request.asked) > 1:
            self._return(request)
            return
        retried: list[Caption] = []
        for caption_id, text in request.captions:
            if caption_id in request.known:
                self._unwritten.append(request.known[caption_id])
            else:
                self._answer(caption_id, text, Answer(None, None, outcome.error or "", outcome.latency_s), retried)
        for caption_id, text in retried:
            self._requeue_oldest(caption_id, text)

    def _adapt(self, asked: int, latency_s: float, ordered: bool) -> None:
        """Fewer captions a request where answers are slow, more where they are quick (`drain` only grows back)."""
        target = self._settings.latency_target_s
        if not ordered and latency_s > target:
            self._batch = max(1.0, self._batch // 2)
        elif asked >= int(self._batch) and (ordered or latency_s < target / 2):
            self._batch = min(float(self._settings.batch), self._batch * 2)

    def _return(self, request: _Request) -> None:
        """Captions that came back without an answer wait again, where they were: newest first."""
        for caption_id, text in reversed(request.captions):
            if caption_id not in request.known:
                self._reserved -= 1
            self._state[caption_id] = CaptionState.QUEUED
            self._dropped(self._backlog.push(caption_id, text))

    def _requeue_oldest(self, caption_id: int, text: str) -> None:
        self._state[caption_id] = CaptionState.QUEUED
        self._dropped(self._backlog.push_oldest(caption_id, text))

    def _dropped(self, caption: Caption | None) -> None:
        """A caption that fell out of the backlog is unseen again; it is queued anew when it turns up again."""
        if caption is not None:
            self._meter.dropped += 1
            self._state.pop(caption[0], None)
            self._attempts.pop(caption[0], None)

    def _flush(self) -> None:
        """Writes what is known and not in the store; what cannot be written is kept, and nothing more is asked."""
        if not self._unwritten and not self._new_captions:
            return
        try:
            self._store.write(self._key, self._unwritten, self._new_captions)
        except AnnotationStoreError as error:
            self._store_error = error
            self._last_error = _first_line(error)
            return
        given = 0
        for record in self._unwritten:
            known = self._aside.pop(record.caption_id, None)
            if known is None:
                self._reserved -= 1
            self._alone.discard(record.caption_id)
            if record.answer.label is None:
                self._state[record.caption_id] = CaptionState.FAILED
                self._failed.add(record.caption_id)
            else:
                self._state[record.caption_id] = CaptionState.LABELLED
                self._labelled += 1
                given += known is None
        self._meter.labels(self._clock(), given)
        self._unwritten.clear()
        self._new_captions.clear()

    def _judge_status(self, now: float) -> JudgeStatus:
        budget = self._settings.max_labels
        if budget is not None and self._labelled + len(self._aside) >= budget:
            return JudgeStatus.EXHAUSTED
        started = now if self._started_at is None else self._started_at
        if not self._answered and not self._fatal and self._breaker.reason is not JudgeStatus.UNREADABLE:
            in_grace = now - started < self._settings.start_grace_s
            return JudgeStatus.STARTING if in_grace or not self._breaker.is_open else JudgeStatus.DOWN
        return self._breaker.reason or (JudgeStatus.READY if self._answered else JudgeStatus.DOWN)

    def _notify(self) -> None:
        if self._wake is not None:
            loop, event = self._wake
            loop.call_soon_threadsafe(event.set)

    # -- checkpoints --------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: the store's cursor, and the captions that wait (those in flight among them).

        To be taken while neither `run` nor `drain` is at work where a resumed run must equal an uninterrupted one.
        """
        with self._guard:
            return {
                "cursor": self._store.cursor(self._key),
                "backlog": self._backlog.oldest_first(),
                "seen": sorted(self._seen),
                "failed": sorted(self._failed),
                "attempts": dict(self._attempts),
                "dropped": self._meter.dropped,
                "batch": self._batch,
            }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes back to a checkpoint. Labels given after it are set aside: when the run comes to their captions again
        they are taken from the store, in their turn, and not asked for."""
        with self._guard:
            if self._seen or self._running:
                raise RuntimeError("load_state_dict: the annotator has begun already")
            self._store.set_aside(self._key, int(state["cursor"]))
            self._state = dict.fromkeys(self._store.labelled_ids(self._key), CaptionState.LABELLED)
            self._labelled = len(self._state)
            self._aside = self._store.aside(self._key)
            self._seen = {int(i) for i in state["seen"]}
            self._failed = {int(i) for i in state["failed"]} - set(self._state)
            self._state.update(dict.fromkeys(self._failed, CaptionState.FAILED))
            self._attempts = {int(i): int(n) for i, n in state["attempts"].items()}
            self._meter.dropped = int(state["dropped"])
            self._batch = float(state["batch"])
            for caption_id, text in state["backlog"]:
                if caption_id not in self._state:
                    self._state[caption_id] = CaptionState.QUEUED
                    self._dropped(self._backlog.push(caption_id, text))


def _landed(flights: list[_Flight], ordered: bool) -> list[_Flight]:
    """Takes the flights that are back out of the list, in the order in which they left; where `ordered`, only those
    that no earlier one is still awaited before."""
    landed: list[_Flight] = []
    for flight in tuple(flights):
        if flight.task.done():
            landed.append(flight)
            flights.remove(flight)
        elif ordered:
            break
    return landed


def _checked(answer: Answer) -> Answer:
    """The answer as the store may hold it: a label that is none is unreadable, a probability that is none is unknown."""
    if answer.label not in (0, 1):
        return Answer(None, None, answer.raw, answer.latency_s)
    if answer.probability is not None and not 0.0 <= answer.probability <= 1.0:
        return Answer(answer.label, None, answer.raw, answer.latency_s)
    return answer


def _forget(call: asyncio.Future[list[Answer]]) -> None:
    """Takes note of a late result, so that asyncio does not complain that nobody did."""
    if not call.cancelled():
        call.exception()


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
