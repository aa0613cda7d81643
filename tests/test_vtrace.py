"""V-trace against the sum that the paper defines it by, computed step by step in numpy."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.vtrace import vtrace


def by_definition(log_ratio, reward, value, bootstrap, final_value, terminated, truncated, gamma, rho, c):
    """IMPALA eq. 1: vs = V(x_s) + Σ_t γ^(t-s) (Π_{i<t} c_i) ρ_t (r_t + γ V(x_{t+1}) − V(x_t)), over one episode."""
    steps = len(reward)
    ratio = np.exp(log_ratio)
    values = np.append(value, bootstrap)

    def next_value(t):
        if terminated[t]:
            return 0.0
        return final_value[t] if truncated[t] else values[t + 1]

    targets = np.zeros(steps)
    for s in range(steps):
        total, weight = values[s], 1.0
        for t in range(s, steps):
            delta = min(ratio[t], rho) * (reward[t] + gamma * next_value(t) - values[t])
            total += weight * delta
            if terminated[t] or truncated[t]:
                break
            weight *= gamma * min(ratio[t], c)
        targets[s] = total
    advantages = np.zeros(steps)
    for t in range(steps):
        if terminated[t]:
            following = 0.0
        elif truncated[t]:
            following = final_value[t]
        else:
            following = targets[t + 1] if t + 1 < steps else bootstrap
        advantages[t] = reward[t] + gamma * following - value[t]
    return targets, advantages


@settings(max_examples=60, deadline=None)
@given(
    steps=st.integers(1, 12),
    batch=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
    end_share=st.sampled_from([0.0, 0.2, 0.6]),
    rho=st.sampled_from([0.7, 1.0, 2.0]),
    c=st.sampled_from([0.5, 1.0]),
    gamma=st.sampled_from([0.0, 0.9, 1.0]),
)
def test_vtrace_is_the_papers_sum(steps, batch, seed, end_share, rho, c, gamma):
    rng = np.random.default_rng(seed)
    shape = (steps, batch)
    log_ratio, reward, value, final_value = (rng.normal(size=shape) for _ in range(4))
    bootstrap = rng.normal(size=batch)
    ended = rng.random(shape) < end_share
    truncated = ended & (rng.random(shape) < 0.5)
    terminated = ended & ~truncated
    result = vtrace(
        log_ratio=torch.tensor(log_ratio),
        reward=torch.tensor(reward),
        value=torch.tensor(value),
        bootstrap=torch.tensor(bootstrap),
        final_value=torch.tensor(final_value),
        terminated=torch.tensor(terminated),
        truncated=torch.tensor(truncated),
        discount=gamma,
        rho=rho,
        c=c,
    )
    for b in range(batch):
        targets, advantages = by_definition(
            log_ratio[:, b], reward[:, b], value[:, b], bootstrap[b], final_value[:, b],
            terminated[:, b], truncated[:, b], gamma, rho, c,
        )  # fmt: skip
        np.testing.assert_allclose(result.target[:, b].numpy(), targets, atol=1e-9)
        np.testing.assert_allclose(result.advantage[:, b].numpy(), advantages, atol=1e-9)


def test_on_policy_targets_are_discounted_returns():
    """With π = μ and ρ = c = 1 V-trace is the n-step return, whatever the critic says in between."""
    reward = torch.tensor([[1.0], [2.0], [3.0]])
    no = torch.zeros(3, 1, dtype=torch.bool)
    result = vtrace(
        log_ratio=torch.zeros(3, 1), reward=reward, value=torch.tensor([[5.0], [-1.0], [0.3]]),
        bootstrap=torch.tensor([10.0]), final_value=torch.zeros(3, 1), terminated=no, truncated=no, discount=0.5,
    )  # fmt: skip
    expected = [1 + 0.5 * (2 + 0.5 * (3 + 0.5 * 10)), 2 + 0.5 * (3 + 0.5 * 10), 3 + 0.5 * 10]
    np.testing.assert_allclose(result.target[:, 0].numpy(), expected, rtol=1e-6)


def test_a_cut_episode_bootstraps_and_a_finished_one_does_not():
    def target(terminated, truncated):
        return vtrace(
            log_ratio=torch.zeros(1, 1), reward=torch.ones(1, 1), value=torch.zeros(1, 1), bootstrap=torch.tensor([7.0]),
            final_value=torch.full((1, 1), 3.0), terminated=torch.tensor([[terminated]]),
            truncated=torch.tensor([[truncated]]), discount=0.9,
        ).target.item()  # fmt: skip

    np.testing.assert_allclose(target(False, False), 1 + 0.9 * 7, rtol=1e-6)
    np.testing.assert_allclose(target(False, True), 1 + 0.9 * 3, rtol=1e-6)
    assert target(True, False) == 1.0
