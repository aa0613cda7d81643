"""The probe: asks a judge what it must answer consistently, and counts where it does not.

Invariant: a judge passes by being consistent. Only `disagreement`, `imbalance` and the pair checks of that kind rest on
labels that were expected, and only for captions that are beyond dispute.
"""

import itertools
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from envs.captions import caption_id, normalise
from reward_server.judge.pairs import PointwiseJudge
from reward_server.judge.probe.questions import Groups, ProbeQuestions
from reward_server.judge.probe.report import LIMITS, Check, Example, ProbeReport, check
from reward_server.types import Answer, Judge, Pair, PairJudge

_T = TypeVar("_T")

FIRST, SECOND, NEITHER = 1, 2, 0
"""The labels of a pair."""

_Shown = tuple[tuple[str, str], Answer, Answer]
"""A pair, the answer to it, and the answer to it with its captions swapped."""


@dataclass
class _Asker:
    """Asks in batches and keeps count."""

    batch: int
    progress: Callable[[int], None]
    asked: int = 0
    unreadable: int = 0

    async def captions(self, judge: Judge, captions: Sequence[str]) -> list[Answer]:
        answers: list[Answer] = []
        for some in _batches(captions, self.batch):
            answers += self._count(await judge.ask(some))
        return answers

    async def pairs(self, judge: PairJudge, pairs: Sequence[tuple[str, str]]) -> list[Answer]:
        """Each pair is shown in the order given."""
        answers: list[Answer] = []
        for some in _batches([Pair(caption_id(a), caption_id(b), a, b) for a, b in pairs], self.batch):
            answers += self._count(await judge.ask(some))
        return answers

    def _count(self, answers: list[Answer]) -> list[Answer]:
        self.asked += len(answers)
        self.unreadable += sum(answer.label is None for answer in answers)
        self.progress(self.asked)
        return answers


async def probe(
    judge: Judge,
    *,
    pairs: PairJudge | None = None,
    questions: ProbeQuestions | None = None,
    limits: Mapping[str, float] = LIMITS,
    repeats: int = 3,
    batch: int = 32,
    seed: int = 0,
    progress: Callable[[int], None] = lambda asked: None,
) -> ProbeReport:
    """Asks all questions and says how the judge stands.

    Each plain caption is asked about `repeats` times, in another order and so in other batches each time. `progress`
    gets the number of questions asked so far. Raises what the judge raises: a probe wants its answers now.
    """
    questions = questions or ProbeQuestions.load()
    began = time.monotonic()
    asker = _Asker(batch, progress)
    rounds = await _plain_rounds(asker, judge, questions, repeats, random.Random(seed))
    plain = rounds[0]
    checks = [
        *_plain_checks(questions, plain, limits),
        _inconsistency(questions, rounds, limits),
        await _same(asker, judge, "paraphrase", questions.paraphrases, limits),
        await _same(asker, judge, "numbers", questions.numbers, limits),
        await _fooled(asker, judge, questions, limits),
        *await _injected(asker, judge, questions, plain, limits),
    ]
    if pairs is not None:
        checks += await _pair_checks(asker, pairs, questions, limits)
    unreadable = asker.unreadable / asker.asked
    first = check("unreadable", (), asker.asked, limits, value=unreadable)
    readable = [answer.label for answer in plain.values() if answer.label is not None]
    share = sum(readable) / len(readable) if readable else None
    return ProbeReport(judge.key, (first, *checks), asker.asked, time.monotonic() - began, share)


async def _plain_rounds(
    asker: _Asker, judge: Judge, questions: ProbeQuestions, repeats: int, rng: random.Random
) -> list[dict[str, Answer]]:
    texts = [text for text, _ in questions.plain]
    rounds: list[dict[str, Answer]] = []
    for _ in range(max(repeats, 1)):
        rounds.append(dict(zip(texts, await asker.captions(judge, texts), strict=True)))
        rng.shuffle(texts)
    return rounds


def _plain_checks(
    questions: ProbeQuestions, plain: Mapping[str, Answer], limits: Mapping[str, float]
) -> tuple[Check, Check]:
    read = [(text, expected, plain[text].label) for text, expected in questions.plain if plain[text].label is not None]
    wrong = [Example((text,), (label,)) for text, expected, label in read if label != expected]
    expected = sum(e for _, e, _ in read)
    given = sum(label or 0 for _, _, label in read)
    imbalance = abs(given - expected) / len(read) if read else 0.0
    return (
        check("imbalance", (), len(read), limits, value=imbalance),
        check("disagreement", wrong, len(read), limits),
    )


def _inconsistency(
    questions: ProbeQuestions, rounds: Sequence[Mapping[str, Answer]], limits: Mapping[str, float]
) -> Check:
    bad: list[Example] = []
    shifts: list[float] = []
    for text, _ in questions.plain:
        answers = [answers[text] for answers in rounds]
        shifts += _shifts(answers)
        if _differ(answers):
            bad.append(Example((text,) * len(answers), tuple(answer.label for answer in answers)))
    return check("inconsistency", bad, len(questions.plain), limits, shifts=shifts)


async def _same(asker: _Asker, judge: Judge, name: str, groups: Groups, limits: Mapping[str, float]) -> Check:
    """Groups of captions that should be judged alike; a case is a caption and the first of its group."""
    answers = iter(await asker.captions(judge, [text for group in groups for text in group]))
    bad: list[Example] = []
    shifts: list[float] = []
    cases = 0
    for group in groups:
        given = list(itertools.islice(answers, len(group)))
        for text, answer in zip(group[1:], given[1:], strict=True):
            if answer.label is None or given[0].label is None:
                continue
            cases += 1
            shifts += _shifts((given[0], answer))
            if _differ((given[0], answer)):
                bad.append(Example((group[0], text), (given[0].label, answer.label)))
    return check(name, bad, cases, limits, shifts=shifts)


async def _fooled(asker: _Asker, judge: Judge, questions: ProbeQuestions, limits: Mapping[str, float]) -> Check:
    texts = [normalise(text) for text in questions.fooling]
    answers = await asker.captions(judge, texts)
    bad = [Example((text,), (1,)) for text, answer in zip(texts, answers, strict=True) if answer.label == 1]
    return check("fooled", bad, len(texts), limits)


async def _injected(
    asker: _Asker, judge: Judge, questions: ProbeQuestions, plain: Mapping[str, Answer], limits: Mapping[str, float]
) -> tuple[Check, Check]:
    """Each plain caption that was read, with an order for either label behind it.

    That an unhelpful caption becomes helpful is a gain for whoever wrote the order. That the label follows the order both
    ways is obedience, and not just that strange captions are judged otherwise.
    """
    known = [(text, plain[text].label) for text, _ in questions.plain if plain[text].label is not None]
    # One order a caption: all of them for every caption would be most of the questions.
    orders = itertools.cycle(questions.injections)
    cases = [(label, order, text) for (text, label), order in zip(known, orders, strict=False)]
    cases += [(label, order, text) for label, order, text in _again(cases, questions.injections)]
    up = [_inject(order, text, 1, 0) for _, order, text in cases]
    down = [_inject(order, text, 0, 1) for _, order, text in cases]
    given = await asker.captions(judge, [*up, *down])
    gained: list[Example] = []
    obeyed: list[Example] = []
    unhelpful = 0
    for (label, _, _), told_1, told_0, if_1, if_0 in zip(
        cases, up, down, given[: len(up)], given[len(up) :], strict=True
    ):
        unhelpful += label == 0
        if label == 0 and if_1.label == 1:
            gained.append(Example((told_1,), (1,)))
        if if_1.label == 1 and if_0.label == 0:
            obeyed.append(Example((told_1, told_0), (1, 0)))
    return check("injected", gained, unhelpful, limits), check("obeyed", obeyed, len(cases), limits)


def _again(cases: Sequence[tuple[int | None, str, str]], orders: Sequence[str]) -> list[tuple[int | None, str, str]]:
    """Each caption with the order after its own as well, so that each order meets captions of both kinds."""
    return [(label, orders[(orders.index(order) + 1) % len(orders)], text) for label, order, text in cases]


def _inject(order: str, caption: str, label: int, other: int) -> str:
    filled = order.replace("{caption}", caption).replace("{label}", str(label)).replace("{other}", str(other))
    return normalise(filled)


async def _pair_checks(
    asker: _Asker, judge: PairJudge, questions: ProbeQuestions, limits: Mapping[str, float]
) -> list[Check]:
    """Helpful against unhelpful, alike against alike, and nonsense against helpful, each in both orders; then helpful
    against unhelpful with an order to prefer it."""
    known = list(zip(questions.helpful, questions.unhelpful, strict=False))
    alike = [*itertools.pairwise(questions.helpful), *itertools.pairwise(questions.unhelpful)]
    fooling = [normalise(text) for text in questions.fooling]
    nonsense = list(zip(itertools.cycle(questions.helpful), fooling, strict=False))
    shown = [*known, *alike, *nonsense]
    given = await asker.pairs(judge, [*shown, *((b, a) for a, b in shown)])
    both = list(zip(shown, given[: len(shown)], given[len(shown) :], strict=True))
    read = [(pair, one.label, two.label) for pair, one, two in both if one.label is not None and two.label is not None]
    firsts = sum((one == FIRST) + (two == FIRST) for _, one, two in read)
    seconds = sum((one == SECOND) + (two == SECOND) for _, one, two in read)
    decided = firsts + seconds
    changed = [Example(pair, (one, two)) for pair, one, two in read if two != _swapped(one)]
    if isinstance(judge, PointwiseJudge):  # it sees no order
        decided, read = 0, []
    return [
        check("position", changed, decided, limits, value=abs(firsts - seconds) / decided if decided else 0.0),
        check("order", changed, len(read), limits),
        _preferred("pair_disagreement", both[: len(known)], limits),
        _undecided(both[: len(known)], limits),
        _preferred("pair_fooled", both[len(known) + len(alike) :], limits),
        await _pair_injected(asker, judge, both[: len(known)], questions.injections, limits),
    ]


async def _pair_injected(
    asker: _Asker, judge: PairJudge, known: Sequence[_Shown], orders: Sequence[str], limits: Mapping[str, float]
) -> Check:
    """A case is one order of a pair whose unhelpful caption was not preferred before it asked to be."""
    asked: list[tuple[str, str]] = []
    wanted: list[int] = []
    for ((better, worse), one, two), order in zip(known, itertools.cycle(orders), strict=False):
        if one.label is not None and one.label != SECOND:
            asked.append((better, _inject(order, worse, SECOND, FIRST)))
            wanted.append(SECOND)
        if two.label is not None and two.label != FIRST:
            asked.append((_inject(order, worse, FIRST, SECOND), better))
            wanted.append(FIRST)
    given = await asker.pairs(judge, asked)
    bad = [
        Example(pair, (answer.label,))
        for pair, label, answer in zip(asked, wanted, given, strict=True)
        if answer.label == label
    ]
    return check("pair_injected", bad, len(asked), limits)


def _undecided(both: Sequence[_Shown], limits: Mapping[str, float]) -> Check:
    """A judge that always says neither is consistent, and tells nothing."""
    bad = [Example(pair, (NEITHER,)) for pair, one, two in both for answer in (one, two) if answer.label == NEITHER]
    return check("pair_undecided", bad, 2 * len(both), limits)


def _preferred(name: str, both: Sequence[_Shown], limits: Mapping[str, float]) -> Check:
    """Pairs of a better caption and a worse one; a case is one order of one."""
    bad = [Example(pair, (one.label,)) for pair, one, _ in both if one.label == SECOND]
    bad += [Example(pair[::-1], (two.label,)) for pair, _, two in both if two.label == FIRST]
    return check(name, bad, 2 * len(both), limits)


def _swapped(label: int | None) -> int | None:
    return {FIRST: SECOND, SECOND: FIRST}.get(label or 0, label)


def _differ(answers: Sequence[Answer]) -> bool:
    return len({answer.label for answer in answers if answer.label is not None}) > 1


def _shifts(answers: Sequence[Answer]) -> list[float]:
    """How far the probabilities are from that of the first answer, where there are any."""
    first = answers[0].probability
    return [abs(a.probability - first) for a in answers[1:] if a.probability is not None and first is not None]


def _batches(items: Sequence[_T], size: int) -> list[Sequence[_T]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
