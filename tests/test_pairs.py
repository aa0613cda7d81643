"""Pairs of captions from the reservoir to the ranking: chosen, asked about once, kept, resumed."""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.captions import caption_id
from reward_server.distiller import Distiller
from reward_server.judge.engines.base import Chat, Completion, Request
from reward_server.judge.judge import PromptedJudge, answer, judge_key, judge_prompt, parse
from reward_server.judge.pairs import PointwiseJudge, compare
from reward_server.judge.prompts import FORM, PromptTemplate, quote, read_goals
from reward_server.pairs import PairSource
from reward_server.server import RewardServer
from reward_server.settings import AnnotatorSettings, DistillerSettings, JudgeSettings
from reward_server.store import AnnotationStore, LabelRecord
from reward_server.types import Answer, JudgeError, JudgeKey, Pair, pair_id

KEY = JudgeKey("ranking", "default", "fake", "direct", "{}")
OTHER = JudgeKey("pointwise:v1", "default", "fake", "direct", "{}")
TEXTS = [f"You see {n} zorkmids." for n in range(40)]
CAPTIONS = [(caption_id(text), text) for text in TEXTS]


def worth(text: str) -> int:
    return int(text.split()[2])


class FakeJudge:
    """Prefers more zorkmids; those of the same ten tie."""

    def __init__(self) -> None:
        self.asked: list[Pair] = []

    @property
    def key(self) -> JudgeKey:
        return KEY

    async def ask(self, captions: Sequence[Pair]) -> list[Answer]:
        self.asked += captions
        ranks = [(worth(pair.first) // 10, worth(pair.second) // 10) for pair in captions]
        return [Answer(0 if a == b else 1 if a > b else 2, 0.5 if a == b else float(a > b), "", 0.0) for a, b in ranks]

    async def close(self) -> None:
        pass


# -- pairs ----------------------------------------------------------------------------------------------------------


@given(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**63), 2**63 - 1))
def test_a_pair_is_the_same_from_either_side(a: int, b: int) -> None:
    assert Pair.of((a, "a"), (b, "b")) == Pair.of((b, "b"), (a, "a")) or a == b
    assert pair_id(a, b) == pair_id(b, a) == Pair.of((a, "a"), (b, "b")).id
    assert -(2**63) <= pair_id(a, b) < 2**63


def test_either_order_of_presentation_comes_equally_often() -> None:
    ordered = [Pair.of(a, b).first_id == min(a[0], b[0]) for i, a in enumerate(CAPTIONS) for b in CAPTIONS[:i]]
    assert np.mean(ordered) == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(len(ordered)))


def test_the_store_keeps_pairs_once_under_a_key(tmp_path: Path) -> None:
    pair, other = Pair.of(CAPTIONS[0], CAPTIONS[1]), Pair.of(CAPTIONS[2], CAPTIONS[1])
    path = tmp_path / "annotations.sqlite"
    with AnnotationStore(path) as store:
        table = store.pairs
        assert table.write(KEY, [LabelRecord(pair.id, Answer(None, None, "?", 0.1))], [(pair.id, pair)]) == 1
        assert table.failed_ids(KEY) == {pair.id}
        assert table.write(KEY, [LabelRecord(pair.id, Answer(2, 0.25, "2", 0.1), 3)]) == 1  # a failure gives way
        assert table.write(KEY, [LabelRecord(pair.id, Answer(1, 0.75, "1", 0.1))]) == 0  # a label to nothing
        assert table.write(OTHER, [LabelRecord(pair.id, Answer(0, None, "0", 0.1))], [(other.id, other)]) == 1
        assert store.counts(KEY).labelled == 0 and store.labels_since(0, KEY) == ([], 0)  # captions are apart
    with AnnotationStore(path) as store:
        labels, cursor = store.pairs.labels_since(0, KEY)
        (row,) = labels
        assert (row.first, row.second, row.label, row.probability) == (pair.first, pair.second, 2, 0.25)
        assert (row.pair_id, row.first_id, row.second_id) == (pair.id, pair.first_id, pair.second_id)
        assert store.pairs.labels_since(cursor, KEY) == ([], cursor)
        assert store.pairs.labelled_ids(OTHER) == {pair.id} and store.pairs.counts() == (2, 0)
        assert store.pairs.set_aside(KEY, 0) == 1
        assert store.pairs.labelled_ids(KEY) == set()
        assert store.pairs.aside(KEY)[pair.id].answer == Answer(2, 0.25, "2", 0.1)


def test_a_store_of_an_earlier_version_gets_its_tables_of_pairs(tmp_path: Path) -> None:
    path = tmp_path / "annotations.sqlite"
    with AnnotationStore(path) as store:
        store.write(KEY, [LabelRecord(CAPTIONS[0][0], Answer(1, None, "", 0.0))], CAPTIONS[:1])
        store.query("DROP TABLE pair_labels", ())
        store.query("DROP TABLE pairs", ())
    with AnnotationStore(path, read_only=True) as store:
        assert store.pairs.counts() == (0, 0) and store.counts().labelled == 1
    with AnnotationStore(path) as store:
        pair = Pair.of(CAPTIONS[0], CAPTIONS[1])
        assert store.pairs.write(KEY, [LabelRecord(pair.id, Answer(1, None, "", 0.0))], [(pair.id, pair)]) == 1


# -- which pairs ----------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 30), st.floats(0.5, 40), st.sampled_from(["uniform", "informative"]), st.integers(2, 40))
def test_no_pair_is_drawn_twice_and_no_more_than_are_due(n: int, per: float, choice: str, size: int) -> None:
    chosen = AnnotatorSettings(pair_choice=choice, pairs_per_caption=per, pair_reservoir=size)
    source = PairSource(chosen, seed=1)
    source.observe(CAPTIONS[:n])
    source.observe(CAPTIONS[:n])
    drawn: list[int] = []
    while found := source.draw(7):
        assert len(found) <= 7
        drawn += [number for number, _ in found]
    held = min(n, size)
    assert len(drawn) == len(set(drawn)) == min(int(per * n), held * (held - 1) // 2)


def test_every_caption_is_as_likely_to_be_in_the_reservoir() -> None:
    held = np.zeros(len(CAPTIONS))
    for seed in range(400):
        source = PairSource(AnnotatorSettings(pair_reservoir=10), seed=seed)
        source.observe(CAPTIONS)
        ids = set(source.state_dict()["ids"])
        assert len(ids) == 10
        held += [number in ids for number, _ in CAPTIONS]
    assert held / 400 == pytest.approx(np.full(len(CAPTIONS), 0.25), abs=4.5 * math.sqrt(0.25 * 0.75 / 400))


@pytest.mark.parametrize("choice", ["uniform", "informative"])
def test_a_resumed_source_draws_what_it_would_have_drawn(choice: str) -> None:
    chosen = AnnotatorSettings(pair_choice=choice, pair_reservoir=20)
    whole, resumed = PairSource(chosen, seed=3), PairSource(chosen, seed=8)
    whole.observe(CAPTIONS[:30])
    whole.draw(20)
    resumed.load_state_dict(whole.state_dict())
    for source in (whole, resumed):
        source.observe(CAPTIONS[25:])
    assert whole.draw(40) == resumed.draw(40)


def test_informative_pairs_have_the_highest_gain() -> None:
    """Of four captions with known scores and nothing asked yet, the closest two are compared first."""
    source = PairSource(AnnotatorSettings(pair_choice="informative"), seed=0)
    source.observe(CAPTIONS[:4])
    scores = {TEXTS[0]: -4.0, TEXTS[1]: 0.0, TEXTS[2]: 0.1, TEXTS[3]: 5.0}
    order = [
        frozenset((p.first, p.second)) for _, p in source.draw(6, lambda texts: np.array([scores[t] for t in texts]))
    ]
    information = dict.fromkeys(TEXTS[:4], 0.0)
    for pair in order:  # greedy, recomputed with plain Python

        def gain(a: str, b: str) -> float:
            p = 1 / (1 + math.exp(scores[b] - scores[a]))
            return p * (1 - p) * (1 / (1 + information[a]) + 1 / (1 + information[b]))

        left = [frozenset((a, b)) for i, a in enumerate(TEXTS[:4]) for b in TEXTS[:i]]
        best = max((s for s in left if s not in order[: order.index(pair)]), key=lambda s: gain(*sorted(s)))
        assert pair == best
        a, b = sorted(pair)
        p = 1 / (1 + math.exp(scores[b] - scores[a]))
        information[a] += p * (1 - p)
        information[b] += p * (1 - p)
    assert order[0] == {TEXTS[1], TEXTS[2]}


# -- through annotator, store and distiller -------------------------------------------------------------------------


def server(path: Path, judge: FakeJudge, *, budget: int | None = None, seed: int = 0) -> RewardServer:
    store = AnnotationStore(path)
    chosen = AnnotatorSettings(batch=16, in_flight=2, pairs_per_caption=6, max_labels=budget)
    fit = DistillerSettings(batch_size=32, steps_per_update=4, patience=4)
    distiller = Distiller(store.pairs, judge.key, fit, model="ranking", seed=seed)
    return RewardServer(judge, store, chosen, distiller, seed=seed, pairs=PairSource(chosen, seed=seed))


def test_captions_become_a_ranking_and_no_pair_is_asked_about_twice(tmp_path: Path) -> None:
    judge = FakeJudge()
    path = tmp_path / "annotations.sqlite"

    async def run(steps: int) -> tuple[int, float | None, list[float]]:
        reward = server(path, judge)
        reward.submit(CAPTIONS[::2])
        for _ in range(steps):
            await reward.step()
        status = reward.status()
        newest = reward.newest(0)
        assert newest is not None
        from reward_server.models.ranking import RankingModel

        model = RankingModel(DistillerSettings())
        newest.load_into(model)
        await reward.close()
        return status.annotator.labelled, status.accuracy, model.score([TEXTS[i] for i in (4, 34)]).tolist()

    labelled, accuracy, (low, high) = asyncio.run(run(4))
    assert labelled == len(judge.asked) == 6 * 20
    assert accuracy is not None and accuracy > 0.7
    assert high > 0.3 and high > low
    asyncio.run(run(1))  # another run on the same file
    assert len({pair.id for pair in judge.asked}) == len(judge.asked)


def test_a_resumed_server_equals_one_that_was_not_and_pays_for_nothing_twice(tmp_path: Path) -> None:
    async def run(path: Path, stops: bool) -> tuple[list[Pair], list[bytes]]:
        judge = FakeJudge()
        reward = server(path, judge)
        reward.submit(CAPTIONS[:25])
        await reward.step()
        if stops:
            torch.save(reward.state_dict(), path.with_suffix(".pt"))
            await reward.step()  # after the checkpoint: these labels are in the store, and come again
            await reward.close()
            reward = server(path, judge, seed=5)
            reward.load_state_dict(torch.load(path.with_suffix(".pt"), weights_only=True))
        versions: list[bytes] = []
        for _ in range(2):
            version = await reward.step()
            assert version is not None
            versions.append(version.state)
        await reward.close()
        return judge.asked, versions

    asked, whole = asyncio.run(run(tmp_path / "a.sqlite", stops=False))
    again, resumed = asyncio.run(run(tmp_path / "b.sqlite", stops=True))
    assert whole == resumed
    assert asked == again


def test_the_budget_is_one_of_pairs(tmp_path: Path) -> None:
    judge = FakeJudge()

    async def run() -> None:
        reward = server(tmp_path / "annotations.sqlite", judge, budget=21)
        reward.submit(CAPTIONS)
        for _ in range(4):
            await reward.step()
        assert reward.status().annotator.judge_status == "exhausted"
        await reward.close()

    asyncio.run(run())
    assert len(judge.asked) == 21


# -- prompts and judges ---------------------------------------------------------------------------------------------


class Engine:
    """Answers every chat with the same completion, and keeps the chats."""

    def __init__(self, text: str, probabilities: dict[str, float] | None) -> None:
        self.text, self.probabilities = text, probabilities
        self.chats: list[Chat] = []
        self.requests: list[Request] = []

    async def start(self) -> None: ...

    async def complete(self, chats: Sequence[Chat], request: Request) -> list[Completion]:
        self.chats += chats
        self.requests.append(request)
        return [Completion(self.text, self.probabilities, 0.5) for _ in chats]

    async def check(self) -> None: ...

    async def close(self) -> None: ...


@pytest.mark.parametrize("mode", ["direct", "reasoned"])
def test_a_pairwise_judge_shows_both_captions_and_keeps_the_preference(mode: str) -> None:
    chosen = JudgeSettings(model="org/model", pairs="pairwise", mode=mode)
    engine = Engine("2", {"0": 0.2, "1": 0.3, "2": 0.5})
    judge = PromptedJudge(engine, judge_prompt(chosen, pairs=True), judge_key(chosen, pairs=True))
    pair = Pair.of((1, "You see {second}."), (2, "The door opens."))
    (found,) = asyncio.run(judge.ask([pair]))
    assert found.label == 2 and found.probability == pytest.approx(0.3 + 0.2 / 2)
    last = engine.chats[0][1].content
    assert last.endswith(f"Message 1:\n{quote(pair.first)}\nMessage 2:\n{quote(pair.second)}")
    assert engine.requests[-1] == Request(1, ("0", "1", "2"), 0.0)
    assert len(engine.requests) == (2 if mode == "reasoned" else 1)


def test_answers_about_pairs_are_read() -> None:
    labels = PromptTemplate.load("ranking-1").labels
    assert labels == ("0", "1", "2")
    assert [parse(text, labels) for text in ("0", "1", " 2.", "Message 2", "1 or 2", "None", "3")] == [
        0, 1, 2, 2, None, None, None,
    ]  # fmt: skip
    assert answer(Completion("1", None, 0.0), labels).probability is None


@given(st.floats(0, 1), st.floats(0, 1))
def test_a_pointwise_preference_is_that_of_independent_judgements(p: float, q: float) -> None:
    found = compare(Answer(int(p > 0.5), p, "", 0.0), Answer(int(q > 0.5), q, "", 0.0))
    ways = {1: p * (1 - q), 2: (1 - p) * q, 0: p * q + (1 - p) * (1 - q)}
    assert sum(ways.values()) == pytest.approx(1.0)
    assert found.probability == pytest.approx(ways[1] + ways[0] / 2)
    assert found.label is not None and ways[found.label] == pytest.approx(max(ways.values()))


def test_a_pointwise_judge_asks_about_each_caption_once() -> None:
    class Single:
        asked: list[str] = []  # noqa: RUF012

        @property
        def key(self) -> JudgeKey:
            return JudgeKey("classification", "default", "m", "direct", "{}")

        async def ask(self, captions: Sequence[str]) -> list[Answer]:
            self.asked += captions
            await asyncio.sleep(0.01)
            return [Answer(None if "9" in c else int("3" in c), None, "", 0.0, 100, 90, 1) for c in captions]

        async def close(self) -> None: ...

    judge = PointwiseJudge(Single())
    paid: list[Answer] = []
    pairs = [Pair(1, 2, "3", "1"), Pair(1, 3, "1", "3"), Pair(1, 4, "3", "13"), Pair(1, 5, "3", "9")]
    for _ in range(2):
        paid += asyncio.run(judge.ask(pairs))
        assert [a.label for a in paid[-4:]] == [1, 2, 0, None]
    # As many tokens as were read and written, in however many pairs a caption comes.
    assert [sum(a.prompt_tokens for a in paid), sum(a.cached_tokens for a in paid)] == [500, 450]
    assert sum(a.output_tokens for a in paid) == 5
    assert sorted(Single.asked) == ["1", "13", "3", "9", "9"]  # what could not be read is asked about again

    async def at_once() -> None:
        await asyncio.gather(judge.ask([Pair(1, 2, "33", "34")]), judge.ask([Pair(1, 3, "33", "35")]))

    asyncio.run(at_once())
    assert sorted(Single.asked[5:]) == ["33", "34", "35"]
    assert judge.key.prompt_version == "pointwise:classification"


def test_no_two_ways_of_asking_share_labels(tmp_path: Path) -> None:
    own = tmp_path / "goals.yaml"
    own.write_text("mine: to find the amulet.\ngold: to leave gold alone.\n")
    base = JudgeSettings(model="org/model")
    ways = [
        (base, False),
        (base, True),
        (replace(base, pairs="pointwise"), True),
        *[(replace(base, goal=goal), pairs) for goal in ("zero_knowledge", "combat", "gold", "stairs") for pairs in (0, 1)],
        (replace(base, goal="mine", goals_file=str(own)), False),
        (replace(base, goal="gold", goals_file=str(own)), False),
        (replace(base, mode="reasoned"), True),
    ]  # fmt: skip
    keys = [judge_key(chosen, pairs=bool(pairs)) for chosen, pairs in ways]
    assert len(set(keys)) == len(keys)
    own.write_text("mine: to find the amulet!\n")
    assert judge_key(ways[-3][0]) not in keys  # the text changed, the name did not
    assert judge_key(base).prompt_version == f"{PromptTemplate.load().version}/{FORM}"


def test_goals_of_ones_own_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "goals.yaml"
    for text, part in (("- a", "must map"), ("a: [b]", "must be text"), ("a: b: c", "not YAML"), ("", "must map")):
        path.write_text(text)
        with pytest.raises(JudgeError, match=part):
            read_goals(path)
    with pytest.raises(JudgeError, match="cannot be read"):
        read_goals(tmp_path / "absent.yaml")
