"""Ways of giving credit against closed forms: exact gradients, exact optimal policies, and sums that must be kept."""

import itertools
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.credit import registry
from learner.credit.attribution import CreditRule, OutcomeError, Past, Turns, whole
from learner.credit.methods.leave_one_out import leave_one_out
from learner.credit.outcomes import EpisodeOutcome, outcome_of
from learner.credit.registry import build_credit, credit_method, method_names
from learner.credit.settings import CreditSettings
from orchestration.configuration import checks, load_config
from orchestration.errors import ConfigError

ONLINE = [name for name in method_names() if not credit_method(name).whole_episodes]
NUMBERS = st.floats(-5, 5, width=32)


def attribute(name: str, turns: Turns, **rule):
    return build_credit(name, CreditRule(**rule)).attribute(turns)


@st.composite
def episodes(draw) -> Turns:
    """Finished episodes of one turn or more."""
    lengths = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    turns, rows = sum(lengths), len(lengths)

    def numbers(count):
        return np.array(draw(st.lists(NUMBERS, min_size=count, max_size=count)))

    def flags(count):
        return np.array(draw(st.lists(st.booleans(), min_size=count, max_size=count)))

    return whole(
        lengths=lengths, extrinsic=numbers(turns), intrinsic=numbers(turns), progress=numbers(turns),
        grounded=flags(turns), terminated=flags(rows), outcome=np.abs(numbers(rows)) / 5,
    )  # fmt: skip


def cut(turns: Turns, at: int) -> tuple[Turns, Turns]:
    """The same episodes in two parts: the first `at` turns of each, and the rest (episodes of `at` turns or fewer: all)."""
    parts = []
    for first in (True, False):
        rows, lengths = [], []
        for e in range(turns.episodes):
            low, high = turns.offsets[e], turns.offsets[e + 1]
            middle = min(low + at, high)
            span = range(low, middle) if first else range(middle, high)
            if len(span):
                rows.append((e, span, span[-1] == high - 1))
                lengths.append(len(span))
        index = np.array([k for _, span, _ in rows for k in span], np.int64)
        e = np.array([row for row, _, _ in rows], np.int64)
        done = np.array([end for _, _, end in rows], bool)
        before = [np.array([x[turns.offsets[e] : span[0]].sum() for e, span, _ in rows])
                  for x in (turns.extrinsic, turns.progress)]  # fmt: skip
        parts.append(None if not rows else Turns(
            offsets=np.concatenate([[0], np.cumsum(lengths)]), extrinsic=turns.extrinsic[index],
            intrinsic=turns.intrinsic[index], progress=turns.progress[index], grounded=turns.grounded[index],
            ended=done, terminated=done & turns.terminated[e], outcome=np.where(done, turns.outcome[e], np.nan),
            past=Past(*before),
        ))  # fmt: skip
    return tuple(parts)


@given(episodes())
@settings(max_examples=60, deadline=None)
def test_sums_that_are_kept(turns):
    """By episode: `turn` and `outcome` the extrinsic return, `spa` with `conserve` the outcome, all others' parts untouched."""
    rule = {"w_prog": 0.7, "w_ground": 0.3, "discount": 0.9}
    for name in ONLINE:
        for conserve in (False, True):
            paid = attribute(name, turns, **rule, conserve=conserve)
            np.testing.assert_allclose(turns.sums(paid.extrinsic), turns.sums(turns.extrinsic), atol=1e-9)
            np.testing.assert_array_equal(paid.intrinsic, turns.intrinsic)
            assert paid.total.shape == turns.extrinsic.shape
            if name.startswith("spa"):
                expected = turns.outcome if conserve else turns.sums(turns.progress)
                np.testing.assert_allclose(turns.sums(paid.progress), 0.7 * expected, atol=1e-9)
    grounded = attribute("spa+grounding", turns, **rule).grounding
    np.testing.assert_allclose(grounded, 0.3 * turns.grounded)  # the last turn's too
    # Potential: Σ γ^t F_t = γ^T Φ(s_T) − Φ(s_0), and Φ(s_0) = 0.
    shaping = attribute("potential", turns, **rule).progress
    for e in range(turns.episodes):
        part = slice(turns.offsets[e], turns.offsets[e + 1])
        length = part.stop - part.start
        last = 0.0 if turns.terminated[e] else turns.progress[part].sum()
        assert 0.9 ** np.arange(length) @ shaping[part] == pytest.approx(0.7 * 0.9**length * last, abs=1e-9)


@given(episodes(), st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_parts_of_episodes_are_paid_as_whole_ones(turns, at):
    first, rest = cut(turns, at)
    for name in ONLINE:
        rule = {"w_prog": 0.7, "w_ground": 0.3, "discount": 0.9, "conserve": True}
        expected = attribute(name, turns, **rule).total
        place = np.arange(len(expected)) - turns.offsets[:-1][turns.episode]
        np.testing.assert_allclose(attribute(name, first, **rule).total, expected[place < at], atol=1e-9)
        if rest is not None:
            np.testing.assert_allclose(attribute(name, rest, **rule).total, expected[place >= at], atol=1e-9)


def test_an_episode_of_one_turn():
    one = whole(lengths=[1], extrinsic=np.array([2.0]), progress=np.array([0.25]), outcome=np.array([1.0]))
    assert attribute("outcome", one).total == [2.0]
    assert attribute("spa", one, w_prog=2.0).total == [2.5]
    assert attribute("spa", one, w_prog=2.0, conserve=True).total == [4.0]
    assert attribute("spa+grounding", one, w_prog=2.0, w_ground=0.5).total == [3.0]
    assert attribute("potential", one).total == [2.0]  # Φ is 0 at the start and at the end


def test_an_unknown_outcome_leaves_contributions_as_they_are():
    broken = whole(lengths=[2], extrinsic=np.zeros(2), progress=np.array([0.25, 0.5]))
    np.testing.assert_array_equal(attribute("spa", broken, conserve=True).progress, [0.25, 0.5])


# Leave one out.


def test_leave_one_out_is_unbiased_on_an_enumerated_bandit():
    """E[Σ_i A_i ∇log π(a_i) / n] over all 3^3 draws of three episodes is the exact gradient of the expected reward."""
    logits, reward, n = np.array([0.3, -0.5, 0.1]), np.array([1.0, 0.2, -0.7]), 3
    pi = np.exp(logits) / np.exp(logits).sum()
    score = np.eye(3) - pi  # ∇ log π(a), row a
    exact = (pi * reward) @ score
    found, with_own = np.zeros(3), np.zeros(3)
    for arms in itertools.product(range(3), repeat=n):
        arms = np.array(arms)
        drawn = whole(lengths=[1] * n, extrinsic=reward[arms], group=np.zeros(n, np.int64))
        advantage = attribute("leave_one_out", drawn).total
        found += pi[arms].prod() * (advantage @ score[arms]) / n
        with_own += pi[arms].prod() * ((reward[arms] - reward[arms].mean()) @ score[arms]) / n
    np.testing.assert_allclose(found, exact, atol=1e-12)
    assert np.abs(with_own - exact).max() > 0.01  # a baseline with the episode's own reward in it is biased


def test_leave_one_out_by_hand_and_its_errors():
    np.testing.assert_allclose(
        leave_one_out(np.array([1.0, 0.0, 2.0, 5.0, 3.0]), np.array([7, 7, 7, 8, 8])), [0, -1.5, 1.5, 2, -2]
    )
    two = whole(lengths=[2, 1], extrinsic=np.array([1.0, 1.0, 0.0]), group=np.array([0, 0]))
    np.testing.assert_allclose(attribute("leave_one_out", two).total, [2, 2, -2])  # the same on every turn
    with pytest.raises(ValueError, match="group 8 has only one episode"):
        leave_one_out(np.array([1.0, 0.0, 2.0]), np.array([7, 7, 8]))
    with pytest.raises(ValueError, match=r"Turns\.group is missing"):
        attribute("leave_one_out", whole(lengths=[1], extrinsic=np.ones(1)))


# Potential shaping.

GAMMA = 0.9


def optimal(transition, reward, terminal, iterations=2000):
    """The optimal actions [S] and values of a tabular MDP: transition, reward [S, A, S], terminal [S]."""
    value = np.zeros(len(terminal))
    for _ in range(iterations):
        q = (transition * (reward + GAMMA * np.where(terminal, 0.0, value))).sum(2)
        value = q.max(1)
    return q.argmax(1), q


def shaped(reward, potential, terminal, *, scorer_after=None):
    """The reward of every transition, each attributed as a part of an episode of one turn."""
    states, actions, _ = reward.shape
    before, _, after = np.meshgrid(np.arange(states), np.arange(actions), np.arange(states), indexing="ij")
    count = reward.size
    turns = Turns(
        offsets=np.arange(count + 1), extrinsic=reward.ravel(), intrinsic=np.zeros(count), progress=np.zeros(count),
        grounded=np.ones(count, bool), ended=terminal[after.ravel()], terminated=terminal[after.ravel()],
        outcome=np.full(count, np.nan), past=Past(np.zeros(count), np.zeros(count)),
        potential=potential[before.ravel()],
        potential_after=(potential if scorer_after is None else scorer_after)[after.ravel()],
    )  # fmt: skip
    return attribute("potential", turns, discount=GAMMA).total.reshape(reward.shape)


def random_mdp(seed, states=6, actions=3):
    rng = np.random.default_rng(seed)
    transition = rng.dirichlet(np.full(states, 0.3), (states, actions))
    terminal = np.zeros(states, bool)
    terminal[-1] = True
    return rng, transition, rng.normal(size=(states, actions, states)), terminal


@pytest.mark.parametrize("seed", range(8))
def test_potential_shaping_leaves_the_optimal_policy(seed):
    rng, transition, reward, terminal = random_mdp(seed)
    potential = rng.normal(size=6, scale=5)
    best, q = optimal(transition, reward, terminal)
    again, q_shaped = optimal(transition, shaped(reward, potential, terminal), terminal)
    np.testing.assert_array_equal(best, again)
    # Exactly (Ng et al. 1999, corollary 2): Q' = Q − Φ.
    np.testing.assert_allclose(q_shaped[:-1], (q - potential[:, None])[:-1], atol=1e-8)


def test_wrong_shaping_changes_the_optimal_policy():
    """A goal one step away, and a place that is pleasant to stay at: paid for being there, nobody leaves."""
    transition = np.zeros((2, 2, 2))
    transition[0, 0, 0] = transition[0, 1, 1] = transition[1, :, 1] = 1.0  # stay, or go to the goal
    reward = np.zeros((2, 2, 2))
    reward[0, 1, 1] = 1.0
    terminal, potential = np.array([False, True]), np.array([2.0, 0.0])
    assert optimal(transition, reward, terminal)[0][0] == 1
    assert optimal(transition, shaped(reward, potential, terminal), terminal)[0][0] == 1
    # Φ of where it leads alone, not the difference.
    wrong = shaped(reward, np.zeros(2), terminal, scorer_after=potential)
    assert optimal(transition, wrong, terminal)[0][0] == 0
    # A potential that is not 0 after a terminated turn: here going is punished, as if the episode went on.
    not_zero = reward + GAMMA * np.array([0.0, -9.0])[None, None] - np.array([0.0, -9.0])[:, None, None]
    assert optimal(transition, not_zero, terminal)[0][0] == 0


# Errors, and the registry.


@pytest.mark.parametrize("value", [1.5, -0.1])
def test_an_outcome_outside_0_and_1_is_an_error_that_says_so(value):
    with pytest.raises(OutcomeError, match=rf"R must be in \[0, 1\], and one is {value}"):
        whole(lengths=[1], extrinsic=np.zeros(1), outcome=np.array([value]))
    end = EpisodeOutcome(t=0, b=0, success=None, episode_return=value * 10)
    with pytest.raises(OutcomeError, match=rf"credit.return_high=10 make R={value}; an outcome R must be in \[0, 1\]"):
        outcome_of(end, CreditSettings(outcome="return", return_high=10.0))
    with pytest.raises(
        OutcomeError, match=r"credit.outcome=success: the task does not say .* set credit.outcome=return"
    ):
        outcome_of(end, CreditSettings())


def test_outcomes_by_hand():
    end = EpisodeOutcome(t=0, b=0, success=True, episode_return=5.0)
    assert outcome_of(end, CreditSettings()) == 1.0
    assert outcome_of(end, CreditSettings(outcome="return", return_low=-5.0, return_high=15.0)) == 0.5


def test_the_registry():
    assert ONLINE == ["outcome", "turn", "spa", "spa+grounding", "potential"]
    with pytest.raises(ValueError, match="did you mean 'spa\\+grounding'"):
        credit_method("spa_grounding")


def test_the_example_of_the_docs(monkeypatch):
    """`docs/credit.md` shows how to add a method: its code is what this test runs."""
    page = (Path(__file__).parent.parent / "docs" / "credit.md").read_text()
    code = re.search(r"```python\n(# learner/credit/methods/.*?)```", page, re.DOTALL)
    assert code is not None
    names: dict = {"__name__": "example"}
    exec(code[1], names)
    turns = whole(lengths=[3, 1], extrinsic=np.array([0.0, 1.0, 2.0, 4.0]), intrinsic=np.ones(4))
    paid = names["METHOD"](CreditRule()).attribute(turns)
    np.testing.assert_allclose(paid.extrinsic, [1.0, 1.0, 1.0, 4.0])
    np.testing.assert_allclose(turns.sums(paid.extrinsic), turns.sums(turns.extrinsic))
    np.testing.assert_allclose(paid.intrinsic, 1.0)
    # The file and the line are all: a run can choose it, but not a network's, which brings parts of episodes.
    monkeypatch.setitem(sys.modules, "learner.credit.methods.even", types.SimpleNamespace(METHOD=names["METHOD"]))
    monkeypatch.setitem(registry._MODULES, "even", "learner.credit.methods.even")
    monkeypatch.setitem(checks.CHECKS, "credit.method", checks.Choice(method_names()))
    keys = ["reward.model=none", "credit.method=even"]
    assert checks.attributes_credit(
        load_config(None, [*keys, "env.id=textworld/w2-o3-q4", "agent.model=tiny", "learner.algorithm=ppo"])
    )
    with pytest.raises(ConfigError, match=r"credit\.method=even: wants whole episodes"):
        load_config(None, [*keys, "env.id=nethack/Score"])
