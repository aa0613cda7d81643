"""The annotator: asks the judge about captions, newest first, and writes the answers into the store.

What holds of captions is said in `reward_server.ledger`. What holds of requests:

- What never came (refused, timed out, broken) is no answer: the captions go back to where they were, uncounted.
  What came and cannot be read is asked about `attempts` times, then `failed`. It is never 0.
- An answer that comes after its deadline is thrown away: its captions are queued by then, or with another request.
- No error of the judge leaves `run` or `drain`: it becomes `status()`. Errors of the store do leave them.

Nothing here is bound to an event loop between calls, and `submit`, `stop` and `status` may be called from any thread.
"""

import asyncio
import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

from reward_server.annotator_status import AnnotatorStatus, Meter
from reward_server.backlog import Q
from reward_server.breaker import CircuitBreaker
from reward_server.ledger import CaptionState, LabelTable, Ledger, Request
from reward_server.rate_limit import RateLimit
from reward_server.settings import AnnotatorSettings
from reward_server.store import AnnotationStoreError, LabelRecord
from reward_server.types import Answer, JudgeError, JudgeKey, JudgeStatus, JudgeUnavailableError

_PROBE_SHARE = 4.0
"""`drain` lets so many times as long pass after a failed probe as the probe took: a judge that hangs costs a serial
run a fifth of its time at most."""


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What became of a request: answers for `request.asked`, in order, or the error why there are none."""

    answers: Sequence[Answer] | None
    latency_s: float
    error: str = ""
    permanent: bool = False
    """The judge says that asking again cannot help."""
    timed_out: bool = False


@dataclass(frozen=True, slots=True)
class _Flight(Generic[Q]):
    request: Request[Q]
    task: asyncio.Task[_Outcome]


_Asked = TypeVar("_Asked", contravariant=True)


class Asked(Protocol[_Asked]):
    """A judge, of captions or of pairs."""

    @property
    def key(self) -> JudgeKey: ...

    async def ask(self, captions: Sequence[_Asked], /) -> list[Answer]: ...


class Annotator(Generic[Q]):
    """Keeps up to `settings.in_flight` requests of up to `settings.batch` captions at the judge.

    `run` goes on until `stop`; `drain` asks until nothing waits, in an order that depends on nothing but what was
    submitted (given the judge's answers). `clock` is in seconds and only grows; `seed` seeds the jitter of backoffs;
    `labels` are those that an answer may have.
    `reuse` are labels under the judge's key from elsewhere, by caption id, that are taken instead of asking.
    `max_labels_per_s` holds for `run` alone: `drain` does not look at the clock.
    """

    def __init__(
        self,
        judge: Asked[Q],
        store: LabelTable[Q],
        settings: AnnotatorSettings,
        *,
        labels: Sequence[int] = (0, 1),
        reuse: Mapping[int, LabelRecord] | None = None,
        clock: Callable[[], float] = time.monotonic,
        seed: int = 0,
    ) -> None:
        self._judge = judge
        self._labels = labels
        self._settings = settings
        self._clock = clock
        self._guard = threading.RLock()
        self._ledger = Ledger(store, judge.key, settings, reuse)
        self._limit = RateLimit(settings.max_labels_per_s)
        self._breaker = CircuitBreaker(
            settings.breaker_failures, settings.backoff_s, settings.probe_interval_s, random.Random(seed)
        )
        self._meter = Meter()
        self._batch = settings.batch
        self._store_error: AnnotationStoreError | None = None
        self._last_error: str | None = None
        self._answered = False
        self._refused = False
        """The last trouble was a refusal for good: that is not a judge that is still starting."""
        self._started_at: float | None = None
        self._stop_at: float | None = None
        self._running = False
        self._wake: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None

    # -- from any thread ----------------------------------------------------------------------------------------

    def submit(self, captions: Iterable[tuple[int, Q]]) -> None:
        """Queues the (id, normalised text) pairs that are unseen, in order: the last is the newest. Idempotent."""
        with self._guard:
            if self._ledger.submit(captions):
                self._notify()

    def stop(self, grace_s: float = 5.0) -> None:
        """Lets `run` return: nothing new is asked, answers on their way are awaited for up to `grace_s` seconds."""
        with self._guard:
            self._stop_at = self._clock() + grace_s
            self._notify()

    def state(self, caption_id: int) -> CaptionState:
        with self._guard:
            return self._ledger.state(caption_id)

    @property
    def store_error(self) -> AnnotationStoreError | None:
        """Why what is known could not be written the last time; None where it was."""
        with self._guard:
            return self._store_error

    def status(self) -> AnnotatorStatus:
        with self._guard:
            ledger, meter, now = self._ledger, self._meter, self._clock()
            mean, p95 = meter.latency()
            return AnnotatorStatus(
                judge_status=self._judge_status(now),
                last_error=self._last_error,
                seen=ledger.seen,
                queued=ledger.queued,
                in_flight=ledger.on_their_way,
                labelled=ledger.labelled,
                labelled_this_run=meter.labelled,
                failed=ledger.failed,
                dropped=ledger.dropped,
                duplicates=ledger.duplicates,
                reused=ledger.reused,
                requests=meter.requests,
                prompt_tokens=meter.prompt_tokens,
                cached_tokens=meter.cached_tokens,
                output_tokens=meter.output_tokens,
                request_failures=meter.request_failures,
                unreadable=meter.unreadable,
                late=meter.late,
                latency_mean_s=mean,
                latency_p95_s=p95,
                batch=self._batch,
                labels_per_second=meter.rate(now),
                waiting_s=meter.waiting_s,
                busy_s=meter.busy_s,
                blocked_s=meter.blocked_s,
            )

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps. A resumed run equals an uninterrupted one where this is taken between two drains."""
        with self._guard:
            self._flush()
            return self._ledger.state_dict()

    def load_state_dict(self, state: Mapping[str, Any], *, in_turn: bool = True) -> None:
        """Goes back to a checkpoint, before anything was submitted. Labels given after it are not lost: when the run
        comes to their captions again they are taken from the store, in their turn, and not asked for; where they need not
        come `in_turn` they count at once."""
        with self._guard:
            self._ledger.load_state_dict(state, in_turn=in_turn)

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
        self._begin(wake)
        flights: list[_Flight[Q]] = []
        try:
            while True:
                now = self._clock()
                self._flush()
                self._launch(flights, now, ordered)
                if self._ends(flights, ordered):
                    break
                await self._wait(flights, now, wake, ordered)
                for flight in _landed(flights, ordered):
                    self._settle(flight.request, flight.task.result(), ordered)
            if self._store_error is not None:
                raise self._store_error
        finally:
            with self._guard:
                self._wake = None
                self._running = False
                for flight in reversed(flights):  # the annotator stops before they came back
                    flight.task.cancel()
                    self._ledger.give_back(flight.request)

    def _begin(self, wake: asyncio.Event) -> None:
        with self._guard:
            if self._running:
                raise RuntimeError("the annotator is at work already: either `run` or `drain`, and one at a time")
            self._running = True
            self._wake = (asyncio.get_running_loop(), wake)
            now = self._clock()
            self._started_at = now if self._started_at is None else self._started_at
            self._meter.start(now)

    def _flush(self) -> None:
        """Writes what is known. Where that fails nothing more is asked, and the pump ends with the error once all that
        is on its way has come back: it was paid for."""
        with self._guard:
            try:
                given = self._ledger.flush()
            except AnnotationStoreError as error:
                self._store_error = error
                self._last_error = _first_line(error)
            else:
                if self._store_error is not None:
                    self._store_error = self._last_error = None
                if given:
                    self._meter.labels(self._clock(), given)

    def _launch(self, flights: list[_Flight[Q]], now: float, ordered: bool) -> None:
        """Sends what may be sent now: all that fits, or one caption to a judge that was out of order."""
        with self._guard:
            while self._stop_at is None and self._store_error is None and now >= self._breaker.retry_at:
                probing = self._breaker.is_open
                if len(flights) >= (1 if probing else self._settings.in_flight):
                    return
                allowed = self._batch if ordered else min(self._batch, self._limit.available(now))
                request = self._ledger.take(min(1, int(allowed)) if probing else int(allowed))
                if request is None:
                    return
                self._limit.spend(len(request.asked))
                flights.append(_Flight(request, asyncio.create_task(self._ask(request))))

    def _ends(self, flights: Sequence[_Flight[Q]], ordered: bool) -> bool:
        with self._guard:
            if self._stop_at is not None and (not flights or self._clock() >= self._stop_at):
                return True
            if flights:
                return False
            if self._store_error is not None:
                return True
            # Whatever could leave has left, so what waits waits for the breaker or for a larger budget.
            return ordered and (self._breaker.is_open or not self._ledger.can_take)

    async def _wait(self, flights: Sequence[_Flight[Q]], now: float, wake: asyncio.Event, ordered: bool) -> None:
        """Until a request comes back, a caption comes in, the breaker lets the next one through, or `stop`.

        `now` is the time by which `_launch` went: what becomes due after it is waited for, and not overlooked.
        """
        began = self._clock()
        with self._guard:
            queued = self._ledger.queued > 0
            paced = None if ordered or not queued else self._limit.ready_at
            times = (self._stop_at, self._breaker.retry_at if queued else None, paced)
            due = [time for time in times if time is not None and time > now]
        timeout = max(min(due) - began, 0.0) if due else None
        waker = asyncio.ensure_future(wake.wait())
        try:
            awaited = {flight.task for flight in (flights[:1] if ordered else flights)}
            await asyncio.wait({waker, *awaited}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waker.cancel()
        wake.clear()
        with self._guard:
            self._meter.spend(self._clock() - began, busy=bool(flights), blocked=queued)

    async def _ask(self, request: Request[Q]) -> _Outcome:
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
        except asyncio.CancelledError:
            return _Outcome(None, latency, "the judge gave the request up")
        except JudgeUnavailableError as error:
            return _Outcome(None, latency, _first_line(error))
        except JudgeError as error:
            return _Outcome(None, latency, _first_line(error), permanent=True)
        except Exception as error:
            # What a judge raises beyond its contract must stop annotation no more than what is within it.
            return _Outcome(None, latency, f"{type(error).__name__}: {_first_line(error)}")

    # -- settling -----------------------------------------------------------------------------------------------

    def _settle(self, request: Request[Q], outcome: _Outcome, ordered: bool) -> None:
        with self._guard:
            asked = request.asked
            if asked:
                self._meter.requests += 1
            if outcome.answers is None:
                self._failure(request, outcome, ordered)
                return
            answers = [_checked(answer, self._labels) for answer in outcome.answers]
            if len(answers) != len(asked):
                problem = f"the judge gave {len(answers)} answers to {len(asked)} captions"
                answers = [Answer(None, None, problem, outcome.latency_s)] * len(asked)
            self._ledger.answer(request, answers)
            self._flush()
            if asked:
                self._meter.answered(outcome.latency_s, outcome.answers)
                self._adapt(len(asked), outcome.latency_s, ordered)
                self._examine(asked, answers)

    def _failure(self, request: Request[Q], outcome: _Outcome, ordered: bool) -> None:
        self._meter.request_failures += 1
        self._meter.late += outcome.timed_out
        self._last_error = outcome.error
        self._refused = outcome.permanent
        probed = self._breaker.is_open
        now = self._clock()
        self._breaker.failure(now, not_before=now + _PROBE_SHARE * outcome.latency_s if ordered and probed else now)
        if outcome.timed_out:
            self._batch = max(1, self._batch // 2)
        if outcome.permanent:
            self._ledger.refuse(request, outcome.error, outcome.latency_s)
        else:
            self._ledger.give_back(request)

    def _examine(self, asked: Sequence[tuple[int, Q]], answers: Sequence[Answer]) -> None:
        """What answers that came say about the judge."""
        unreadable = [answer for answer in answers if answer.label is None]
        self._meter.unreadable += len(unreadable)
        if len(unreadable) == len(answers):
            self._breaker.unreadable(self._clock(), {caption_id for caption_id, _ in asked})
            raw = " ".join(unreadable[0].raw.split())
            self._last_error = f"the judge's answers cannot be read as labels, such as {raw[:120]!r}"
            return
        self._answered = True
        self._refused = False
        self._last_error = None if self._store_error is None else self._last_error
        self._ledger.readable(recovered=self._breaker.success())

    def _adapt(self, asked: int, latency_s: float, ordered: bool) -> None:
        """Fewer captions a request where answers are slow, more where they are quick (`drain` only grows back)."""
        target = self._settings.latency_target_s
        if not ordered and latency_s > target:
            self._batch = max(1, self._batch // 2)
        elif asked >= self._batch and (ordered or latency_s < target / 2):
            self._batch = min(self._settings.batch, self._batch * 2)

    def _judge_status(self, now: float) -> JudgeStatus:
        if self._ledger.exhausted:
            return JudgeStatus.EXHAUSTED
        if self._answered or self._refused or self._breaker.reason is JudgeStatus.UNREADABLE:
            return self._breaker.reason or (JudgeStatus.READY if self._answered else JudgeStatus.DOWN)
        waited = 0.0 if self._started_at is None else now - self._started_at
        starting = not self._breaker.is_open or waited < self._settings.start_grace_s
        return JudgeStatus.STARTING if starting else JudgeStatus.DOWN

    def _notify(self) -> None:
        if self._wake is not None:
            loop, event = self._wake
            loop.call_soon_threadsafe(event.set)


def _landed(flights: list[_Flight[Q]], ordered: bool) -> list[_Flight[Q]]:
    """Takes the flights that are back out of the list, in the order in which they left; where `ordered`, only those
    that no earlier one is still awaited before."""
    landed: list[_Flight[Q]] = []
    for flight in tuple(flights):
        if flight.task.done():
            landed.append(flight)
            flights.remove(flight)
        elif ordered:
            break
    return landed


def _checked(answer: Answer, labels: Sequence[int]) -> Answer:
    """The answer as the store may hold it: a label that is none is unreadable, a probability that is none unknown."""
    if answer.label not in labels:
        return replace(answer, label=None, probability=None)
    if answer.probability is not None and not 0.0 <= answer.probability <= 1.0:
        return replace(answer, probability=None)
    return answer


def _forget(call: asyncio.Future[list[Answer]]) -> None:
    """Takes note of a late result, so that asyncio does not complain that nobody did."""
    if not call.cancelled():
        call.exception()


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
