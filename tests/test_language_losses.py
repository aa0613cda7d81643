"""Losses of action tokens against plain loops, and their gradients against differences and expectations."""

import math

import pytest
import torch

from learner.language.batch import EpisodeTokens, pack
from learner.language.kl import kl_estimate
from learner.language.losses import aggregation_weights, clipped_surrogate, fresh, importance_weight, value_loss
from learner.language.metrics import policy_metrics
from learner.language.objective import Targets
from learner.language.settings import PolicySettings
from tests.language_support import action_rows, randn, random_batch, sequence

N = 60


def _ratios(seed):
    """Log-probabilities of three policies, far enough apart that every branch is taken."""
    return tuple(-randn(seed + i, N).abs() - 0.1 for i in range(3))


@pytest.mark.parametrize("dual", [None, 1.5])
def test_surrogate_against_a_loop(dual):
    log_prob, proximal, behaviour = _ratios(0)
    advantage = randn(9, N)
    importance = importance_weight(proximal, behaviour, 2.0)
    found = clipped_surrogate(
        log_prob=log_prob, proximal_log_prob=proximal, advantage=advantage, importance=importance,
        clip_low=0.2, clip_high=0.3, dual_clip=dual,
    )  # fmt: skip
    for i in range(N):
        u = math.exp(log_prob[i]) / math.exp(proximal[i])
        w = min(math.exp(proximal[i]) / math.exp(behaviour[i]), 2.0)
        a = advantage[i].item()
        if a >= 0:
            gain = min(u, 1.3) * a
        else:
            gain = max(u, 0.8) * a
            if dual is not None and gain < dual * a:
                gain = dual * a
        assert found[i].item() == pytest.approx(-w * gain)


@pytest.mark.parametrize("dual", [None, 1.5])
def test_surrogate_gradient_is_that_of_differences(dual):
    log_prob, proximal, behaviour = _ratios(3)
    log_prob.requires_grad_()
    advantage, importance = randn(9, N), importance_weight(proximal, behaviour, 2.0)

    def loss(x):
        return clipped_surrogate(
            log_prob=x, proximal_log_prob=proximal, advantage=advantage, importance=importance,
            clip_low=0.2, clip_high=0.3, dual_clip=dual,
        ).sum()  # fmt: skip

    assert torch.autograd.gradcheck(loss, (log_prob,))


def test_at_the_start_of_an_update_it_is_the_weighted_policy_gradient():
    """u = 1: the gradient by log π is −w A, with w = min(π_prox / μ, cap) a constant."""
    proximal, behaviour = torch.tensor([-1.0, -1.0, -1.0]), torch.tensor([-1.5, -0.5, -4.0])
    log_prob = proximal.clone().requires_grad_()
    advantage = torch.tensor([1.0, -2.0, 3.0])
    importance = importance_weight(log_prob, behaviour, 2.0)
    assert not importance.requires_grad
    clipped_surrogate(
        log_prob=log_prob, proximal_log_prob=proximal, advantage=advantage, importance=importance, clip_low=0.2,
        clip_high=0.2,
    ).sum().backward()  # fmt: skip
    expected = [-math.exp(0.5) * 1.0, math.exp(-0.5) * 2.0, -2.0 * 3.0]
    assert log_prob.grad is not None
    assert log_prob.grad.tolist() == pytest.approx(expected)


def test_impossible_ratios_stay_finite_in_float32():
    log_prob = torch.tensor([-1e-6, -500.0, -300.0], requires_grad=True)
    proximal = torch.tensor([-500.0, -1e-6, -300.0])
    importance = importance_weight(proximal, log_prob.detach(), 2.0)
    loss = clipped_surrogate(
        log_prob=log_prob, proximal_log_prob=proximal, advantage=torch.tensor([-1.0, 0.0, 1.0]), importance=importance,
        clip_low=0.2, clip_high=0.2,
    ).sum()  # fmt: skip
    loss = loss + kl_estimate("k3", log_prob, proximal).sum()
    loss.backward()
    assert log_prob.grad is not None
    assert bool(loss.isfinite()) and bool(log_prob.grad.isfinite().all())


@pytest.mark.parametrize("clip", [None, 0.2])
def test_value_loss_against_a_loop_and_differences(clip):
    value, old, target = randn(1, N), randn(2, N), randn(3, N)
    found = value_loss(value, old, target, clip)
    for i in range(N):
        v, o, t = value[i].item(), old[i].item(), target[i].item()
        plain = (v - t) ** 2
        near = v if clip is None else min(max(v, o - clip), o + clip)
        assert found[i].item() == pytest.approx(max(plain, (near - t) ** 2))
    value.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: value_loss(x, old, target, clip), (value,))


def _expected_gradient(estimator, logits, reference):
    """Σ_a π(a) ∇ k(a): what the estimator's gradient is on average, a drawn from the policy."""
    log_p = logits.log_softmax(0)
    weights = log_p.detach().exp()
    return torch.autograd.grad((weights * kl_estimate(estimator, log_p, reference)).sum(), logits)[0]


def test_what_the_gradients_of_the_kl_estimators_are():
    logits = randn(5, 6).requires_grad_()
    reference = randn(6, 6).log_softmax(0)
    log_p = logits.log_softmax(0)
    (reverse,) = torch.autograd.grad((log_p.exp() * (log_p - reference)).sum(), logits, retain_graph=True)
    (forward,) = torch.autograd.grad((reference.exp() * (reference - log_p)).sum(), logits)
    torch.testing.assert_close(_expected_gradient("k1", logits, reference), torch.zeros(6, dtype=torch.float64))
    torch.testing.assert_close(_expected_gradient("k2", logits, reference), reverse)
    torch.testing.assert_close(_expected_gradient("k3", logits, reference), forward)


def test_what_the_values_of_the_kl_estimators_are():
    log_p, reference = randn(5, 6).log_softmax(0), randn(6, 6).log_softmax(0)
    exact = sum(math.exp(p) * (p - q) for p, q in zip(log_p.tolist(), reference.tolist(), strict=True))
    for estimator in ("k1", "k3"):
        assert (log_p.exp() * kl_estimate(estimator, log_p, reference)).sum().item() == pytest.approx(exact)
    for p, q, k2, k3 in zip(
        log_p.tolist(), reference.tolist(), kl_estimate("k2", log_p, reference).tolist(),
        kl_estimate("k3", log_p, reference).tolist(), strict=True,
    ):  # fmt: skip
        assert k2 == pytest.approx((p - q) ** 2 / 2)
        assert k3 == pytest.approx(math.exp(q) / math.exp(p) - 1 - (q - p))
        assert k2 >= 0 and k3 >= 0
    with pytest.raises(ValueError, match="'k4'; there are: k1, k2, k3"):
        kl_estimate("k4", log_p, reference)


@pytest.mark.parametrize("seed", range(6))
def test_aggregation_against_loops(seed):
    batch = random_batch(seed, episodes=4)
    actions, rows = batch.actions(), action_rows(batch)
    x, keep = randn(seed, len(rows)).float(), randn(seed + 1, len(rows)) > -0.3
    kept = [[v.item() for v, k, (e, _) in zip(x, keep, rows, strict=True) if k and e == i] for i in range(4)]
    flat = [v for values in kept for v in values]
    means = [sum(values) / len(values) for values in kept if values]
    expected = {
        "token_mean": sum(flat) / len(flat),
        "episode_mean": sum(means) / len(means),
        "fixed_length": sum(sum(values) / 50 for values in kept) / 4,
    }
    for mode, number in expected.items():
        length = 50 if mode == "fixed_length" else None
        weights = aggregation_weights(mode, actions, keep, fixed_length=length)
        assert (weights * x).sum().item() == pytest.approx(number, abs=1e-6)
        nothing = aggregation_weights(mode, actions, torch.zeros_like(keep), fixed_length=length)
        assert nothing.tolist() == [0.0] * len(rows)
    with pytest.raises(ValueError, match="there are: token_mean"):
        aggregation_weights("mean", actions, keep)
    with pytest.raises(ValueError, match="needs a fixed_length"):
        aggregation_weights("fixed_length", actions, keep)


def test_an_episode_without_action_has_no_part_in_the_mean():
    acted = sequence([(1, False, 0, 0.0), (2, True, 0, -1.0), (2, True, 0, -1.0)])
    idle = sequence([(1, False, -1, 0.0), (2, False, -1, 0.0)])
    batch = pack([EpisodeTokens((acted,), (0,), True), EpisodeTokens((idle,), (), False)])
    weights = aggregation_weights("episode_mean", batch.actions(), torch.ones(2, dtype=torch.bool))
    assert weights.tolist() == [0.5, 0.5]


def test_staleness():
    lag = torch.tensor([0, 3, 4])
    assert fresh(lag, 3).tolist() == [True, True, False]
    assert fresh(lag, None).tolist() == [True, True, True]
    with pytest.raises(ValueError, match="2 versions newer"):
        fresh(torch.tensor([1, -2]), 3)


def _targets(proximal, behaviour, advantage, keep):
    return Targets(
        advantage=advantage, weight=keep.double() / keep.sum(), keep=keep, lag=torch.arange(N) % 4,
        importance=importance_weight(proximal, behaviour, 1.2), behaviour_log_prob=behaviour,
        proximal_log_prob=proximal,
    )  # fmt: skip


def test_metrics_against_a_loop():
    log_prob, proximal, behaviour = _ratios(7)
    advantage, keep = randn(3, N), torch.arange(N) % 4 < 3
    found = policy_metrics(_targets(proximal, behaviour, advantage, keep), log_prob, PolicySettings(importance_cap=1.2))
    u = [math.exp(a - b) for a, b in zip(log_prob.tolist(), proximal.tolist(), strict=True)]
    w = [math.exp(a - b) for a, b in zip(proximal.tolist(), behaviour.tolist(), strict=True)]
    kept = [i for i in range(N) if i % 4 < 3]
    m = len(kept)
    lost = sum((advantage[i] > 0 and u[i] > 1.2) or (advantage[i] < 0 and u[i] < 0.8) for i in kept)
    assert (found.tokens, found.masked_share, found.lag_max) == (N, 0.25, 3)
    assert found.lag_mean == pytest.approx(1.5)
    assert found.clip_fraction == pytest.approx(int(lost) / m)
    assert found.ratio_max == pytest.approx(max(u[i] for i in kept))
    assert found.update_kl == pytest.approx(sum(u[i] - 1 - math.log(u[i]) for i in kept) / m)
    assert found.behaviour_kl == pytest.approx(sum(w[i] - 1 - math.log(w[i]) for i in kept) / m)
    assert found.importance_mean == pytest.approx(sum(min(w[i], 1.2) for i in kept) / m)
    assert found.importance_capped == pytest.approx(sum(w[i] >= 1.2 for i in kept) / m)
    assert found.importance_ess == pytest.approx(sum(w[i] for i in kept) ** 2 / (m * sum(w[i] ** 2 for i in kept)))


def test_metrics_of_a_batch_that_is_all_masked():
    log_prob, proximal, behaviour = _ratios(7)
    nothing = torch.zeros(N, dtype=torch.bool)
    found = policy_metrics(_targets(proximal, behaviour, randn(3, N), nothing), log_prob, PolicySettings())
    assert found.masked_share == 1.0
    assert (found.clip_fraction, found.ratio_max, found.importance_ess, found.update_kl) == (0.0, 0.0, 0.0, 0.0)


def test_metrics_on_policy():
    (log_prob, *_), keep = _ratios(7), torch.ones(N, dtype=torch.bool)
    found = policy_metrics(_targets(log_prob, log_prob, randn(3, N), keep), log_prob, PolicySettings())
    assert (found.ratio_max, found.importance_ess, found.clip_fraction) == (1.0, pytest.approx(1.0), 0.0)
    assert (found.update_kl, found.behaviour_kl) == (0.0, 0.0)
