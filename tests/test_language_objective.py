"""The objectives from rollouts to gradients: each against a loop over plain numbers, in one piece and in micro-batches."""

import dataclasses
import math
import statistics
import subprocess
import sys

import pytest
import torch

from learner.language.batch import EpisodeTokens, pack
from learner.language.kl import kl_estimate
from learner.language.objective import Rollouts
from learner.language.registry import build_objective, objective_kind, objective_names
from learner.language.settings import GRPOSettings, PolicySettings, PPOSettings, ReinforcePlusPlusSettings, RLOOSettings
from tests.language_support import action_rows, randn, random_batch, sequence

EPISODES = 6
VERSION = 4


def _rollouts(seed=0, **changes):
    batch = random_batch(seed, EPISODES, groups=2)
    m = len(batch.actions())
    given = {
        "batch": batch,
        "reward": randn(seed + 1, batch.turns),
        "version": VERSION,
        "proximal_log_prob": -randn(seed + 2, m).abs(),
        "reference_log_prob": -randn(seed + 3, m).abs(),
        "value": randn(seed + 4, m),
        "bootstrap": randn(seed + 5, batch.episodes),
    }
    return Rollouts(**{**given, **changes})


def _settings(name, **changes):
    """Settings under which masks, caps, clips and both places of the KL matter."""
    common = {"max_lag": 3, "importance_cap": 1.5, "kl_coefficient": 0.05, "entropy_coefficient": 0.02}
    return objective_kind(name).settings(**{**common, **changes})


def _slow_advantages(name, settings, rollouts, rows, keep):
    """Advantages, value targets and trained values (or None) from the definitions."""
    reward = [0.0] * len(rows)
    for i, row in enumerate(rows):
        if settings.kl_place == "reward":
            x = rollouts.proximal_log_prob[i].item() - rollouts.reference_log_prob[i].item()
            reward[i] -= settings.kl_coefficient * x  # k1
        if i + 1 == len(rows) or rows[i + 1] != row:
            reward[i] += rollouts.reward[row[1]].item()
    mine = {e: [i for i, row in enumerate(rows) if row[0] == e] for e in range(EPISODES)}
    score = {e: sum(reward[i] for i in tokens) for e, tokens in mine.items()}
    group = rollouts.batch.group.tolist()
    peers = {e: [score[o] for o in mine if group[o] == group[e]] for e in mine}
    if name == "grpo":
        each = {e: (score[e] - statistics.fmean(p)) / statistics.stdev(p) for e, p in peers.items()}
        return [each[e] for e, _ in rows], None
    if name == "rloo":
        each = {e: score[e] - (sum(p) - score[e]) / (len(p) - 1) for e, p in peers.items()}
        return [each[e] for e, _ in rows], None
    target = None
    if name == "reinforce++":
        found = [sum(reward[j] for j in mine[e] if j >= i) for i, (e, _) in enumerate(rows)]
    else:  # γ = λ = 1: the advantage is the return, with the bootstrap where the episode was cut, minus the value
        cut = [0.0 if t else b for t, b in zip(rollouts.batch.terminated, rollouts.bootstrap.tolist(), strict=True)]
        target = [sum(reward[j] for j in mine[e] if j >= i) + cut[e] for i, (e, _) in enumerate(rows)]
        found = [t - v for t, v in zip(target, rollouts.value.tolist(), strict=True)]
    kept = [x for x, k in zip(found, keep, strict=True) if k]
    return [(x - statistics.fmean(kept)) / statistics.pstdev(kept) for x in found], target


@pytest.mark.parametrize("name", ["ppo", "grpo", "rloo", "reinforce++"])
def test_each_objective_against_a_loop(name):
    settings, rollouts = _settings(name), _rollouts(3)
    objective = build_objective(name, settings)
    rows = action_rows(rollouts.batch)
    m = len(rows)
    log_prob, entropy, value = -randn(20, m).abs(), randn(21, m).abs(), randn(22, m)
    loss = objective.loss(objective.prepare(rollouts), log_prob, entropy, value if objective.needs_value else None)

    keep = [VERSION - int(rollouts.batch.version[turn]) <= 3 for _, turn in rows]
    assert any(keep) and not all(keep)
    advantage, target = _slow_advantages(name, settings, rollouts, rows, keep)
    behaviour = rollouts.batch.behaviour_log_prob[rollouts.batch.action].tolist()
    counts = [sum(k for k, (e, _) in zip(keep, rows, strict=True) if e == episode) for episode in range(EPISODES)]
    policy = spread = kl = worth = 0.0
    for i, (episode, _) in enumerate(rows):
        if not keep[i]:
            continue
        share = 1 / sum(keep) if name != "grpo" else 1 / counts[episode] / sum(c > 0 for c in counts)
        prox, ref = rollouts.proximal_log_prob[i].item(), rollouts.reference_log_prob[i].item()
        u, w, a = math.exp(log_prob[i] - prox), min(math.exp(prox - behaviour[i]), 1.5), advantage[i]
        policy -= share * w * min(u * a, min(max(u, 0.8), 1.2) * a)
        spread += share * entropy[i].item()
        if name == "grpo":
            x = ref - log_prob[i].item()
            kl += share * (math.exp(x) - 1 - x)
        if target is not None:
            old, new = rollouts.value[i].item(), value[i].item()
            near = min(max(new, old - 0.2), old + 0.2)
            worth += max((new - target[i]) ** 2, (near - target[i]) ** 2) / sum(keep)
    assert loss.policy.item() == pytest.approx(policy, rel=1e-5)
    assert loss.entropy.item() == pytest.approx(spread, rel=1e-5)
    assert loss.kl.item() == pytest.approx(kl, rel=1e-5)
    assert loss.value.item() == pytest.approx(worth, rel=1e-5)
    assert loss.total.item() == pytest.approx(policy + 0.5 * worth - 0.02 * spread + 0.05 * kl, rel=1e-5)


VARIANTS = {
    "turns": PPOSettings(advantage_level="turn", gae_lambda=0.9, discount=0.95, kl_place="loss", kl_estimator="k2"),
    "dual": PPOSettings(dual_clip=2.0, value_clip=None, normalise_advantage=False, entropy_coefficient=0.1),
    "grpo": GRPOSettings(entropy_coefficient=0.1),
    "dr grpo": GRPOSettings(
        scale_by_deviation=False, aggregation="fixed_length", fixed_length=30, kl_coefficient=0.0, max_lag=None
    ),
    "rloo": RLOOSettings(aggregation="episode_mean"),
    "reinforce++": ReinforcePlusPlusSettings(discount=0.9),
}
NAMES = {PPOSettings: "ppo", GRPOSettings: "grpo", RLOOSettings: "rloo", ReinforcePlusPlusSettings: "reinforce++"}


@pytest.mark.parametrize("variant", VARIANTS)
def test_micro_batches_add_up_and_gradients_are_those_of_differences(variant):
    settings = VARIANTS[variant]
    objective = build_objective(NAMES[type(settings)], settings)
    rollouts = _rollouts(1)
    targets = objective.prepare(rollouts)
    m = len(targets.advantage)
    inputs = tuple(x.requires_grad_() for x in (-randn(20, m).abs(), randn(21, m).abs(), randn(22, m)))

    def total(log_prob, entropy, value, rows=None):
        rows = torch.arange(m) if rows is None else rows
        part = objective.loss(
            targets.take(rows), log_prob[rows], entropy[rows], value[rows] if objective.needs_value else None
        )
        return part.total

    assert torch.autograd.gradcheck(total, inputs)
    whole = total(*inputs)
    order = torch.randperm(rollouts.batch.sequences, generator=torch.Generator().manual_seed(1))
    parts = [rollouts.batch.take(chosen).rows for chosen in order.tensor_split(3)]
    pieces = [total(*inputs, rows=rows) for rows in parts]
    torch.testing.assert_close(torch.stack(pieces).sum(), whole)
    for a, b in zip(
        torch.autograd.grad(sum(pieces), inputs, allow_unused=True, retain_graph=True),
        torch.autograd.grad(whole, inputs, allow_unused=True),
        strict=True,
    ):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b)


def test_turn_level_values_are_trained_where_turns_begin():
    objective = build_objective("ppo", PPOSettings(advantage_level="turn", max_lag=None))
    rollouts = _rollouts(2)
    weight = objective.prepare(rollouts).value_weight
    assert weight is not None
    first = rollouts.batch.actions().first_of_turn
    torch.testing.assert_close(weight, first.float() / first.sum())


def test_without_proximal_log_probs_the_behaviours_stand_for_them():
    targets = build_objective("rloo").prepare(_rollouts(4, proximal_log_prob=None))
    assert targets.importance.tolist() == [1.0] * len(targets.importance)
    assert torch.equal(targets.proximal_log_prob, targets.behaviour_log_prob)


@pytest.mark.parametrize("name", ["ppo", "grpo", "rloo", "reinforce++"])
def test_all_too_stale_is_a_loss_of_zero(name):
    objective = build_objective(name)
    targets = objective.prepare(_rollouts(5, version=100))
    log_prob = targets.proximal_log_prob.clone().requires_grad_()
    value = None if targets.value is None else targets.value + 1.0
    loss = objective.loss(targets, log_prob, None, value)
    loss.total.backward()
    assert loss.total.item() == 0.0
    assert log_prob.grad is not None and log_prob.grad.abs().max() == 0.0


@pytest.mark.parametrize("name", ["ppo", "grpo", "rloo", "reinforce++"])
def test_one_turn_of_one_token(name):
    """The shortest episodes there are, won and lost: the token of the one that won is pushed up."""
    one = sequence([(1, False, 0, 0.0), (2, True, 0, -1.0)])
    batch = pack([EpisodeTokens((one,), (0,), True), EpisodeTokens((one,), (0,), True)])
    objective = build_objective(name, dataclasses.replace(objective_kind(name).settings(), kl_coefficient=0.0))
    log_prob = torch.full((2,), -1.0, requires_grad=True)
    zeros = torch.zeros(2)
    targets = objective.prepare(Rollouts(batch, torch.tensor([1.0, 0.0]), 0, None, None, zeros, zeros))
    objective.loss(targets, log_prob, None, zeros if objective.needs_value else None).total.backward()
    assert log_prob.grad is not None
    assert log_prob.grad[0] < 0 < log_prob.grad[1]


def test_what_is_missing_or_broken_is_told():
    ppo, rloo = build_objective("ppo"), build_objective("rloo")
    fine = _rollouts(6)
    m = len(fine.batch.actions())
    for changes, message in (
        ({"value": None}, rf"PPO with these settings needs value \[{m}\]"),
        ({"bootstrap": None}, rf"needs bootstrap \[{EPISODES}\]"),
        ({"reference_log_prob": None}, "needs reference_log_prob"),
        ({"value": fine.value[1:]}, "value has the shape"),
        ({"reward": fine.reward * float("nan")}, "reward has .* not finite"),
        ({"proximal_log_prob": fine.proximal_log_prob.bfloat16()}, "proximal_log_prob is torch.bfloat16"),
        ({"version": 0}, "newer than those that are trained"),
    ):
        with pytest.raises(ValueError, match=message):
            ppo.prepare(dataclasses.replace(fine, **changes))
    targets = ppo.prepare(fine)
    with pytest.raises(ValueError, match="needs the tokens' values"):
        ppo.loss(targets, targets.proximal_log_prob)
    with pytest.raises(ValueError, match="no critic"):
        rloo.loss(rloo.prepare(fine), targets.proximal_log_prob, None, fine.value)
    with pytest.raises(ValueError, match="needs the tokens' entropies"):
        build_objective("rloo", RLOOSettings(entropy_coefficient=0.1)).loss(targets, targets.proximal_log_prob)


def test_no_action_at_all_and_groups_of_one():
    idle = sequence([(1, False, -1, 0.0), (2, False, -1, 0.0)])
    batch = pack([EpisodeTokens((idle,), (), False)])
    nothing = torch.zeros(0)
    with pytest.raises(ValueError, match="no action token"):
        build_objective("reinforce++").prepare(Rollouts(batch, nothing, 0, reference_log_prob=nothing))
    one = sequence([(1, False, 0, 0.0), (2, True, 0, -1.0)])
    batch = pack([EpisodeTokens((one,), (0,), True, group=3)])
    for name in ("grpo", "rloo"):
        with pytest.raises(ValueError, match="group 3 has only one"):
            build_objective(name).prepare(Rollouts(batch, torch.ones(1), 0, reference_log_prob=-torch.ones(1)))


def test_the_registry():
    assert objective_names() == ("ppo", "grpo", "rloo", "reinforce++")
    for name in objective_names():
        assert type(build_objective(name).policy_settings) is objective_kind(name).settings
    with pytest.raises(ValueError, match=r"no objective 'reinforce' .* did you mean 'reinforce\+\+'"):
        objective_kind("reinforce")
    with pytest.raises(ValueError, match="'rloo' takes RLOOSettings, not GRPOSettings"):
        build_objective("rloo", GRPOSettings())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (PPOSettings(clip_low=0.0), "clip_low"),
        (PPOSettings(dual_clip=1.0), "dual_clip must be above 1"),
        (PPOSettings(aggregation="mean"), "aggregation must be one of token_mean, episode_mean, fixed_length"),
        (PPOSettings(fixed_length=10), "fixed_length has no effect"),
        (PPOSettings(aggregation="fixed_length"), "needs a fixed_length"),
        (PPOSettings(kl_place="loss"), "'k1' has a gradient of mean zero"),
        (PPOSettings(advantage_level="step"), "advantage_level must be one of token, turn"),
        (PPOSettings(discount=1.1), r"discount must be in \[0, 1\]"),
        (PPOSettings(value_clip=0.0), "value_clip"),
        (PPOSettings(max_lag=-1), "max_lag"),
        (GRPOSettings(kl_estimator="k4"), "kl_estimator must be one of k1, k2, k3"),
        (ReinforcePlusPlusSettings(discount=-0.1), "discount"),
    ],
)
def test_settings_that_mean_nothing(settings, message):
    with pytest.raises(ValueError, match=message):
        build_objective(NAMES[type(settings)], settings)


def test_settings_and_names_load_no_torch():
    code = "import sys; import learner.language.registry as r; r.objective_names(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.parametrize("name", ["ppo", "grpo", "rloo", "reinforce++"])
def test_a_policy_learns_a_bandit(name):
    """Four arms, one good: with nothing but this package and SGD the policy finds it, whatever the algorithm."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.zeros(4, requires_grad=True)
    objective = build_objective(name)
    reference = torch.full((4,), math.log(0.25))
    for version in range(16):
        log_p = logits.log_softmax(0)
        arms = torch.multinomial(log_p.detach().exp(), 16, replacement=True, generator=generator)
        episodes = [
            EpisodeTokens((sequence([(9, False, 0, 0.0), (int(a), True, 0, log_p[a].item())]),), (version,), True)
            for a in arms
        ]
        reward = (arms == 2).float()
        zeros = torch.zeros(16)
        targets = objective.prepare(Rollouts(pack(episodes), reward, version, None, reference[arms], zeros, zeros))
        loss = objective.loss(targets, log_p[arms], None, zeros if objective.needs_value else None)
        (gradient,) = torch.autograd.grad(loss.total, logits)
        logits = (logits - 4.0 * gradient).detach().requires_grad_()
    assert logits.softmax(0)[2] > 0.9


def test_the_kl_loss_holds_the_policy_at_its_reference():
    """With no reward at all, k2 and k3 in the loss lead the policy back to the reference; that is what they are for."""
    reference = randn(5, 4).log_softmax(0)
    assert reference.exp().max() > 0.3
    for estimator in ("k2", "k3"):
        logits = torch.zeros(4, dtype=torch.float64, requires_grad=True)
        for _ in range(300):
            log_p = logits.log_softmax(0)
            loss = (log_p.detach().exp() * kl_estimate(estimator, log_p, reference)).sum()
            logits = (logits - torch.autograd.grad(loss, logits)[0]).detach().requires_grad_()
        torch.testing.assert_close(logits.log_softmax(0), reference, atol=1e-4, rtol=0.0)


def test_policy_settings_are_shared():
    assert all(issubclass(objective_kind(name).settings, PolicySettings) for name in objective_names())
