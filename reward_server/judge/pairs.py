"""Which of two captions is better: asked of the model directly, or derived from what it says of each alone."""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace

from reward_server.judge.models import EMBEDDED
from reward_server.settings import JudgeSettings
from reward_server.types import Answer, Judge, JudgeKey, Pair

_REMEMBERED = 65_536
"""Captions whose answers are kept: a caption comes in many pairs and is asked about once."""


def asks_pairwise(settings: JudgeSettings) -> bool:
    """Whether pairs are put to the model as pairs. The embedded judge was taught the question about one caption alone."""
    return settings.pairs == "pairwise" or (settings.pairs == "auto" and settings.model != EMBEDDED)


def pointwise_key(key: JudgeKey) -> JudgeKey:
    """The key of labels of pairs that come from a judge of single captions with `key`."""
    return replace(key, prompt_version=f"pointwise:{key.prompt_version}")


class PointwiseJudge:
    """Compares captions by what a judge says of each of them. It never sees two captions side by side.

    With p and q the probabilities that the first and the second caption are helpful, taken as independent: the first is
    better with p (1 - q), the second with (1 - p) q, otherwise neither. So the preference for the first, ties as one
    half, is (1 + p - q) / 2, and two captions that the judge calls alike tie. Such pairs hold no more than the labels of
    their captions do: the ranking learnt from them is one of the judge's confidence.
    """

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._answers: OrderedDict[str, Answer] = OrderedDict()
        self._asking: dict[str, asyncio.Task[dict[str, Answer]]] = {}
        """Captions that a request under way asks about; others that need them wait for it."""

    @property
    def key(self) -> JudgeKey:
        return pointwise_key(self._judge.key)

    async def ask(self, captions: Sequence[Pair]) -> list[Answer]:
        """One answer a pair; an unreadable one where the answer about either caption is unreadable."""
        texts = list(dict.fromkeys(text for pair in captions for text in (pair.first, pair.second)))
        known = {text: self._answers[text] for text in texts if text in self._answers}
        new = [text for text in texts if text not in known and text not in self._asking]
        if new:
            task = asyncio.ensure_future(self._ask(new))
            self._asking.update(dict.fromkeys(new, task))
            task.add_done_callback(lambda _: self._forget(new))  # also where it is cancelled before it began
        for task in {self._asking[text] for text in texts if text in self._asking}:
            known.update(await task)
        answers = [compare(known[pair.first], known[pair.second]) for pair in captions]
        return [*_with_tokens(answers[:1], [known[text] for text in new]), *answers[1:]]

    async def close(self) -> None:
        await self._judge.close()

    async def _ask(self, texts: list[str]) -> dict[str, Answer]:
        """Asks about captions; what can be read is remembered."""
        answers = dict(zip(texts, await self._judge.ask(texts), strict=True))
        self._answers.update((text, answer) for text, answer in answers.items() if answer.label is not None)
        while len(self._answers) > _REMEMBERED:
            self._answers.popitem(last=False)
        return answers

    def _forget(self, texts: list[str]) -> None:
        for text in texts:
            self._asking.pop(text, None)


def _with_tokens(answers: Sequence[Answer], asked: Sequence[Answer]) -> list[Answer]:
    """`answers` with the tokens of what was asked for them: a caption comes in many pairs, and is paid for once."""
    read, cached = sum(a.prompt_tokens for a in asked), sum(a.cached_tokens for a in asked)
    written = sum(a.output_tokens for a in asked)
    return [replace(a, prompt_tokens=read, cached_tokens=cached, output_tokens=written) for a in answers]


def compare(first: Answer, second: Answer) -> Answer:
    """The answer about a pair that two answers about single captions amount to."""
    raw = f"{first.raw} | {second.raw}"
    latency = max(first.latency_s, second.latency_s)
    if first.label is None or second.label is None:
        return Answer(None, None, raw, latency)
    p = float(first.label) if first.probability is None else first.probability
    q = float(second.label) if second.probability is None else second.probability
    odds = {0: p * q + (1.0 - p) * (1.0 - q), 1: p * (1.0 - q), 2: (1.0 - p) * q}
    return Answer(max(odds, key=lambda label: odds[label]), (1.0 + p - q) / 2.0, raw, latency)
