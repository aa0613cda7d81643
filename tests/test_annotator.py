"""The annotator under judges that are slow, hang, fail, talk nonsense, come back, and answer late."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from envs.captions import caption_id
from reward_server.annotator import Annotator
from reward_server.backlog import Backlog
from reward_server.ledger import CaptionState
from reward_server.rate_limit import RateLimit
from reward_server.reuse import labels_elsewhere
from reward_server.settings import AnnotatorSettings
from reward_server.store import AnnotationStore, AnnotationStoreError, LabelRecord
from reward_server.types import Answer, JudgeError, JudgeKey, JudgeStatus, JudgeUnavailableError

KEY = JudgeKey("v1", "default", "fake", "direct", "{}")
QUICK = AnnotatorSettings(batch=4, in_flight=2, timeout_s=0.1, backoff_s=0.0, probe_interval_s=0.02)

Behaviour = Callable[[Sequence[str]], Awaitable[list[Answer]]]


def truth(text: str) -> int:
    return caption_id(text) % 2


def right(texts: Sequence[str]) -> list[Answer]:
    return [Answer(truth(text), 0.9 if truth(text) else 0.1, "yes", 0.0) for text in texts]


class FakeJudge:
    """Answers rightly; `behaviour` may be replaced at any time."""

    def __init__(self, behaviour: Behaviour | None = None) -> None:
        self.behaviour = behaviour
        self.requests: list[tuple[str, ...]] = []
        self.at_once = 0
        self.most_at_once = 0

    @property
    def key(self) -> JudgeKey:
        return KEY

    @property
    def asked(self) -> Counter[str]:
        return Counter(text for request in self.requests for text in request)

    async def ask(self, captions: Sequence[str]) -> list[Answer]:
        self.requests.append(tuple(captions))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            return right(captions) if self.behaviour is None else await self.behaviour(captions)
        finally:
            self.at_once -= 1

    async def close(self) -> None: ...


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def store(tmp_path: Path) -> AnnotationStore:
    return AnnotationStore(tmp_path / "annotations.sqlite")


def captions(n: int, start: int = 0) -> list[tuple[int, str]]:
    return [(caption_id(f"caption {i}"), f"caption {i}") for i in range(start, start + n)]


def labels(store: AnnotationStore) -> dict[str, int]:
    return {row.text: row.label for row in store.labels_since(0, KEY)[0]}


def all_right(store: AnnotationStore, n: int) -> bool:
    return labels(store) == {text: truth(text) for _, text in captions(n)}


async def until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.002)


async def run_until(annotator: Annotator, condition: Callable[[], bool]) -> None:
    running = asyncio.ensure_future(annotator.run())
    try:
        await until(condition)
    finally:
        annotator.stop(grace_s=0.0)
        await running


# -- the order and the bound ----------------------------------------------------------------------------------------


def test_newest_first_in_batches(store: AnnotationStore) -> None:
    judge = FakeJudge()
    annotator = Annotator(judge, store, replace(QUICK, in_flight=1))
    annotator.submit(captions(10))
    asyncio.run(annotator.drain())
    newest_first = [text for _, text in reversed(captions(10))]
    assert judge.requests == [tuple(newest_first[:4]), tuple(newest_first[4:8]), tuple(newest_first[8:])]
    assert all_right(store, 10)


def test_tokens_are_counted_those_of_unreadable_answers_too(store: AnnotationStore) -> None:
    async def some(texts: Sequence[str]) -> list[Answer]:
        return [Answer(7 if "3" in t else 1, 0.5, t, 0.1, len(t), 5, 2) for t in texts]

    judge = FakeJudge(some)
    annotator = Annotator(judge, store, replace(QUICK, in_flight=1))
    annotator.submit(captions(10))
    asyncio.run(annotator.drain())
    status = annotator.status()
    assert (status.labelled, status.failed) == (9, 1)
    asked = [text for request in judge.requests for text in request]
    assert (status.prompt_tokens, status.cached_tokens, status.output_tokens) == (
        sum(map(len, asked)), 5 * len(asked), 2 * len(asked)
    )  # fmt: skip
    assert status.counters()["annotator/prompt_tokens"] == status.prompt_tokens


def test_no_more_than_in_flight_requests_at_once(store: AnnotationStore) -> None:
    async def slow(texts: Sequence[str]) -> list[Answer]:
        await asyncio.sleep(0.005)
        return right(texts)

    judge = FakeJudge(slow)
    annotator = Annotator(judge, store, replace(QUICK, in_flight=3))
    annotator.submit(captions(40))
    asyncio.run(annotator.drain())
    assert judge.most_at_once == 3
    assert all_right(store, 40)


def test_the_oldest_is_dropped_counted_and_may_come_again(store: AnnotationStore) -> None:
    judge = FakeJudge()
    annotator = Annotator(judge, store, replace(QUICK, backlog=5))
    annotator.submit(captions(8))
    assert annotator.status().dropped == 3 and annotator.status().queued == 5
    assert annotator.state(captions(1)[0][0]) is CaptionState.UNSEEN
    asyncio.run(annotator.drain())
    assert set(labels(store)) == {text for _, text in captions(5, start=3)}
    annotator.submit(captions(3))
    asyncio.run(annotator.drain())
    assert all_right(store, 8)
    assert annotator.status().seen == store.counts().captions == 8


def test_the_empty_caption_is_never_asked_about(store: AnnotationStore) -> None:
    judge = FakeJudge()
    annotator = Annotator(judge, store, QUICK)
    annotator.submit([(0, "")])
    asyncio.run(annotator.drain())
    assert not judge.requests and annotator.status().seen == 0


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["push", "oldest", "pop"]), st.integers(0, 12)), max_size=60))
def test_backlog_is_a_bounded_stack(operations: list[tuple[str, int]]) -> None:
    bound = 5
    backlog = Backlog(bound)
    model: list[int] = []  # oldest first
    for operation, number in operations:
        if operation == "pop":
            if model:
                assert backlog.newest()[0] == model[-1]
                assert backlog.pop() == (model.pop(), "text")
            continue
        dropped = backlog.push(number, "text") if operation == "push" else backlog.push_oldest(number, "text")
        expected = None
        if number not in model:
            model = [*model, number] if operation == "push" else [number, *model]
            if len(model) > bound:
                expected = (model.pop(0), "text")
        assert dropped == expected
        assert [caption for caption, _ in backlog.oldest_first()] == model
        assert len(backlog) == len(model) <= bound


# -- no caption twice -----------------------------------------------------------------------------------------------


def test_duplicates_are_asked_about_once_in_this_run_and_the_next(tmp_path: Path) -> None:
    for _ in range(2):
        judge = FakeJudge()
        with AnnotationStore(tmp_path / "s.sqlite") as store:
            annotator = Annotator(judge, store, QUICK)
            for _ in range(3):
                annotator.submit([*captions(6), *captions(6)])
                asyncio.run(annotator.drain())
            assert all_right(store, 6)
            assert annotator.status().labelled == 6 and annotator.status().seen == 6
        if annotator.status().labelled_this_run:
            assert set(judge.asked.values()) == {1}
        else:
            assert not judge.requests
    assert annotator.status().labelled_this_run == 0


def test_a_caption_submitted_while_in_flight_is_not_asked_about_again(store: AnnotationStore) -> None:
    async def main() -> None:
        release = asyncio.Event()

        async def held(texts: Sequence[str]) -> list[Answer]:
            await release.wait()
            return right(texts)

        judge = FakeJudge(held)
        annotator = Annotator(judge, store, replace(QUICK, timeout_s=5.0))
        annotator.submit(captions(4))
        running = asyncio.ensure_future(annotator.run())
        await until(lambda: len(judge.requests) == 1)
        annotator.submit(captions(4))
        assert annotator.status().in_flight == 4 and annotator.status().queued == 0
        release.set()
        await until(lambda: annotator.status().labelled == 4)
        annotator.stop()
        await running
        assert len(judge.requests) == 1

    asyncio.run(main())


def test_a_failed_caption_is_asked_about_by_a_later_run_only(tmp_path: Path) -> None:
    async def odd(texts: Sequence[str]) -> list[Answer]:
        return [replace(answer, label=None) if "3" in answer_text else answer for answer_text, answer in _zip(texts)]

    judge = FakeJudge(odd)
    with AnnotationStore(tmp_path / "s.sqlite") as store:
        annotator = Annotator(judge, store, QUICK)
        annotator.submit(captions(6))
        asyncio.run(annotator.drain())
        annotator.submit(captions(6))
        asyncio.run(annotator.drain())
        assert judge.asked["caption 3"] == QUICK.attempts
        assert annotator.status().failed == 1 and annotator.status().labelled == 5
        assert annotator.status().judge_status is JudgeStatus.READY, "one odd caption is no evidence against the judge"
        assert "caption 3" not in labels(store), "an unreadable answer is missing, never 0"
        assert store.failed_ids(KEY) == {caption_id("caption 3")}
    judge = FakeJudge()
    with AnnotationStore(tmp_path / "s.sqlite") as store:
        annotator = Annotator(judge, store, QUICK)
        annotator.submit(captions(6))
        asyncio.run(annotator.drain())
        assert judge.asked == {"caption 3": 1}
        assert all_right(store, 6) and not store.failed_ids(KEY)


def _zip(texts: Sequence[str]) -> list[tuple[str, Answer]]:
    return list(zip(texts, right(texts), strict=True))


# -- a judge in trouble ---------------------------------------------------------------------------------------------


def test_a_judge_that_is_down_loses_nothing_and_resumes(store: AnnotationStore) -> None:
    async def down(texts: Sequence[str]) -> list[Answer]:
        raise JudgeUnavailableError("connection refused by http://judge\nmore that nobody asked for")

    judge = FakeJudge()
    clock = Clock()
    annotator = Annotator(judge, store, replace(QUICK, probe_interval_s=5.0, breaker_failures=3), clock=clock)
    annotator.submit(captions(2))
    asyncio.run(annotator.drain())
    judge.behaviour = down
    judge.requests.clear()
    annotator.submit(captions(18, start=2))
    asyncio.run(annotator.drain())  # returns once the breaker has opened
    status = annotator.status()
    assert status.judge_status is JudgeStatus.DOWN
    assert status.last_error == "connection refused by http://judge"
    assert (status.queued, status.in_flight, status.failed) == (18, 0, 0)
    asked = len(judge.requests)
    assert 3 <= asked <= 4
    asyncio.run(annotator.drain())
    assert len(judge.requests) == asked, "no probe before its time"
    clock.now += 5.1
    asyncio.run(annotator.drain())
    assert judge.requests[asked:] == [("caption 19",)], "one probe, of one caption"
    judge.behaviour = None
    clock.now += 5.1
    asyncio.run(annotator.drain())
    assert annotator.status().judge_status is JudgeStatus.READY and annotator.status().last_error is None
    assert all_right(store, 20) and annotator.status().failed == 0


def test_a_judge_that_starts_is_not_called_down_before_its_time(store: AnnotationStore) -> None:
    async def starting(texts: Sequence[str]) -> list[Answer]:
        raise JudgeUnavailableError("the engine is loading")

    clock = Clock()
    annotator = Annotator(FakeJudge(starting), store, replace(QUICK, start_grace_s=60.0), clock=clock)
    assert annotator.status().judge_status is JudgeStatus.STARTING
    annotator.submit(captions(3))
    asyncio.run(annotator.drain())
    assert annotator.status().judge_status is JudgeStatus.STARTING
    clock.now += 61.0
    assert annotator.status().judge_status is JudgeStatus.DOWN


def test_a_judge_that_hangs_costs_a_deadline_and_its_late_answers_change_nothing(store: AnnotationStore) -> None:
    async def main() -> None:
        late: list[asyncio.Task[None]] = []
        wrong = 0

        async def stubborn(texts: Sequence[str]) -> list[Answer]:
            nonlocal wrong

            async def finish() -> None:
                await asyncio.sleep(0.15)

            task = asyncio.ensure_future(finish())
            late.append(task)
            while not task.done():  # heeds no cancellation
                try:
                    await asyncio.shield(task)
                except asyncio.CancelledError:
                    continue
            wrong += 1
            return [Answer(1 - truth(text), None, "late and wrong", 0.15) for text in texts]

        judge = FakeJudge(stubborn)
        annotator = Annotator(judge, store, replace(QUICK, timeout_s=0.03, breaker_failures=2))
        annotator.submit(captions(6))
        running = asyncio.ensure_future(annotator.run())
        await until(lambda: annotator.status().late >= 2)
        assert "did not answer within 0.03 s" in (annotator.status().last_error or "")
        judge.behaviour = None
        await until(lambda: annotator.status().labelled == 6)
        await until(lambda: wrong >= 2)
        await asyncio.sleep(0.02)
        annotator.stop()
        await running
        await asyncio.gather(*late)

    asyncio.run(main())
    assert all_right(store, 6)


def test_a_slow_judge_gets_smaller_requests_and_a_quick_one_larger(store: AnnotationStore) -> None:
    async def main() -> None:
        async def slow(texts: Sequence[str]) -> list[Answer]:
            await asyncio.sleep(0.002 * len(texts))
            return right(texts)

        judge = FakeJudge(slow)
        annotator = Annotator(judge, store, AnnotatorSettings(batch=32, in_flight=1, latency_target_s=0.02))
        annotator.submit(captions(300))
        running = asyncio.ensure_future(annotator.run())
        await until(lambda: annotator.status().labelled > 150)
        slow_batch = annotator.status().batch
        judge.behaviour = None
        await until(lambda: annotator.status().labelled == 300)
        annotator.stop()
        await running
        assert slow_batch <= 8 < annotator.status().batch
        assert len(judge.requests[0]) == 32

    asyncio.run(main())


def test_a_flaky_judge_labels_everything_once(store: AnnotationStore) -> None:
    async def main() -> None:
        import random

        dice = random.Random(1)

        async def flaky(texts: Sequence[str]) -> list[Answer]:
            await asyncio.sleep(0)
            match dice.randrange(10):
                case 0:
                    raise JudgeUnavailableError("503")
                case 1:
                    await asyncio.sleep(10.0)
                case 2:
                    raise ConnectionResetError("peer went away")
                case _:
                    pass
            return right(texts)

        judge = FakeJudge(flaky)
        annotator = Annotator(judge, store, replace(QUICK, timeout_s=0.02, probe_interval_s=0.01))
        annotator.submit(captions(120))
        await run_until(annotator, lambda: annotator.status().labelled == 120)
        status = annotator.status()
        assert status.failed == 0 and status.queued == 0 and status.in_flight == 0
        assert status.request_failures > 0 and status.late > 0

    asyncio.run(main())
    assert all_right(store, 120)
    assert store.cursor(KEY) == 120


def test_nonsense_is_noticed_and_what_failed_by_it_gets_a_second_chance(store: AnnotationStore) -> None:
    async def nonsense(texts: Sequence[str]) -> list[Answer]:
        return [Answer(None, None, "I think\ntherefore", 0.0) for _ in texts]

    judge = FakeJudge(nonsense)
    clock = Clock()
    annotator = Annotator(judge, store, replace(QUICK, attempts=1, probe_interval_s=5.0), clock=clock)
    annotator.submit(captions(20))
    asyncio.run(annotator.drain())
    status = annotator.status()
    assert status.judge_status is JudgeStatus.UNREADABLE
    assert status.last_error == "the judge's answers cannot be read as labels, such as 'I think therefore'"
    assert labels(store) == {}
    assert status.failed == 16 and status.queued == 4, "3 or 4 requests were enough to see it"
    judge.behaviour = None
    clock.now += 5.1
    asyncio.run(annotator.drain())
    assert annotator.status().judge_status is JudgeStatus.READY
    assert all_right(store, 20) and annotator.status().failed == 0 and not store.failed_ids(KEY)


def test_a_wrong_number_of_answers_is_unreadable_not_shifted(store: AnnotationStore) -> None:
    async def short(texts: Sequence[str]) -> list[Answer]:
        return right(texts)[:-1] if len(texts) > 1 else right(texts)

    annotator = Annotator(FakeJudge(short), store, replace(QUICK, attempts=2, breaker_failures=100))
    annotator.submit(captions(4))
    asyncio.run(annotator.drain())
    assert labels(store) == {} and annotator.status().failed == 4
    assert annotator.status().unreadable == 8


def test_labels_and_probabilities_out_of_range_are_not_believed(store: AnnotationStore) -> None:
    async def odd(texts: Sequence[str]) -> list[Answer]:
        by_text = {
            "caption 0": Answer(2, 0.5, "2", 0.0),
            "caption 1": Answer(1, float("nan"), "1", 0.0),
            "caption 2": Answer(0, 1.5, "0", 0.0),
        }
        return [by_text[text] for text in texts]

    annotator = Annotator(FakeJudge(odd), store, QUICK)
    annotator.submit(captions(3))
    asyncio.run(annotator.drain())
    rows = {row.text: (row.label, row.probability) for row in store.labels_since(0, KEY)[0]}
    assert rows == {"caption 1": (1, None), "caption 2": (0, None)}


def test_a_caption_that_the_judge_refuses_does_not_take_others_with_it(store: AnnotationStore) -> None:
    async def picky(texts: Sequence[str]) -> list[Answer]:
        if "caption 3" in texts:
            raise JudgeError("400: prompt too long")
        return right(texts)

    judge = FakeJudge(picky)
    annotator = Annotator(judge, store, replace(QUICK, probe_interval_s=0.0))
    annotator.submit(captions(12))
    asyncio.run(annotator.drain())
    for _ in range(20):  # probes are due at once
        asyncio.run(annotator.drain())
    assert set(labels(store)) == {text for _, text in captions(12)} - {"caption 3"}
    assert annotator.state(caption_id("caption 3")) is CaptionState.FAILED


def test_a_judge_that_refuses_everything_is_down(store: AnnotationStore) -> None:
    async def refused(texts: Sequence[str]) -> list[Answer]:
        raise JudgeError("401: the API key is not valid")

    annotator = Annotator(FakeJudge(refused), store, replace(QUICK, probe_interval_s=60.0))
    annotator.submit(captions(12))
    asyncio.run(annotator.drain())
    status = annotator.status()
    assert status.judge_status is JudgeStatus.DOWN and status.last_error == "401: the API key is not valid"
    assert status.queued + status.failed == 12


# -- the budget -----------------------------------------------------------------------------------------------------


def test_the_budget_is_exact_and_counts_earlier_runs(tmp_path: Path) -> None:
    limited = replace(QUICK, max_labels=7, batch=4, in_flight=4)
    for expected in (7, 0):
        judge = FakeJudge()
        with AnnotationStore(tmp_path / "s.sqlite") as store:
            annotator = Annotator(judge, store, limited)
            annotator.submit(captions(20))
            asyncio.run(annotator.drain())
            assert sum(judge.asked.values()) == expected
            assert store.counts(KEY).labelled == 7
            assert annotator.status().judge_status is JudgeStatus.EXHAUSTED
            assert annotator.status().queued == 20 - (7 if expected else 7 - _among(store, 7))


def _among(store: AnnotationStore, n: int) -> int:
    """Labelled captions are not queued at all in the second run."""
    return n - len(labels(store))


@settings(max_examples=40, deadline=None)
@example(["garbage"] * 3, [[0, 3, 4], [1, 2]], None, 3, 3)  # a caption with a second chance falls out of the backlog
@given(
    script=st.lists(st.sampled_from(["ok", "ok", "ok", "down", "garbage", "half", "short"]), max_size=25),
    submissions=st.lists(st.lists(st.integers(0, 25), max_size=12), min_size=1, max_size=6),
    budget=st.one_of(st.none(), st.integers(0, 15)),
    backlog=st.integers(3, 30),
    batch=st.integers(1, 6),
)
def test_whatever_the_judge_does_the_books_balance(
    tmp_path_factory: pytest.TempPathFactory,
    script: list[str],
    submissions: list[list[int]],
    budget: int | None,
    backlog: int,
    batch: int,
) -> None:
    plan = iter(script)

    async def scripted(texts: Sequence[str]) -> list[Answer]:
        match next(plan, "ok"):
            case "down":
                raise JudgeUnavailableError("down")
            case "garbage":
                return [Answer(None, None, "?", 0.0) for _ in texts]
            case "half":
                return [replace(a, label=a.label if i % 2 else None) for i, a in enumerate(right(texts))]
            case "short":
                return right(texts)[1:]
            case _:
                return right(texts)

    judge = FakeJudge(scripted)
    clock = Clock()
    with AnnotationStore(tmp_path_factory.mktemp("books") / "s.sqlite") as store:
        chosen = replace(QUICK, max_labels=budget, backlog=backlog, batch=batch, probe_interval_s=1.0)
        annotator = Annotator(judge, store, chosen, clock=clock)
        met: set[str] = set()
        for numbers in submissions:
            met |= {f"caption {i}" for i in numbers}
            annotator.submit([captions(1, i)[0] for i in numbers])
            asyncio.run(annotator.drain())
            clock.now += 1.5
            status, counts = annotator.status(), store.counts(KEY)
            assert status.in_flight == 0
            assert status.queued <= backlog
            assert (status.labelled, status.failed) == (counts.labelled, counts.failed)
            assert counts.captions == status.seen == len(met)
            if budget is not None:
                assert counts.labelled <= budget
        given = labels(store)
        assert given == {text: truth(text) for text in given}, "no answer is booked on another caption"
        states = Counter(annotator.state(caption_id(text)) for text in met)
        assert states[CaptionState.LABELLED] == len(given)
        assert states[CaptionState.QUEUED] == annotator.status().queued
        assert annotator.status().labelled_this_run == store.cursor(KEY) - _failures_written(store)


def _failures_written(store: AnnotationStore) -> int:
    """Rows that were written and were no label: the numbers of rows only grow, by one each."""
    rows, _ = store.labels_since(0, KEY)
    return store.cursor(KEY) - len(rows)


# -- stopping, threads, the store -----------------------------------------------------------------------------------


def test_run_takes_captions_from_other_threads_and_stops(store: AnnotationStore) -> None:
    judge = FakeJudge()
    annotator = Annotator(judge, store, QUICK)
    thread = threading.Thread(target=lambda: asyncio.run(annotator.run()))
    thread.start()
    for start in range(0, 100, 10):
        annotator.submit(captions(10, start))
        time.sleep(0.001)
    deadline = time.monotonic() + 5
    while annotator.status().labelled < 100 and time.monotonic() < deadline:
        time.sleep(0.002)
    annotator.stop()
    thread.join(timeout=5)
    assert not thread.is_alive()
    assert all_right(store, 100) and set(judge.asked.values()) == {1}
    assert annotator.status().waiting_s > 0.0


def test_stop_waits_for_answers_that_are_on_their_way(store: AnnotationStore) -> None:
    async def main() -> None:
        async def slow(texts: Sequence[str]) -> list[Answer]:
            await asyncio.sleep(0.05)
            return right(texts)

        annotator = Annotator(FakeJudge(slow), store, replace(QUICK, timeout_s=5.0))
        annotator.submit(captions(20))
        running = asyncio.ensure_future(annotator.run())
        await until(lambda: annotator.status().in_flight == 8)
        annotator.stop(grace_s=2.0)
        await running
        assert annotator.status().labelled == 8 and annotator.status().queued == 12

    asyncio.run(main())


def test_stop_gives_up_after_its_grace_and_nothing_is_lost(store: AnnotationStore) -> None:
    async def main() -> None:
        async def never(texts: Sequence[str]) -> list[Answer]:
            await asyncio.sleep(100.0)
            return []

        annotator = Annotator(FakeJudge(never), store, replace(QUICK, timeout_s=100.0))
        annotator.submit(captions(20))
        running = asyncio.ensure_future(annotator.run())
        await until(lambda: annotator.status().in_flight == 8)
        annotator.stop(grace_s=0.02)
        await asyncio.wait_for(running, 2.0)
        assert annotator.status().in_flight == 0 and annotator.status().queued == 20

    asyncio.run(main())


def test_run_and_drain_exclude_each_other(store: AnnotationStore) -> None:
    async def main() -> None:
        annotator = Annotator(FakeJudge(), store, QUICK)
        running = asyncio.ensure_future(annotator.run())
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="at work already"):
            await annotator.drain()
        annotator.stop()
        await running

    asyncio.run(main())


def test_a_full_disk_is_found_before_anything_is_asked(store: AnnotationStore) -> None:
    judge = FakeJudge()
    annotator = Annotator(judge, store, QUICK)
    _fill_disk(store)
    annotator.submit(captions(500))
    with pytest.raises(AnnotationStoreError, match="full; free space"):
        asyncio.run(annotator.drain())
    assert not judge.requests


@pytest.mark.parametrize("host", ["drain", "run"])
def test_answers_that_a_full_disk_refused_are_written_when_there_is_room(store: AnnotationStore, host: str) -> None:
    async def filling(texts: Sequence[str]) -> list[Answer]:
        _fill_disk(store)
        return right(texts)

    judge = FakeJudge(filling)
    annotator = Annotator(judge, store, replace(QUICK, batch=128, in_flight=4))
    annotator.submit(captions(500))
    with pytest.raises(AnnotationStoreError, match="full; free space"):
        asyncio.run(annotator.drain() if host == "drain" else annotator.run())
    assert "full" in (annotator.status().last_error or "")
    status = annotator.status()
    assert status.labelled == store.counts(KEY).labelled < sum(judge.asked.values())
    assert status.labelled + status.in_flight + status.queued == 500
    judge.behaviour = None
    store._db.execute("PRAGMA max_page_count = 1000000")
    asyncio.run(annotator.drain())
    assert all_right(store, 500) and annotator.status().last_error is None
    assert set(judge.asked.values()) == {1}, "what was paid for is not asked again"


def _fill_disk(store: AnnotationStore) -> None:
    """SQLite's own SQLITE_FULL: no page more than there are."""
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count = {pages}")


# -- the serial runtime ---------------------------------------------------------------------------------------------


def _play(annotator: Annotator, first: int, last: int) -> None:
    """A run in rounds: each submits seven captions, four of them old, and drains."""
    for number in range(first, last):
        annotator.submit(captions(7, start=3 * number))
        asyncio.run(annotator.drain())


def _jittery(seed: int) -> FakeJudge:
    """Answers after times that differ from run to run; some captions cannot be read at first."""
    import random

    dice = random.Random(seed)
    tried: Counter[str] = Counter()

    async def jitter(texts: Sequence[str]) -> list[Answer]:
        await asyncio.sleep(dice.random() * 0.004)
        tried.update(texts)
        return [replace(a, label=None) if caption_id(t) % 5 == 0 and tried[t] < 2 else a for t, a in _zip(texts)]

    return FakeJudge(jitter)


def _order(store: AnnotationStore) -> list[tuple[str, int]]:
    return [(row.text, row.label) for row in store.labels_since(0, KEY)[0]]


def test_the_order_of_labels_does_not_depend_on_the_judges_speed(tmp_path: Path) -> None:
    orders: list[list[tuple[str, int]]] = []
    for seed in (1, 2):
        with AnnotationStore(tmp_path / f"{seed}.sqlite") as store:
            _play(Annotator(_jittery(seed), store, replace(QUICK, batch=2, in_flight=3, timeout_s=5.0)), 0, 10)
            orders.append(_order(store))
    assert orders[0] == orders[1] and len(orders[0]) == 34


@pytest.mark.parametrize("budget", [None, 23])
def test_a_run_that_was_killed_after_its_checkpoint_resumes_to_the_same_order(
    tmp_path: Path, budget: int | None
) -> None:
    chosen = replace(QUICK, batch=2, in_flight=3, timeout_s=5.0, max_labels=budget)
    with AnnotationStore(tmp_path / "whole.sqlite") as store:
        _play(Annotator(_jittery(1), store, chosen), 0, 12)
        whole = _order(store)
    with AnnotationStore(tmp_path / "cut.sqlite") as store:
        annotator = Annotator(_jittery(1), store, chosen)
        _play(annotator, 0, 4)
        checkpoint = annotator.state_dict()
        _play(annotator, 4, 9)  # all this is lost but for the labels in the store
        paid = store.counts(KEY).labelled
    judge = _jittery(1)
    with AnnotationStore(tmp_path / "cut.sqlite") as store:
        annotator = Annotator(judge, store, chosen)
        annotator.load_state_dict(checkpoint)
        assert annotator.status().labelled == checkpoint["cursor"] < paid
        _play(annotator, 4, 12)
        assert _order(store) == whole
        readable = [text for text in judge.asked if text in dict(whole)]
        assert len(readable) == len(whole) - paid, "no label is paid for twice"
        assert annotator.status().seen == 40


def test_labels_given_after_a_checkpoint_count_at_once_where_no_order_is_asked_for(tmp_path: Path) -> None:
    with AnnotationStore(tmp_path / "s.sqlite") as store:
        annotator = Annotator(FakeJudge(), store, QUICK)
        annotator.submit(captions(10))
        asyncio.run(annotator.drain())
        checkpoint = annotator.state_dict()
        annotator.submit(captions(20, start=10))
        asyncio.run(annotator.drain())
    judge = FakeJudge()
    with AnnotationStore(tmp_path / "s.sqlite") as store:
        annotator = Annotator(judge, store, QUICK)
        annotator.load_state_dict(checkpoint, in_turn=False)
        assert annotator.status().labelled == 30
        annotator.submit(captions(31))
        asyncio.run(annotator.drain())
        assert judge.asked == {captions(1, start=30)[0][1]: 1}
        assert all_right(store, 31) and annotator.status().labelled == 31


def test_captions_in_flight_at_a_checkpoint_wait_after_it(tmp_path: Path) -> None:
    async def main() -> dict[str, object]:
        async def never(texts: Sequence[str]) -> list[Answer]:
            await asyncio.sleep(100.0)
            return []

        with AnnotationStore(tmp_path / "s.sqlite") as store:
            annotator = Annotator(FakeJudge(never), store, replace(QUICK, timeout_s=100.0))
            annotator.submit(captions(20))
            running = asyncio.ensure_future(annotator.run())
            await until(lambda: annotator.status().in_flight == 8)
            state = annotator.state_dict()
            annotator.stop(grace_s=0.0)
            await running
            return state

    state = asyncio.run(main())
    assert state["backlog"] == captions(20)
    with AnnotationStore(tmp_path / "s.sqlite") as store:
        annotator = Annotator(FakeJudge(), store, QUICK)
        annotator.load_state_dict(state)
        asyncio.run(annotator.drain())
        assert all_right(store, 20)


def test_a_caption_dropped_before_its_checkpoint_is_labelled_after_it(tmp_path: Path) -> None:
    with AnnotationStore(tmp_path / "s.sqlite") as store:
        annotator = Annotator(FakeJudge(), store, replace(QUICK, backlog=2))
        annotator.submit(captions(5))
        state = annotator.state_dict()  # and killed, before it asked about anything
        assert store.counts().captions == 5
    with AnnotationStore(tmp_path / "s.sqlite") as store:
        annotator = Annotator(FakeJudge(), store, QUICK)
        annotator.load_state_dict(state)
        annotator.submit(captions(5))
        asyncio.run(annotator.drain())
        assert all_right(store, 5) and annotator.status().seen == 5


def test_a_resumed_annotator_refuses_to_go_back_once_begun(store: AnnotationStore) -> None:
    annotator = Annotator(FakeJudge(), store, QUICK)
    state = annotator.state_dict()
    annotator.submit(captions(1))
    with pytest.raises(RuntimeError, match="submitted already"):
        annotator.load_state_dict(state)


# -- rate, labels of other runs, a change of mind -----------------------------------------------------------------------


def test_no_more_captions_a_second_than_allowed(store: AnnotationStore) -> None:
    """20 a second, the first 20 at once: 40 take at least the second that 20 more need."""
    judge = FakeJudge()
    annotator = Annotator(judge, store, replace(QUICK, max_labels_per_s=20.0))
    annotator.submit(captions(40))
    began = time.monotonic()
    asyncio.run(run_until(annotator, lambda: len(labels(store)) == 40))
    assert time.monotonic() - began >= 0.95
    assert all_right(store, 40) and max(judge.asked.values()) == 1


@settings(max_examples=50, deadline=None)
@given(st.floats(0.1, 50.0), st.lists(st.floats(0.0, 2.0), min_size=1, max_size=60))
def test_a_rate_limit_is_never_exceeded_over_any_span(per_s: float, waits: list[float]) -> None:
    limit, now, spent = RateLimit(per_s), 0.0, 0
    for wait in waits:
        now += wait
        due = limit.ready_at
        allowed = int(limit.available(now))
        assert (allowed >= 1) == (now >= due - 1e-6) or abs(now - due) < 1e-6
        limit.spend(allowed)
        spent += allowed
        assert spent <= max(1.0, per_s) + per_s * now + 1e-6
    assert RateLimit(None).available(0.0) == float("inf") and RateLimit(None).ready_at == 0.0


def test_labels_of_other_runs_are_taken_and_count_for_the_budget(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    with AnnotationStore(folder / "old" / "annotations.sqlite") as old:
        annotator = Annotator(FakeJudge(), old, QUICK)
        annotator.submit(captions(6))
        asyncio.run(annotator.drain())
        other = replace(KEY, prompt_version="v0")
        old.write(other, [LabelRecord(captions(1, start=9)[0][0], Answer(1, None, "", 0.0))], captions(1, start=9))
    judge = FakeJudge()
    with AnnotationStore(folder / "new" / "annotations.sqlite") as new:
        known = labels_elsewhere(folder, KEY, new.path)
        assert set(known) == {caption for caption, _ in captions(6)}, "labels under another key are no labels"
        annotator = Annotator(judge, new, replace(QUICK, max_labels=8), reuse=known)
        annotator.submit(captions(12))
        annotator.submit(captions(3))
        asyncio.run(annotator.drain())
        status = annotator.status()
        # The newest six are asked about; two labels of the budget are left for the old ones.
        assert (status.labelled_this_run, status.reused, status.labelled, status.duplicates) == (6, 2, 8, 3)
        assert status.judge_status == "exhausted"
        assert set(judge.asked) == {text for _, text in captions(6, start=6)}
        assert labels(new) == {text: truth(text) for _, text in captions(8, start=4)}
        assert annotator.status().counters()["annotator/reused"] == 2
    with pytest.raises(AnnotationStoreError, match=r"annotator.reuse=.*nowhere: no such file or folder"):
        labels_elsewhere(tmp_path / "nowhere", KEY, tmp_path / "own")
    (folder / "old" / "annotations.sqlite").write_bytes(b"no store at all" * 400)
    with pytest.raises(AnnotationStoreError, match="its run makes it anew from its copy"):
        labels_elsewhere(folder, KEY, folder / "new" / "annotations.sqlite")


def test_a_judge_that_changes_its_mind_is_not_heard_twice(tmp_path: Path) -> None:
    """Whatever it would say now, the label stands that was paid for first: in this run, and in the next."""
    path = tmp_path / "annotations.sqlite"

    async def contrary(texts: Sequence[str]) -> list[Answer]:
        return [replace(answer, label=1 - (answer.label or 0)) for answer in right(texts)]

    with AnnotationStore(path) as store:
        first = Annotator(FakeJudge(), store, QUICK)
        first.submit(captions(8))
        asyncio.run(first.drain())
    with AnnotationStore(path) as store:
        judge = FakeJudge(contrary)
        second = Annotator(judge, store, QUICK)
        second.submit(captions(10))
        asyncio.run(second.drain())
        assert set(judge.asked) == {text for _, text in captions(2, start=8)}
        found = labels(store)
        assert all(found[text] == truth(text) for _, text in captions(8))
        assert all(found[text] == 1 - truth(text) for _, text in captions(2, start=8))
