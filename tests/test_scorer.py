"""The caption scorer: one evaluation a caption and version, everything else looked up."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from envs.captions import EMPTY_CAPTION_ID, caption_id
from reward_server.models import Evaluation, RewardModel, RewardModelMetrics
from reward_server.models.base import RewardModelVersion
from reward_server.scorer import CaptionScorer

METRICS = RewardModelMetrics(labels=0, positives=0, steps=0, converged=False, train=None, holdout=None, fresh=None)


class Lengths(RewardModel):
    """r = 1 where a caption has more characters than the one parameter says; notes what it is asked."""

    name = "lengths"

    def __init__(self) -> None:
        self.limit = 0.0
        self.calls: list[list[str]] = []

    def evaluate(self, captions: Sequence[str]) -> Evaluation:
        self.calls.append(list(captions))
        sizes = np.array([len(c) for c in captions], dtype=np.float32)
        return Evaluation((sizes > self.limit).astype(np.float32), sizes / 100)

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"limit": torch.tensor([self.limit])}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        self.limit = float(state["limit"])


def version(number: int, limit: float) -> RewardModelVersion:
    return RewardModelVersion(number, "lengths", save({"limit": torch.tensor([limit])}), METRICS, 0.0)


def ids(*texts: str) -> np.ndarray:
    return np.array([caption_id(text) for text in texts], dtype=np.int64)


def pairs(*texts: str) -> list[tuple[int, str]]:
    return [(caption_id(text), text) for text in texts]


def test_nothing_is_rewarded_before_the_first_version() -> None:
    model = Lengths()
    scorer = CaptionScorer(model)
    scorer.observe(pairs("abc"))
    assert scorer.lookup(ids("abc", "")).tolist() == [0.0, 0.0]
    assert scorer.version == 0 and scorer.top(3).liked == () and not model.calls


def test_lookup_keeps_shape_and_rewards_the_known() -> None:
    scorer = CaptionScorer(Lengths())
    scorer.observe(pairs("a", "abcd"))
    scorer.update(version(1, 2.0))
    batch = ids("a", "abcd", "", "unknown", "abcd", "a").reshape(3, 2)
    found = scorer.lookup(batch)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, [[0, 1], [0, 0], [1, 0]])
    assert scorer.lookup(np.zeros((0, 4), dtype=np.int64)).shape == (0, 4)
    scorer.count(batch)
    scorer.count(batch)
    assert scorer.unknown == 2
    scorer.observe(pairs("unknown"))
    np.testing.assert_array_equal(scorer.lookup(batch)[1], [0, 1])
    scorer.count(batch)
    assert scorer.unknown == 2


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.lists(st.integers(0, 30), max_size=20).map(lambda x: ("lookup", x)),
            st.lists(st.integers(0, 30), max_size=20).map(lambda x: ("observe", x)),
            st.integers(0, 4).map(lambda x: ("update", [x])),
            st.just(("top", [3])),
        ),
        max_size=25,
    )
)
def test_each_caption_is_scored_once_a_version(operations: list[tuple[str, list[int]]]) -> None:
    model = Lengths()
    scorer = CaptionScorer(model)
    known: set[str] = set()
    limit = 0
    for operation, numbers in operations:
        texts = ["x" * number for number in numbers]
        match operation:
            case "lookup":
                expected = [float(scorer.version > 0 and t in known and len(t) > limit) for t in texts]
                assert scorer.lookup(ids(*texts)).tolist() == expected
            case "observe":
                scorer.observe(pairs(*texts))
                known |= {text for text in texts if text}
            case "top":
                assert len(scorer.top(3).liked) == (min(3, len(known)) if scorer.version else 0)
            case _:
                limit = numbers[0] * 7
                scorer.update(version(scorer.version + 1, float(limit)))
                model.calls.clear()
        evaluated = Counter(text for call in model.calls for text in call)
        assert not evaluated or max(evaluated.values()) == 1
    assert scorer.captions == len(known)


def test_unseen_captions_are_scored_in_one_batch() -> None:
    model = Lengths()
    scorer = CaptionScorer(model)
    texts = ["x" * n for n in range(1, 1001)]
    scorer.observe(pairs(*texts))
    scorer.update(version(1, 500.0))
    assert scorer.lookup(ids(*texts)).sum() == 500
    scorer.lookup(ids(*texts))
    assert [len(call) for call in model.calls] == [1000] and scorer.evaluated == 1000
    scorer.update(version(1, 0.0))  # the same version again is no news
    assert scorer.lookup(ids(*texts)).sum() == 500
    scorer.update(version(2, 900.0))
    assert scorer.lookup(ids(*texts[:950])).sum() == 50 and scorer.evaluated == 1950


def test_versions_only_go_forward_and_fit_their_model() -> None:
    scorer = CaptionScorer(Lengths())
    scorer.update(version(2, 0.0))
    with pytest.raises(ValueError, match="version 1 of the reward model came after version 2"):
        scorer.update(version(1, 0.0))
    other = RewardModelVersion(3, "ranking", b"", METRICS, 0.0)
    with pytest.raises(ValueError, match="'ranking' cannot be loaded into 'lengths'"):
        scorer.update(other)


def test_top_orders_by_probability_then_by_frequency_and_sums_what_was_earned() -> None:
    scorer = CaptionScorer(Lengths())
    scorer.observe(pairs("aa", "bb", "cccc", "d"))
    scorer.update(version(1, 3.0))
    scorer.count(ids("aa", "cccc", "cccc", "bb", "bb", ""))
    scorer.update(version(2, 1.0))
    scorer.count(ids("aa", "cccc"))
    top = scorer.top(3)
    assert [(c.text, c.count, c.reward_sum) for c in top.liked] == [("cccc", 3, 3.0), ("aa", 2, 1.0), ("bb", 2, 0.0)]
    assert [c.text for c in top.disliked] == ["d", "aa", "bb"]
    assert top.liked[0].reward == 1.0 and top.liked[0].probability == pytest.approx(0.04)


def test_a_resumed_scorer_rewards_and_counts_as_before() -> None:
    scorer = CaptionScorer(Lengths())
    scorer.observe(pairs("aa", "bbbb"))
    scorer.update(version(4, 3.0))
    scorer.count(ids("aa", "bbbb", "nowhere"))
    resumed = CaptionScorer(Lengths())
    resumed.load_state_dict(scorer.state_dict())
    assert resumed.version == 4 and resumed.unknown == 1 and resumed.captions == 2
    assert resumed.lookup(ids("aa", "bbbb")).tolist() == [0.0, 1.0]
    assert resumed.top(2) == scorer.top(2)
    resumed.observe(pairs("cccccc"))
    assert resumed.lookup(ids("cccccc", "")).tolist() == [1.0, 0.0]
    assert EMPTY_CAPTION_ID not in resumed.state_dict()["ids"]


def test_over_its_capacity_a_scorer_forgets_what_came_last_longest_ago_until_it_is_told_again() -> None:
    scorer = CaptionScorer(Lengths(), capacity=8)
    scorer.update(version(1, 2.0))
    scorer.observe(pairs("aaa", "bbb", "ccc", "dd"))
    scorer.observe(pairs("eee", "fff", "ggg", "hhh"))
    scorer.count(ids("aaa", "dd"))
    assert scorer.captions == 8
    scorer.observe(pairs("iii"))  # one too many: room for an eighth is made as well
    assert scorer.captions == 7
    scorer.count(ids("aaa", "bbb", "ccc", "dd", "eee", "iii", ""))
    assert scorer.lookup(ids("aaa", "bbb", "ccc", "dd", "eee", "iii")).tolist() == [1, 0, 0, 0, 1, 1]
    assert scorer.unknown == 2
    scorer.observe(pairs("bbb"))
    assert scorer.lookup(ids("bbb")).tolist() == [1] and scorer.captions == 8
    top = {caption.text: (caption.count, caption.reward_sum) for caption in scorer.top(8).liked}
    assert top["aaa"] == (2, 2.0) and top["dd"] == (2, 0.0) and top["bbb"] == (0, 0.0)
    assert scorer.texts(ids("iii", "aaa", "dd").tolist()) == ["iii", "aaa", "dd"]


def test_a_caption_that_is_told_again_is_no_old_one() -> None:
    """Also where others that are told of with it are too many."""
    scorer = CaptionScorer(Lengths(), capacity=8)
    scorer.update(version(1, 2.0))
    for text in ("aaa", "bbb", "ccc", "ddd", "eee", "fff", "ggg", "hhh"):
        scorer.observe(pairs(text))
    scorer.observe(pairs("aaa", "iii"))
    assert scorer.lookup(ids("aaa", "bbb", "ccc", "iii")).tolist() == [1, 0, 0, 1]
    assert scorer.knows(ids("aaa", "bbb", "")).tolist() == [True, False, False]


def test_of_a_checkpoint_that_does_not_say_when_captions_came_the_rarest_go_first() -> None:
    whole = CaptionScorer(Lengths(), capacity=8)
    whole.observe(pairs("aaa", "bbb", "ccc", "ddd", "eee", "fff", "ggg", "hhh"))
    for _ in range(3):
        whole.count(ids("aaa", "ccc", "ddd", "eee", "fff", "ggg"))
    state = {name: value for name, value in whole.state_dict().items() if name not in ("came", "calls")}
    resumed = CaptionScorer(Lengths(), capacity=8)
    resumed.load_state_dict(state)
    resumed.observe(pairs("iii"))
    assert resumed.state_dict()["texts"] == ["aaa", "ccc", "ddd", "eee", "fff", "ggg", "iii"]


def test_a_scorer_forgets_the_same_after_a_checkpoint() -> None:
    whole = CaptionScorer(Lengths(), capacity=8)
    whole.update(version(1, 2.0))
    for text in ("aaa", "bbb", "ccc", "ddd", "eee", "fff", "ggg"):
        whole.observe(pairs(text))
    whole.count(ids("aaa", "ccc"))
    resumed = CaptionScorer(Lengths(), capacity=8)
    resumed.load_state_dict(whole.state_dict())
    for scorer in (whole, resumed):
        scorer.observe(pairs("hhh", "iii", "jjj"))
        scorer.count(ids("hhh"))
    assert whole.state_dict() == resumed.state_dict()
    assert whole.state_dict()["texts"] == ["aaa", "ccc", "fff", "ggg", "hhh", "iii", "jjj"]
