"""Advantages of packed tokens against sums over plain lists, written from the definitions."""

import itertools
import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.language.advantages import (
    group_relative,
    kl_penalty,
    leave_one_out,
    returns_to_go,
    token_gae,
    token_rewards,
    turn_gae,
    whiten,
)
from learner.language.batch import EpisodeTokens, pack
from learner.language.segments import reverse_scan
from tests.language_support import action_rows, randn, random_batch, sequence


def gae_by_definition(rewards, values, final, gamma, lam):
    """A_t = Σ_l (γλ)^l δ_{t+l} of one episode (arXiv 1506.02438 eq. 16), each sum by itself."""
    states = [*values, final]
    deltas = [r + gamma * states[t + 1] - states[t] for t, r in enumerate(rewards)]
    return [sum((gamma * lam) ** (s - t) * deltas[s] for s in range(t, len(deltas))) for t in range(len(deltas))]


GAMMAS = st.sampled_from([0.0, 0.9, 1.0])


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=6), seed=st.integers(0, 2**31), tight=st.booleans())
def test_a_segmented_scan_is_a_loop(lengths, seed, tight):
    total = sum(lengths)
    x, decay = randn(seed, total), randn(seed + 1, total).tanh()
    ends = set(itertools.accumulate(lengths))
    for i in range(total):
        if i + 1 in ends:
            decay[i] = 0.0
    expected = [0.0] * (total + 1)
    xs, decays = x.tolist(), decay.tolist()
    for i in reversed(range(total)):
        expected[i] = xs[i] + decays[i] * expected[i + 1]
    found = reverse_scan(x, decay, max(lengths) if tight else total)
    torch.testing.assert_close(found, torch.tensor(expected[:-1], dtype=torch.float64))


def test_a_scan_of_nothing_and_one_that_does_not_fit():
    assert reverse_scan(torch.zeros(0), torch.zeros(0), 0).shape == (0,)
    with pytest.raises(ValueError, match="one length"):
        reverse_scan(torch.zeros(3), torch.zeros(2), 3)


def test_a_long_scan_in_float32_is_exact_enough():
    """γ = λ = 1 over 32 k tokens: the sum must not drift as a running one would."""
    x = torch.full((2**15,), 0.1)
    decay = torch.ones(2**15)
    decay[-1] = 0.0
    exact = torch.arange(2**15, 0, -1, dtype=torch.float64) * x[0].double()
    torch.testing.assert_close(reverse_scan(x, decay, 2**15).double(), exact, rtol=1e-6, atol=0.0)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), episodes=st.integers(1, 5), gamma=GAMMAS, lam=GAMMAS)
def test_token_gae(seed, episodes, gamma, lam):
    batch = random_batch(seed, episodes)
    actions, rows = batch.actions(), action_rows(batch)
    reward, value, bootstrap = randn(seed, len(rows)), randn(seed + 1, len(rows)), randn(seed + 2, episodes)
    found = token_gae(
        reward=reward, value=value, bootstrap=bootstrap, terminated=batch.terminated, actions=actions,
        discount=gamma, trace=lam,
    )  # fmt: skip
    expected: list[float] = []
    for episode in range(episodes):
        mine = [i for i, (e, _) in enumerate(rows) if e == episode]
        final = 0.0 if batch.terminated[episode] else bootstrap[episode].item()
        expected += gae_by_definition(
            [reward[i].item() for i in mine], [value[i].item() for i in mine], final, gamma, lam
        )
    torch.testing.assert_close(found.advantage, torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(found.value_target, found.advantage + value)
    assert bool(found.critic.all())


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), episodes=st.integers(1, 5), gamma=GAMMAS, lam=GAMMAS)
def test_turn_gae(seed, episodes, gamma, lam):
    batch = random_batch(seed, episodes)
    actions, rows = batch.actions(), action_rows(batch)
    reward, value, bootstrap = randn(seed, len(rows)), randn(seed + 1, len(rows)), randn(seed + 2, episodes)
    found = turn_gae(
        reward=reward, value=value, bootstrap=bootstrap, terminated=batch.terminated, actions=actions,
        discount=gamma, trace=lam,
    )  # fmt: skip
    tokens_of: dict[tuple[int, int], list[int]] = {}
    for i, row in enumerate(rows):
        tokens_of.setdefault(row, []).append(i)
    expected = [0.0] * len(rows)
    for episode in range(episodes):
        turns = [tokens for (e, _), tokens in tokens_of.items() if e == episode]
        final = 0.0 if batch.terminated[episode] else bootstrap[episode].item()
        rewards = [sum(reward[i].item() for i in tokens) for tokens in turns]
        for tokens, a in zip(
            turns, gae_by_definition(rewards, [value[t[0]].item() for t in turns], final, gamma, lam), strict=True
        ):  # fmt: skip
            for i in tokens:
                expected[i] = a
    torch.testing.assert_close(found.advantage, torch.tensor(expected, dtype=torch.float64))
    assert found.critic.nonzero().squeeze(1).tolist() == [tokens[0] for tokens in tokens_of.values()]
    first = found.critic
    torch.testing.assert_close(found.value_target[first], found.advantage[first] + value[first])


def _one_turn(terminated, tokens):
    rows = [(1, False, 0, 0.0)] + [(2, True, 0, -1.0)] * tokens + [(3, False, -1, 0.0)]
    return pack([EpisodeTokens((sequence(rows),), (0,), terminated)])


@pytest.mark.parametrize("gae", [token_gae, turn_gae])
@pytest.mark.parametrize(("terminated", "expected"), [(True, 1.0 - 0.25), (False, 1.0 + 0.9 * 7.0 - 0.25)])
def test_one_turn_of_one_token_and_the_time_limit(gae, terminated, expected):
    """A time limit is no termination: the value of the final state counts."""
    batch = _one_turn(terminated, 1)
    found = gae(
        reward=torch.tensor([1.0]), value=torch.tensor([0.25]), bootstrap=torch.tensor([7.0]),
        terminated=batch.terminated, actions=batch.actions(), discount=0.9, trace=0.5,
    )  # fmt: skip
    assert found.advantage.item() == pytest.approx(expected)


def test_observation_tokens_are_no_steps():
    """With γ = 0.5 the reward of the second turn is halved once for each *action* token between, not for observations."""
    rows = [(1, False, 0, 0.0), (2, True, 0, -1.0), *[(9, False, 1, 0.0)] * 5, (3, True, 1, -1.0), (4, True, 1, -1.0)]
    actions = pack([EpisodeTokens((sequence(rows),), (0, 0), True)]).actions()
    reward = token_rewards(torch.tensor([0.0, 8.0]), actions)
    assert reward.tolist() == [0.0, 0.0, 8.0]
    assert returns_to_go(reward, actions, 0.5).tolist() == [2.0, 4.0, 8.0]
    with pytest.raises(ValueError, match="the batch has 2 turns"):
        token_rewards(torch.zeros(3), actions)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), gamma=GAMMAS)
def test_returns_to_go(seed, gamma):
    batch = random_batch(seed, 3)
    rows = [episode for episode, _ in action_rows(batch)]
    reward = randn(seed, len(rows))
    expected = [
        sum(gamma ** (j - i) * reward[j].item() for j in range(i, len(rows)) if rows[j] == rows[i])
        for i in range(len(rows))
    ]
    torch.testing.assert_close(
        returns_to_go(reward, batch.actions(), gamma), torch.tensor(expected, dtype=torch.float64)
    )  # fmt: skip


def test_the_kl_penalty_is_a_constant():
    log_prob = torch.tensor([-1.0, -2.0], requires_grad=True)
    penalty = kl_penalty("k1", 0.1, log_prob, torch.tensor([-1.5, -1.0]))
    assert penalty.tolist() == pytest.approx([-0.05, 0.1])
    assert not penalty.requires_grad


SCORES = st.lists(st.integers(0, 3), min_size=4, max_size=12)


@settings(max_examples=25, deadline=None)
@given(scores=SCORES, scale=st.booleans())
def test_groups(scores, scale):
    """Groups with gaps in their ids, interleaved, against Python's own statistics."""
    ids = [7 if i % 2 else -3 for i in range(len(scores))]
    score = torch.tensor(scores, dtype=torch.float64) * 0.1
    relative, left_out = [], []
    for i, group in enumerate(ids):
        members = [j for j, other in enumerate(ids) if other == group]
        values = [score[j].item() for j in members]
        spread = statistics.stdev(values)
        constant = len({scores[j] for j in members}) == 1
        centred = 0.0 if constant else score[i].item() - statistics.fmean(values)
        relative.append(centred / spread if scale and not constant else centred)
        others = [score[j].item() for j in members if j != i]
        left_out.append(0.0 if constant else score[i].item() - statistics.fmean(others))
    group = torch.tensor(ids)
    torch.testing.assert_close(
        group_relative(score, group, scale=scale), torch.tensor(relative, dtype=torch.float64), atol=1e-9, rtol=1e-9
    )
    torch.testing.assert_close(
        leave_one_out(score, group), torch.tensor(left_out, dtype=torch.float64), atol=1e-9, rtol=1e-9
    )


def test_equal_scores_are_no_advantage():
    """0.1 has no exact mean in binary; what rounding leaves must not be blown up by a deviation of 0."""
    score, group = torch.full((7,), 0.1), torch.zeros(7, dtype=torch.int64)
    assert group_relative(score, group, scale=True).tolist() == [0.0] * 7
    assert leave_one_out(score, group).tolist() == [0.0] * 7


@pytest.mark.parametrize("compare", [leave_one_out, lambda s, g: group_relative(s, g, scale=True)])
def test_a_group_of_one(compare):
    with pytest.raises(ValueError, match="group 5 has only one"):
        compare(torch.zeros(3), torch.tensor([4, 5, 4]))
    with pytest.raises(ValueError, match="differ in shape"):
        compare(torch.zeros(3), torch.tensor([4, 4]))


def test_whitening():
    x, keep = randn(3, 50) * 3 + 5, randn(4, 50) > 0
    kept = [v for v, k in zip(x.tolist(), keep.tolist(), strict=True) if k]
    expected = [(v - statistics.fmean(kept)) / statistics.pstdev(kept) for v in x.tolist()]
    torch.testing.assert_close(whiten(x, keep), torch.tensor(expected, dtype=torch.float64))
    assert whiten(torch.full((4,), 0.1), torch.ones(4, dtype=torch.bool)).tolist() == [0.0] * 4
    assert whiten(x, torch.zeros(50, dtype=torch.bool)).abs().max() == 0.0


def test_rloo_is_unbiased_on_a_bandit():
    """All outcomes of k pulls, weighted by their probability: E[mean A ∇ log π] is the true gradient of the expected reward."""
    logits = torch.tensor([0.4, -0.3, 0.1], dtype=torch.float64, requires_grad=True)
    payoff = torch.tensor([1.0, 0.2, -0.5], dtype=torch.float64)
    k = 3
    (exact,) = torch.autograd.grad((logits.softmax(0) * payoff).sum(), logits)
    log_p = logits.log_softmax(0)
    estimates = {"rloo": torch.zeros(3, dtype=torch.float64), "grpo": torch.zeros(3, dtype=torch.float64)}
    group = torch.zeros(k, dtype=torch.int64)
    for pulls in itertools.product(range(3), repeat=k):
        arms = torch.tensor(pulls)
        probability = math.exp(sum(log_p[a].item() for a in pulls))
        for name, advantage in (
            ("rloo", leave_one_out(payoff[arms], group)),
            ("grpo", group_relative(payoff[arms], group, scale=False)),
        ):
            (gradient,) = torch.autograd.grad((advantage * log_p[arms]).mean(), logits, retain_graph=True)
            estimates[name] += probability * gradient
    torch.testing.assert_close(estimates["rloo"], exact)
    # The mean with the episode's own score in it shrinks the gradient by (k − 1) / k: the test can tell.
    torch.testing.assert_close(estimates["grpo"], exact * (k - 1) / k)
