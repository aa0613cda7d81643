"""The APPO loss against a plain loop over samples."""

import math

import numpy as np
import pytest
import torch

from learner.objective import appo_loss, normalise
from learner.settings import LearnerSettings


def test_loss_against_a_loop():
    rng = np.random.default_rng(3)
    n, actions = 50, 4
    settings = LearnerSettings(ratio_clip=0.1, value_clip=0.2, value_coefficient=0.7, entropy_coefficient=0.05)
    logits = torch.tensor(rng.normal(size=(n, actions)))
    log_probs = torch.log_softmax(logits, dim=1)
    action = torch.tensor(rng.integers(actions, size=n))
    behaviour = torch.tensor(rng.normal(-1.4, 0.3, size=n))
    value, old_value, advantage, target = (torch.tensor(rng.normal(size=n)) for _ in range(4))
    loss = appo_loss(
        log_probs=log_probs, action=action, behaviour_log_prob=behaviour, value=value, behaviour_value=old_value,
        advantage=advantage, target=target, settings=settings,
    )  # fmt: skip
    policy = worth = entropy = clipped = kl = 0.0
    for i in range(n):
        p = [math.exp(x) for x in log_probs[i].tolist()]
        ratio = p[action[i]] / math.exp(behaviour[i])
        bounded = min(max(ratio, 1 / 1.1), 1.1)
        a = advantage[i].item()
        policy -= min(ratio * a, bounded * a) / n
        near = old_value[i].item() + max(-0.2, min(0.2, value[i].item() - old_value[i].item()))
        worth += max((value[i].item() - target[i].item()) ** 2, (near - target[i].item()) ** 2) / n
        entropy -= sum(q * math.log(q) for q in p) / n
        clipped += (ratio < 1 / 1.1 or ratio > 1.1) / n
        kl += (ratio - 1 - math.log(ratio)) / n
    assert loss.policy.item() == pytest.approx(policy)
    assert loss.value.item() == pytest.approx(worth)
    assert loss.entropy.item() == pytest.approx(entropy)
    assert loss.clipped.item() == pytest.approx(clipped)
    assert loss.kl.item() == pytest.approx(kl)
    assert loss.total.item() == pytest.approx(policy + 0.7 * worth - 0.05 * entropy)


def test_gradient_on_policy_is_the_policy_gradient():
    """At ratio 1 the surrogate's gradient is −A ∇ log π(a)."""
    logits = torch.tensor([[0.3, -0.2, 0.9]], requires_grad=True)
    log_probs = torch.log_softmax(logits, dim=1)
    settings = LearnerSettings(entropy_coefficient=0.0, value_coefficient=0.0)
    zero = torch.zeros(1)
    appo_loss(
        log_probs=log_probs, action=torch.tensor([2]), behaviour_log_prob=log_probs[:, 2].detach(), value=zero,
        behaviour_value=zero, advantage=torch.tensor([1.7]), target=zero, settings=settings,
    ).total.backward()  # fmt: skip
    p = torch.softmax(torch.tensor([0.3, -0.2, 0.9]), dim=0)
    expected = -1.7 * (torch.tensor([0.0, 0.0, 1.0]) - p)
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad[0], expected)


def test_normalise():
    x = normalise(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert x.mean().item() == pytest.approx(0.0, abs=1e-6)
    assert x.std(unbiased=False).item() == pytest.approx(1.0, rel=1e-4)
    assert torch.equal(normalise(torch.full((4,), 2.5)), torch.zeros(4))
