"""The learner of language models: gradients of whole updates against a slow reference, queue, staleness, checkpoints."""

import copy
import math

import numpy as np
import pytest
import torch

from agents.language.errors import LanguageModelError
from learner.checkpoint import CheckpointError, load_state
from learner.language.checkpoint import model_folder, restore_language_checkpoint, save_language_checkpoint
from learner.language.episodes import turn_rewards
from learner.language.learner import LanguageLearner
from learner.language.model import LanguageModel, Lora, load_model
from learner.language.registry import build_objective, objective_kind
from learner.language.settings import LanguageSettings
from learner.language.step import LanguageStep
from learner.learner import NoIntrinsicReward
from learner.settings import RewardSettings
from tests.language_agents_support import tiny_model
from tests.language_learner_support import VOCABULARY, NoTokenizer, episode, network, perturb

CPU = torch.device("cpu")


def _learner(algorithm, model=None, objective=None, **settings):
    kind = objective_kind(algorithm)
    built = build_objective(algorithm, kind.settings(**(objective or {})))
    if model is None:
        model = LanguageModel(
            network(), NoTokenizer(), device=CPU, critic=built.needs_value, reference=built.needs_reference
        )
    given = {"micro_batch_tokens": 40, "max_grad_norm": 1e9, "learning_rate": 1e-3, "batch_episodes": 4, **settings}
    return LanguageLearner(LanguageStep(model, built, LanguageSettings(**given)), RewardSettings(), NoIntrinsicReward())


def _plain(learner):
    """A copy of the policy that attends in the library's own way."""
    net = copy.deepcopy(learner.model.network)
    net.set_attn_implementation("eager")
    return net


def _episodes():
    """Two groups of three with different outcomes, some cut, one with a penalty."""
    return [
        episode(seed, turns=1 + seed % 4, group=seed // 3, reward=float(seed % 3 == 0) * (1 + seed),
                terminated=seed % 2 == 0, penalty=-0.25 if seed == 1 else 0.0, temperature=0.8)
        for seed in range(6)
    ]  # fmt: skip


def _slow_tokens(net, critic, items, temperature):
    """For each episode, rows [log π, log μ, V, turn] of its action tokens and V at its last token, one forward each."""
    found = []
    for item in items:
        rows = []
        for s in item.sequences():
            out = net(input_ids=torch.from_numpy(s.tokens)[None], output_hidden_states=True)
            log_prob = (out.logits[0] / temperature).log_softmax(-1)
            hidden = out.hidden_states[-1][0]
            value = torch.zeros(len(hidden)) if critic is None else critic(hidden)[:, 0]
            rows += [
                (log_prob[n - 1, s.tokens[n]], float(s.log_prob[n]), value[n - 1], int(s.turn[n]))
                for n in np.flatnonzero(s.action)
            ]
        found.append((rows, value[-1]))
    return found


def _slow_loss(algorithm, items, net, reference, critic, beta):
    """The loss of one whole update, from the papers' formulas, by loops over plain numbers."""
    mine = _slow_tokens(net, critic, items, 0.8)
    theirs = _slow_tokens(reference, None, items, 0.8)
    scores = [sum(t.reward + t.penalty for t in e.turns) for e in items]
    rows, advantages, targets = [], [], []
    for number, item in enumerate(items):
        tokens, final = mine[number]
        rows += [(number, *token, other[0].item()) for token, other in zip(tokens, theirs[number][0], strict=True)]
        if algorithm == "grpo":
            peers = [scores[i] for i, e in enumerate(items) if e.group == item.group]
            advantages += [(scores[number] - np.mean(peers)) / np.std(peers, ddof=1)] * len(tokens)
            continue
        reward = []
        for i, (log_prob, _, _, k) in enumerate(tokens):
            last = i + 1 == len(tokens) or tokens[i + 1][3] != k
            bonus = item.turns[k].reward + item.turns[k].penalty if last else 0.0
            reward.append(bonus - beta * (log_prob.item() - theirs[number][0][i][0].item()))
        to_go = 0.0 if item.terminated else final.item()
        returns = []
        for r in reversed(reward):  # γ = λ = 1: the advantage is the return to go minus V
            to_go += r
            returns.insert(0, to_go)
        targets += returns
        advantages += [g - token[2].item() for g, token in zip(returns, tokens, strict=True)]
    if algorithm == "ppo":
        advantages = list((np.array(advantages) - np.mean(advantages)) / np.std(advantages))
    total = torch.zeros(())
    for i, (number, log_prob, behaviour, value, _, ref) in enumerate(rows):
        ratio = (log_prob - log_prob.detach()).exp()
        weight = min(math.exp(min(log_prob.item() - behaviour, 20.0)), 2.0)
        loss = -weight * ratio * advantages[i]
        if algorithm == "grpo":
            x = log_prob - ref
            share = 1 / (len(mine[number][0]) * len(items))
            total = total + share * (loss + beta * ((-x).exp() - 1 + x))
        else:
            total = total + (loss + 0.5 * (value - targets[i]) ** 2) / len(rows)
    return total


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_the_gradient_of_an_update_is_that_of_a_slow_reference(algorithm):
    learner = _learner(algorithm, objective={"kl_coefficient": 0.1})
    model, items = learner.model, _episodes()
    reference = copy.deepcopy(model.network)
    perturb(model.network, 3, 0.02)
    critic = None
    if model.critic is not None:
        perturb(model.critic, 4, 0.3)
        critic = copy.deepcopy(model.critic)
    slow = copy.deepcopy(model.network)
    for net in (slow, reference):
        net.set_attn_implementation("eager")
    loss = _slow_loss(algorithm, items, slow, reference, critic, 0.1)
    loss.backward()
    update = learner.update(items)
    assert update.metrics["loss/total"] == pytest.approx(loss.item(), abs=1e-4)
    assert update.metrics["policy/steps"] == 1
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in slow.parameters()))
    for mine, other in zip(model.network.parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, atol=2e-4 * norm, rtol=2e-3)
    if critic is not None:
        torch.testing.assert_close(model.critic.weight.grad, critic.weight.grad, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("algorithm", ["ppo", "grpo", "rloo", "reinforce++"])
def test_an_update_makes_what_won_likelier(algorithm):
    learner = _learner(algorithm, objective={"kl_coefficient": 0.0}, epochs=4, minibatches=2, learning_rate=3e-3)
    items = [episode(seed, group=seed // 4, reward=float(seed % 2)) for seed in range(8)]
    before = [sum(t[0].item() for t in rows) for rows, _ in _slow_tokens(_plain(learner), None, items, 1.0)]
    update = learner.update(items)
    after = [sum(t[0].item() for t in rows) for rows, _ in _slow_tokens(_plain(learner), None, items, 1.0)]
    gain = np.array(after) - np.array(before)
    assert gain[1::2].mean() > gain[::2].mean() + 1.0
    assert update.metrics["policy/steps"] == 8
    assert all(math.isfinite(value) for value in update.metrics.values())


def test_groups_without_a_difference_are_not_read_and_change_nothing():
    learner = _learner("rloo", objective={"kl_coefficient": 0.0})
    equal = [episode(seed, group=0, reward=1.0) for seed in range(3)]
    weights = copy.deepcopy(learner.model.network.state_dict())
    update = learner.update(equal)
    assert update.metrics["batch/read_share"] == 0.0 and update.metrics["policy/steps"] == 0.0
    assert all(torch.equal(w, weights[name]) for name, w in learner.model.network.state_dict().items())
    mixed = learner.update([*equal, *(episode(9 + s, group=1, reward=float(s), version=1) for s in range(2))])
    assert 0.0 < mixed.metrics["batch/read_share"] < 1.0 and mixed.metrics["policy/steps"] == 1.0
    # No entropy is told where no token was read, and it is that of a token however many were left out.
    assert "policy/entropy" not in update.metrics
    assert 0.5 * math.log(VOCABULARY) < mixed.metrics["policy/entropy"] < math.log(VOCABULARY)


def test_steps_on_parts_of_a_batch_are_as_large_as_there_are_parts():
    """More parts are asked for than there are sequences: each step is on one of as many parts as there are."""
    settings = {"objective": {"kl_coefficient": 0.0}, "learning_rate": 0.0, "max_grad_norm": 1e9}
    items = [episode(seed, group=0, reward=float(seed)) for seed in range(2)]
    whole = _learner("rloo", **settings).update(items)
    parts = _learner("rloo", minibatches=64, **settings).update(items)
    assert whole.metrics["policy/steps"] == 1 < parts.metrics["policy/steps"] < 64
    for name in ("loss/total", "loss/policy", "policy/entropy"):
        assert parts.metrics[name] == pytest.approx(whole.metrics[name], rel=1e-4), name


def test_a_batch_is_whole_groups_and_what_is_stale_is_counted():
    learner = _learner("rloo", objective={"max_lag": 1, "kl_coefficient": 0.0})
    first = [episode(seed, group=0, reward=float(seed)) for seed in range(3)]
    assert learner.feed(first) == []
    (update,) = learner.feed([episode(10 + seed, group=1, reward=float(seed)) for seed in range(3)])
    assert update.samples == 18 and learner.version == 1 and update.lag_max == 0
    learner.version = 5
    assert learner.feed(first) == [] and learner.dropped_samples == 9
    assert learner.feed(first[:1]) == [] and learner.dropped_samples == 12  # alone in its group, so nothing to compare
    assert learner.feed([]) == [] and learner.waiting_groups == ()


def test_rewards_of_turns_are_the_sum_of_their_parts():
    items = _episodes()
    rewards = turn_rewards(items, NoIntrinsicReward(), RewardSettings(scale=2.0, clip=3.0, w_ext=0.5))
    turns = [t for e in items for t in e.turns]
    expected = [0.5 * min(2.0 * t.reward, 3.0) + t.penalty for t in turns]
    np.testing.assert_allclose(rewards.total, expected)


def test_a_batch_that_cannot_be_learned_from_is_refused():
    learner = _learner("rloo", objective={"kl_coefficient": 0.0})
    with pytest.raises(ValueError, match=r"mixes sampling temperatures: 0\.8, 1\.0"):
        learner.update([episode(0), episode(1, temperature=0.8)])
    with pytest.raises(ValueError, match="played greedily"):
        learner.update([episode(0, temperature=0.0)])
    short = LanguageModel(network(context=8), NoTokenizer(), device=CPU)
    with pytest.raises(ValueError, match=r"the model reads 8; set agent\.context=8 or less"):
        _learner("rloo", short, {"kl_coefficient": 0.0}).update([episode(0), episode(1)])
    with pytest.raises(ValueError, match="needs a model with a critic"):
        _learner("ppo", short)
    with pytest.raises(FloatingPointError, match=r"language\.learning_rate"):
        perturb(learner.model.network, 0, float("inf"))
        learner.update([episode(0, reward=0.0), episode(1, reward=1.0)])


@pytest.mark.parametrize("lora", [None, Lora(2, 4)], ids=["whole", "lora"])
def test_a_run_that_was_checkpointed_goes_on_as_one_that_was_not(tmp_path, lora):
    source = str(tiny_model(tmp_path / "source"))

    def learner():
        return _learner("ppo", load_model(source, device=CPU, lora=lora, critic=True, reference=lora is None), epochs=2)

    one = learner()
    one.update(_episodes())
    root = tmp_path / "checkpoints"
    path = save_language_checkpoint(root, 7, one, rest={"more": 1}, origin=source, config="a: 1\n", keep=2)
    other = learner()
    state = load_state(path)
    restore_language_checkpoint(path, other, state, source)
    assert state["more"] == 1 and other.version == 1
    later = [episode(20 + s, group=s // 3, reward=float(s), version=1) for s in range(6)]
    first, second = one.update(later), other.update(later)
    assert first.metrics["policy/reference_kl"] == second.metrics["policy/reference_kl"]
    for name, weight in one.weights().items():
        torch.testing.assert_close(other.weights()[name], weight, rtol=1e-4, atol=1e-6)
    assert model_folder(path).is_dir()
    with pytest.raises(LanguageModelError, match="not the model that the run began with"):
        restore_language_checkpoint(path, other, state, str(tiny_model(tmp_path / "another", seed=1)))
    (path / "model" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"model/model.safetensors differs"):
        model_folder(path)
