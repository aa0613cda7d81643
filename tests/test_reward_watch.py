"""The reward hacking watch on synthetic streams: what it flags, and what it leaves alone."""

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.returns import sums_by_id
from orchestration.reward_watch import WINDOW_EPISODES, RewardWatch, gini
from orchestration.summary import RewardWatchReport

KEY, DOOR = "You see here a key.", "You close the door."


def stream(
    watch: RewardWatch,
    episodes: int,
    success: float | None,
    earns: dict[str, float],
    seed: int = 0,
    extrinsic: float = 0.0,
) -> None:
    """Episodes that succeed with a probability (None: a task without success), each earning so much from captions."""
    rng = np.random.default_rng(seed)
    for _ in range(episodes):
        watch.earned(earns.items())
        watch.ended(None if success is None else bool(rng.random() < success), extrinsic + float(rng.normal()))


def test_a_caption_that_earns_more_while_success_stays_is_flagged() -> None:
    watch = RewardWatch()
    stream(watch, 20 * WINDOW_EPISODES, 0.3, {KEY: 0.5, DOOR: 0.1})
    assert watch.report().flags == () or watch.report().flags[0].reasons == ("concentrated",)
    stream(watch, 10 * WINDOW_EPISODES, 0.3, {KEY: 0.5, DOOR: 0.9}, seed=1)
    report = watch.report()
    (flag,) = [flag for flag in report.flags if "grows" in flag.reasons]
    assert report.stagnant and flag.text == DOOR and flag.goal == "success"
    assert flag.earned_now > 0.8 > flag.earned_before
    assert flag.share == pytest.approx(flag.earned_now / (flag.earned_now + 0.5))
    assert flag.goal_now == pytest.approx(0.3, abs=0.06)


@pytest.mark.parametrize("late", [0.6, 1.0])
def test_growth_that_success_goes_with_and_a_task_that_is_learnt_are_not(late: float) -> None:
    watch = RewardWatch()
    stream(watch, 8 * WINDOW_EPISODES, 0.3, {KEY: 0.2})
    stream(watch, 2 * WINDOW_EPISODES, late, {KEY: 0.9}, seed=1)
    assert watch.report().flags == () and watch.report().top_share == 1.0
    if late == 1.0:  # it stays learnt, and earns more and more
        for n in range(8):
            stream(watch, 2 * WINDOW_EPISODES, late, {KEY: 1.0 + n})
            assert watch.report().flags == ()


def test_rewards_from_one_caption_are_concentrated() -> None:
    watch = RewardWatch()
    stream(watch, 8 * WINDOW_EPISODES, 0.1, {DOOR: 3.0, KEY: 1.0})
    report = watch.report()
    assert [(flag.text, flag.reasons) for flag in report.flags] == [(DOOR, ("concentrated",))]
    assert report.top_share == pytest.approx(0.75) and report.top5_share == pytest.approx(1.0)
    assert report.gini == pytest.approx(0.25)
    even = RewardWatch()
    stream(even, 8 * WINDOW_EPISODES, 0.1, {f"caption {n}": 1.0 for n in range(10)})
    assert even.report().flags == () and even.report().gini == pytest.approx(0.0)


def test_few_of_many_captions_that_bring_nearly_all_are_concentrated() -> None:
    watch = RewardWatch()
    many = {f"caption {n}": 0.01 for n in range(30)}
    stream(watch, 8 * WINDOW_EPISODES, 0.1, {"a": 1.0, "b": 1.1, "c": 1.2, **many})
    assert [(flag.text, flag.reasons) for flag in watch.report().flags] == [
        (text, ("concentrated",)) for text in ("c", "b", "a")
    ]
    fewer = RewardWatch()  # three of four are no few
    stream(fewer, 8 * WINDOW_EPISODES, 0.1, {"a": 1.0, "b": 1.1, "c": 1.2, "d": 0.1})
    assert fewer.report().flags == ()


def test_what_others_cost_hides_no_caption_that_is_farmed() -> None:
    watch = RewardWatch()
    stream(watch, 8 * WINDOW_EPISODES, 0.3, {KEY: 1.0, DOOR: -8.0})
    stream(watch, 4 * WINDOW_EPISODES, 0.3, {KEY: 5.0, DOOR: -8.0}, seed=1)
    report = watch.report()
    assert [(flag.text, flag.reasons, flag.share) for flag in report.flags] == [(KEY, ("grows", "concentrated"), 1.0)]
    assert report.top_share == report.top5_share == 1.0
    both = RewardWatch()
    stream(both, 8 * WINDOW_EPISODES, 0.3, {KEY: 2.0, DOOR: -1.9})
    assert both.report().top_share == 1.0
    taken = RewardWatch()
    stream(taken, 8 * WINDOW_EPISODES, 0.3, {DOOR: -1.0})
    assert taken.report().top_share is None and taken.report().flags == ()


def test_without_success_the_return_counts() -> None:
    hacked, fine = RewardWatch(), RewardWatch()
    for watch, later in ((hacked, 0.0), (fine, 5.0)):
        stream(watch, 8 * WINDOW_EPISODES, None, {KEY: 1.0, DOOR: 0.1})
        stream(watch, 3 * WINDOW_EPISODES, None, {KEY: 1.0, DOOR: 0.8}, seed=1, extrinsic=later)
    assert [flag.text for flag in hacked.report().flags if "grows" in flag.reasons] == [DOOR]
    assert hacked.report().flags[0].goal == "return"
    assert fine.report().flags == ()


def test_memory_is_bounded_and_nothing_is_lost_by_joining() -> None:
    watch = RewardWatch()
    for n in range(100 * WINDOW_EPISODES):
        watch.earned([(f"caption {n}", 0.25), (KEY, 1.0)])
        watch.ended(False, 0.0)
    state = watch.state_dict()
    assert len(state["windows"]) <= 33 and all(len(captions) <= 160 for *_, captions, _, _ in state["windows"])
    total = sum(rest + sum(earned for _, earned in captions) for _, _, _, captions, rest, _ in state["windows"])
    assert total == pytest.approx(100 * WINDOW_EPISODES * 1.25)
    assert watch.report().top_share == pytest.approx(0.8)


def test_an_open_window_is_bounded_too() -> None:
    watch = RewardWatch()
    watch.ended(False, 0.0)
    for n in range(5000):
        watch.earned([(f"caption {n}", 0.25)])
    ((_, _, _, captions, rest, count),) = watch.state_dict()["windows"]
    assert len(captions) <= 1024 and count == 5000 - len(captions)
    assert rest + sum(earned for _, earned in captions) == pytest.approx(1250.0)


def test_a_resumed_watch_goes_on_where_it_was() -> None:
    first, second = RewardWatch(), RewardWatch()
    stream(first, 333, 0.2, {KEY: 1.0, DOOR: 0.5})
    second.load_state_dict(orjson.loads(orjson.dumps(first.state_dict())))
    for watch in (first, second):
        stream(watch, 500, 0.2, {KEY: 2.0}, seed=3)
    assert first.report() == second.report() != RewardWatchReport()


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=40))
def test_gini_is_the_mean_difference_over_twice_the_mean(values: list[float]) -> None:
    x = np.array(values)
    expected = 0.0 if x.sum() == 0 else np.abs(x[:, None] - x[None]).mean() / (2 * x.mean())
    assert gini(values) == pytest.approx(expected, abs=1e-9)


def test_sums_by_id() -> None:
    ids = np.array([[3, 4, 3], [0, 5, 4]])
    bonus = np.array([[0.5, 1.0, 0.25], [0.0, 0.0, -0.5]], np.float32)
    assert sums_by_id(ids, bonus) == {3: 0.75, 4: 0.5}
    assert sums_by_id(ids, np.zeros_like(bonus)) == {}
