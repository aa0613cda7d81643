"""What is told of captions, and what is remembered of it: a bound everywhere, and nothing that stays unknown."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from agents.telling import CaptionTeller
from envs.captions import EMPTY_CAPTION_ID, caption_id
from orchestration.recent_captions import RecentCaptions
from reward_server.models.known import KnownLabels
from reward_server.scorer import CaptionScorer
from tests.test_scorer import Lengths


def test_a_caption_is_told_of_once_and_again_after_many_others() -> None:
    teller = CaptionTeller(remembered=3)
    for text in ("a", "b", "a", "", "c", "a"):
        assert teller.number(text) == (caption_id(text) if text else EMPTY_CAPTION_ID)
    assert teller.take_new() == tuple((caption_id(text), text) for text in "abc") and teller.take_new() == ()
    teller.number("d")  # the fourth: "a", told of first, is forgotten, though it came since
    assert teller.told == ["b", "c", "d"]
    teller.number("a")
    assert teller.take_new() == ((caption_id("d"), "d"), (caption_id("a"), "a"))


def test_a_teller_goes_on_where_another_was() -> None:
    teller, other = CaptionTeller(remembered=3), CaptionTeller(remembered=3)
    for text in "abcd":
        teller.number(text)
    teller.take_new()
    other.remember(teller.told)
    for one in (teller, other):
        for text in "bae":
            one.number(text)
    assert teller.take_new() == other.take_new() == tuple((caption_id(text), text) for text in "ae")
    assert teller.told == other.told == ["d", "a", "e"]


@given(st.lists(st.text("abcdef", min_size=1, max_size=1)), st.integers(1, 7))
def test_whoever_forgets_all_at_any_moment_knows_what_came_before_long(said: list[str], remembered: int) -> None:
    """Among so many new captions as are remembered, each that comes is told of at least once."""
    teller, told = CaptionTeller(remembered), list[str]()
    for text in said:
        teller.number(text)
        told += [text for _, text in teller.take_new()]
        assert len(teller.told) <= remembered
        assert text in told[-remembered:]


def test_a_checkpoint_of_all_that_was_ever_told_is_cut_to_what_is_remembered() -> None:
    teller = CaptionTeller(remembered=3)
    teller.remember(["", "a", "b", "c", "d"])
    assert teller.told == ["b", "c", "d"]
    teller.number("a")
    assert teller.told == ["c", "d", "a"] and teller.take_new() == ((caption_id("a"), "a"),)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 60)), max_size=400))
def test_no_caption_stays_unknown_to_the_learner_whoever_remembers_more(said: list[tuple[int, int]]) -> None:
    """Three actors that remember more than the learner knows, and one of which may say much while another says nothing."""
    tellers = [CaptionTeller(remembered=16) for _ in range(3)]
    scorer = CaptionScorer(Lengths(), capacity=8)
    for actor, number in said:
        text = f"caption {number}"
        for first in (True, False):
            caption = np.array([tellers[actor].number(text)], dtype=np.int64)
            scorer.observe(tellers[actor].take_new())
            unknown = scorer.count(caption)
            tellers[actor].tell_again(unknown)
            assert unknown == () or (first and unknown == (caption[0],))
        assert scorer.captions <= 8


def test_the_captions_told_of_last_are_kept() -> None:
    recent = RecentCaptions(kept=3)
    recent.add([(1, "a"), (2, "b"), (3, "c"), (1, "a"), (4, "d")])
    assert recent.oldest_first() == [(3, "c"), (1, "a"), (4, "d")]


@given(
    st.lists(st.one_of(st.tuples(st.integers(-4, 4), st.floats(0, 1, width=32)), st.none())),
    st.lists(st.integers(-6, 6)),
)
def test_known_labels_are_a_dictionary(calls: list[tuple[int, float] | None], asked: list[int]) -> None:
    """`None` asks in between."""
    labels, truth = KnownLabels(), dict[int, float]()
    for call in [*calls, None]:
        if call is not None:
            labels.add(*call)
            truth[call[0]] = call[1]
            continue
        found = labels.lookup(np.array(asked, dtype=np.int64))
        np.testing.assert_array_equal(found, np.array([truth.get(i, np.nan) for i in asked], dtype=np.float32))
        ids, values = labels.arrays()
        assert ids.tolist() == sorted(truth) and values.tolist() == [truth[i] for i in sorted(truth)]
        assert len(labels) == len(truth)
    again = KnownLabels()
    again.add(99, 0.5)
    again.replace(np.array(list(truth), dtype=np.int64), np.array(list(truth.values()), dtype=np.float32))
    assert [x.tolist() for x in again.arrays()] == [x.tolist() for x in labels.arrays()]
