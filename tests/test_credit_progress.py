"""The progress estimator: what it recovers, what it keeps to learn from, and how episodes come together out of parts."""

import numpy as np
import pytest
import torch

from learner.credit.assembly import Slot, Slots
from learner.credit.calibration import calibrate
from learner.credit.estimator import ProgressEstimator
from learner.credit.guards import certainty, separate_advantage, squash
from learner.credit.progress import CONSTRAINTS, ProgressHeads, episode_sums, progress_loss
from learner.credit.replay import EpisodeFeatures, EpisodeReplay
from learner.credit.settings import CreditSettings

CPU = torch.device("cpu")
CONTRIBUTIONS = np.array([0.0, 0.0, 0.3, 0.2, 0.5])
"""Of five kinds of turns: two that change nothing, and key, door, stairs."""


def synthetic(rng: np.random.Generator) -> tuple[EpisodeFeatures, np.ndarray]:
    """An episode of a world with known contributions: 3 to 20 turns; each of the three that count comes once or not."""
    kinds = rng.integers(0, 2, rng.integers(3, 21))
    places = rng.permutation(len(kinds))[:3]
    for kind, at in zip((2, 3, 4), places, strict=True):
        if rng.random() < 0.6:
            kinds[at] = kind
    features = np.concatenate([np.eye(5)[kinds], rng.normal(size=(len(kinds), 4))], axis=1)  # the rest says nothing
    outcome = float(CONTRIBUTIONS[kinds].sum())
    return EpisodeFeatures(torch.from_numpy(features).half(), 1.0, outcome, 0), kinds


def fitted(**changes) -> tuple[ProgressEstimator, np.random.Generator]:
    rng = np.random.default_rng(0)
    settings = CreditSettings(hidden=32, learning_rate=3e-3, min_episodes=2, publish_every=100, **changes)
    estimator = ProgressEstimator(settings, 9, seed=1, device=CPU)
    for _ in range(600):
        estimator.observe(synthetic(rng)[0])
    estimator.learn(900)
    return estimator, rng


@pytest.mark.parametrize("changes", [{}, {"constraint": "unit", "heads": 3}])
def test_it_recovers_known_contributions(changes):
    """Only sums over episodes are ever told to it."""
    estimator, rng = fitted(**changes)
    episodes = [synthetic(rng) for _ in range(100)]
    sums, outcomes, by_kind = [], [], [[] for _ in CONTRIBUTIONS]
    for episode, kinds in episodes:
        found, _ = estimator.contributions(episode.features)
        sums.append(found.sum())
        outcomes.append(episode.outcome)
        for kind, value in zip(kinds, found, strict=True):
            by_kind[kind].append(value)
    np.testing.assert_allclose([np.mean(each) for each in by_kind], CONTRIBUTIONS, atol=0.04)
    assert np.sqrt(np.mean(np.square(np.subtract(sums, outcomes)))) < 0.1
    # What it reports of the episodes held out is what it does here.
    assert estimator.version == 9 and 30 < estimator.calibration.episodes < 130
    assert estimator.calibration.explained > 0.9 and estimator.calibration.error < 0.08
    assert abs(estimator.calibration.residual_mean) < 0.05


def test_constraints_hold_for_any_weights():
    x = torch.linspace(-50, 50, 101)
    for scale in (torch.tensor(1.0), torch.tensor(14.0)):
        found = {name: constraint(x, scale) for name, constraint in CONSTRAINTS.items()}
        assert found["bounded"].abs().max() <= 1 and found["non_negative"].min() >= 0
        assert found["unit"].min() >= 0 and found["unit"].max() <= 1
        torch.testing.assert_close(found["none"], x / scale)


def test_the_loss_by_hand():
    contribution = torch.tensor([[0.5, 0.25, 1.0], [0.0, 0.0, 2.0]])
    sums = episode_sums(contribution, torch.tensor([1.0, 2.0, 1.0]), torch.tensor([0, 0, 1]), 2)
    torch.testing.assert_close(sums, torch.tensor([[1.0, 1.0], [0.0, 2.0]]))
    outcome = torch.tensor([1.0, 0.0])
    torch.testing.assert_close(progress_loss(sums, outcome), torch.tensor((0 + 1 + 1 + 4) / 4))
    mask = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    torch.testing.assert_close(progress_loss(sums, outcome, mask), torch.tensor((0 + 4) / 2))


def test_before_the_first_version_every_turn_made_no_progress():
    estimator = ProgressEstimator(CreditSettings(heads=2), 9, seed=1, device=CPU)
    found, deviation = estimator.contributions(torch.randn(4, 9))
    assert not found.any() and not deviation.any() and estimator.version == 0
    estimator.learn(5)  # there is nothing to learn from
    assert estimator.version == 0


def test_disagreement_lowers_the_weight_where_nothing_was_learnt():
    estimator, rng = fitted(heads=4)
    known = torch.cat([synthetic(rng)[0].features for _ in range(50)])
    unknown = 8.0 * torch.randn(500, 9, generator=torch.Generator().manual_seed(0))
    _, agreed = estimator.contributions(known)
    _, disagreed = estimator.contributions(unknown)
    assert np.median(disagreed) > 3 * np.median(agreed)
    assert certainty(disagreed, 0.1).mean() < 0.7 < 0.9 < certainty(agreed, 0.1).mean()
    np.testing.assert_allclose(certainty(np.array([0.0, 0.1, 0.3]), 0.1), [1, 0.5, 0.1])


def test_squash_is_a_centred_bounded_sigmoid():
    x = np.array([-1e6, 0.3, 0.31, 1e6])
    found = squash(x, 0.3, 0.2)
    np.testing.assert_allclose(found[[0, 1, 3]], [-0.2, 0.0, 0.2], atol=1e-12)
    sigmoid = 1 / (1 + np.exp(-2 * (0.31 - 0.3) / 0.2))
    assert found[2] == pytest.approx(0.2 * (2 * sigmoid - 1)) and found[2] == pytest.approx(0.01, rel=0.01)


def test_each_components_advantage_is_normalised():
    """A component a thousand times as large as another counts as much at the same weight."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(6, 5, generator=generator), torch.randn(6, 5, generator=generator)
    weights = torch.tensor([1.0, 0.5, 2.0])
    found = separate_advantage(torch.stack([a, 1000 * b + 7, torch.full((6, 5), 3.0)]), weights)
    expected = (a - a.mean()) / a.std(unbiased=False) + 0.5 * (b - b.mean()) / b.std(unbiased=False)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_calibration_by_hand():
    found = calibrate(np.array([0.05, 0.05, 0.95, 0.95]), np.array([0.0, 1.0, 1.0, 1.0]))
    assert found.error == pytest.approx(0.5 * 0.45 + 0.5 * 0.05)
    assert found.residual_mean == pytest.approx((0.05 - 0.95 - 0.05 - 0.05) / 4)
    assert found.explained == pytest.approx(1 - (0.0025 + 0.9025 + 0.0025 + 0.0025) / 4 / 0.1875)


# What is kept.


def numbered(outcome: float, version: int, turns: int = 2) -> EpisodeFeatures:
    return EpisodeFeatures(torch.full((turns, 1), float(version)).half(), 1.0, outcome, version)


def test_the_replay_is_balanced_bounded_and_forgets_what_is_stale():
    replay = EpisodeReplay(20, min_episodes=2, max_age=30)
    replay.add(numbered(1.0, 0))
    for version in range(20):
        replay.add(numbered(0.0, version))
    assert replay.counts == (5, 1)  # 10 turns for either outcome
    drawn = replay.sample(8, torch.Generator().manual_seed(0))
    assert sorted(each.outcome for each in drawn) == [0.0] * 4 + [1.0] * 4
    replay.add(numbered(1.0, 49))
    assert [each.version for each in replay.episodes] == [18, 19, 0, 49]  # stale, but for the newest two of either
    replay.add(numbered(1.0, 50))
    assert [each.version for each in replay.episodes] == [18, 19, 49, 50]
    replay.add(numbered(0.0, 51, turns=100))  # longer than the bound: it alone
    assert replay.counts == (1, 2)


def steps(count: int, first: int = 0) -> torch.Tensor:
    return torch.arange(first, first + count)[:, None].half()


def test_episodes_come_together_out_of_parts():
    slots, slot = Slots(100, seed=0), Slot()
    start, ended = np.zeros(5, bool), np.zeros(5, bool)
    # An episode whose beginning nobody saw, then the first steps of one that is.
    ended[1], start[2] = True, True
    assert slots.add(slot, steps(5), start, ended, [1.0], 0) == []
    # It goes on, ends in the middle, another of one step ends, a third begins.
    start, ended = np.array([0, 0, 0, 1, 1], bool), np.array([0, 0, 1, 1, 0], bool)
    one, two = slots.add(slot, steps(5, 5), start, ended, [1.0, 0.0], 7)
    assert one.features.flatten().tolist() == [2, 3, 4, 5, 6, 7] and (one.outcome, one.version) == (1.0, 7)
    assert two.features.flatten().tolist() == [8] and two.outcome == 0.0
    # Its end is not known (the environment broke).
    assert slots.add(slot, steps(1, 10), np.array([False]), np.array([True]), [np.nan], 8) == []


def test_a_missing_part_costs_its_episode_and_no_other():
    slots = Slots(100, seed=0)
    (slot,) = slots.of("a", 3, 1)
    begins, no_end = np.array([True, False]), np.array([False, False])
    slots.add(slot, steps(2), begins, no_end, [], 0)
    slots.miss("a", 0, 8)
    (slot,) = slots.of("a", 3, 1)
    assert slots.lost == 1
    assert slots.add(slot, steps(2), np.zeros(2, bool), np.array([False, True]), [1.0], 0) == []
    (whole,) = slots.add(slot, steps(2), begins, np.array([False, True]), [1.0], 0)
    assert whole.turns == 2


def test_long_episodes_are_thinned_and_sums_stay_right_on_average():
    kept, sums = [], []
    for seed in range(300):
        slots, slot = Slots(8, seed=seed), Slot()
        for part in range(10):
            start, ended = np.zeros(7, bool), np.zeros(7, bool)
            start[0], ended[-1] = part == 0, part == 9
            done = slots.add(slot, steps(7, 7 * part), start, ended, [1.0] if part == 9 else [], 0)
        (episode,) = done
        assert episode.turns <= 8 and episode.weight in (8, 16)
        assert np.all(np.diff(episode.features.flatten().numpy()) == episode.weight)
        kept.append(episode.turns * episode.weight)
        sums.append(float(episode.features.sum()) * episode.weight)
    assert np.mean(kept) == pytest.approx(70, rel=0.03) and np.mean(sums) == pytest.approx(69 * 35, rel=0.05)


def test_sources_that_fell_silent_are_forgotten():
    slots = Slots(100, seed=0)
    for source in ("a", "b"):
        slots.hear(source)
        slots.of(source, 0, 2)
    for _ in range(200):
        slots.hear("b")
    assert set(slots.state_dict()["slots"]) == {"b"}


def test_resuming_is_exact():
    rng = np.random.default_rng(3)
    settings = CreditSettings(hidden=8, heads=2, min_episodes=2, publish_every=3, squash=0.5)
    one, other = (ProgressEstimator(settings, 9, seed=1, device=CPU) for _ in range(2))
    for _ in range(30):
        one.observe(synthetic(rng)[0])
    one.learn(7)
    other.load_state_dict(one.state_dict())
    more = synthetic(rng)[0]
    for each in (one, other):
        each.observe(more)
        each.learn(5)
    np.testing.assert_array_equal(one.contributions(more.features), other.contributions(more.features))
    assert one.metrics() == other.metrics() and one.version == 4


def test_heads_do_not_begin_alike():
    heads = ProgressHeads(4, hidden=8, heads=3, constraint="none", seed=0)
    found = heads(torch.randn(5, 4))
    assert found.shape == (3, 5) and not torch.allclose(found[0], found[1])
