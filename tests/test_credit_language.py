"""Credit of language-model agents, with a tiny random Qwen3: shared and separate backbones, adapters, components."""

import copy

import numpy as np
import pytest
import torch

from learner.credit.attribution import CreditRule
from learner.credit.estimator import ProgressEstimator
from learner.credit.language import (
    SeparateEstimator,
    component_advantage,
    decoder_reader,
    episodes_of,
    turn_features,
    turns_of,
)
from learner.credit.progress import ProgressHeads, episode_sums, progress_loss
from learner.credit.registry import build_credit
from learner.credit.settings import CreditSettings
from learner.language.advantages import leave_one_out, token_rewards, whiten
from learner.language.objective import Rollouts
from learner.language.registry import build_objective
from learner.language.settings import PPOSettings, RLOOSettings
from tests.language_support import action_rows, randn, random_batch

WIDTH = 16


@pytest.fixture(scope="module")
def qwen():
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=11, hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=64,
    )  # fmt: skip
    return Qwen3ForCausalLM(config)


def parts_of(batch):
    return [[s] for s in range(batch.sequences)]


def test_features_are_read_at_the_last_action_token_of_each_turn(qwen):
    batch = random_batch(5)
    whole = batch.take(torch.arange(batch.sequences))
    with torch.no_grad():
        hidden = decoder_reader(qwen)(whole)
    found = turn_features(hidden, batch)
    positions = batch.action.nonzero().squeeze(1).tolist()
    for turn in range(batch.turns):
        last = max(n for n, (_, row) in zip(positions, action_rows(batch), strict=True) if row == turn)
        sequence = int(batch.sequence[last])
        low = int(batch.offsets[sequence])
        with torch.no_grad():  # what comes after the turn is not read
            alone = qwen.get_decoder()(input_ids=batch.tokens[None, low : last + 1]).last_hidden_state[0, -1]
        torch.testing.assert_close(found[turn], alone, atol=1e-5, rtol=1e-4)


def test_a_shared_backbone_feeds_the_same_estimator(qwen):
    """Episodes of 1 to 4 turns; the outcome is whether the last token of the first turn is below 5."""
    settings = CreditSettings(min_episodes=2, hidden=32, learning_rate=5e-3, publish_every=50, holdout=0.2)
    estimator = ProgressEstimator(settings, WIDTH, seed=0, device=torch.device("cpu"))

    def some(seed):
        batch = random_batch(seed, episodes=6)
        with torch.no_grad():
            hidden = decoder_reader(qwen)(batch.take(torch.arange(batch.sequences)))
        of_turn = [int(batch.tokens[batch.action & (batch.turn == k)][-1]) for k in range(batch.turns)]
        first = [batch.turn_episode.tolist().index(e) for e in range(6)]
        return batch, turn_features(hidden, batch), [float(of_turn[k] < 5) for k in first]

    for seed in range(50):
        batch, features, outcome = some(seed)
        for episode in episodes_of(features, batch, outcome, version=seed):
            estimator.observe(episode)
    assert sum(estimator.replay.counts) + sum(estimator.held_out.counts) == 300
    estimator.learn(400)
    batch, features, outcome = some(1)
    found, _ = estimator.contributions(features)
    turns = turns_of(
        batch, extrinsic=np.zeros(batch.turns), intrinsic=np.zeros(batch.turns),
        grounded=np.ones(batch.turns, bool), progress=found, outcome=np.array(outcome),
    )  # fmt: skip
    assert np.corrcoef(turns.sums(found), outcome)[0, 1] > 0.8
    paid = build_credit("spa", CreditRule(conserve=True)).attribute(turns).total
    np.testing.assert_allclose(turns.sums(paid), outcome)
    # As the objectives take it: on each turn's last action token.
    tokens = token_rewards(torch.from_numpy(paid), batch.actions())
    torch.testing.assert_close(batch.actions().sum_by_turn(tokens), torch.from_numpy(paid))


@pytest.mark.parametrize("adapters", [False, True])
def test_a_separate_backbone_learns_by_the_gradient_of_the_whole_batch(qwen, adapters):
    """Read sequence by sequence, though episodes go over several; against autograd over everything at once."""
    network = copy.deepcopy(qwen)
    if adapters:
        from peft import LoraConfig, inject_adapter_in_model

        network = inject_adapter_in_model(LoraConfig(r=2, target_modules=["q_proj", "v_proj"]), network)
        for name, parameter in network.named_parameters():
            parameter.requires_grad_("lora_" in name)
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    heads = ProgressHeads(WIDTH, hidden=8, heads=2, constraint="none", seed=0)
    estimator = SeparateEstimator(network, decoder_reader(network), heads, learning_rate=1e-2)
    batch = random_batch(4)
    assert batch.sequences > batch.episodes  # or it would show nothing
    outcome = torch.tensor([1.0, 0.0, 1.0, 0.5])
    whole = batch.take(torch.arange(batch.sequences))
    features = turn_features(decoder_reader(network)(whole), batch)
    sums = episode_sums(heads(features), torch.ones(batch.turns), batch.turn_episode, batch.episodes)
    loss = progress_loss(sums, outcome)
    trained = {name: p for name, p in estimator.named_parameters() if p.requires_grad}
    expected = dict(zip(trained, torch.autograd.grad(loss, list(trained.values()), allow_unused=True), strict=True))
    frozen = {name: p.clone() for name, p in estimator.named_parameters() if not p.requires_grad}
    told = estimator.step(batch, outcome, parts_of(batch))
    assert told == pytest.approx(loss.item(), rel=1e-5)
    for name, gradient in expected.items():
        if gradient is not None:
            torch.testing.assert_close(trained[name].grad, gradient, atol=1e-6, rtol=1e-4)
    assert all(torch.equal(p, dict(estimator.named_parameters())[name]) for name, p in frozen.items())
    assert bool(frozen) == adapters
    for _ in range(25):
        last = estimator.step(batch, outcome, parts_of(batch))
    assert last < 0.3 * told


def test_leave_one_out_is_that_of_the_objective():
    batch = random_batch(2, episodes=6, groups=2)
    reward = randn(1, batch.turns)
    turns = turns_of(
        batch, extrinsic=reward.numpy(), intrinsic=np.zeros(batch.turns), grounded=np.ones(batch.turns, bool)
    )
    found = build_credit("leave_one_out", CreditRule()).attribute(turns).total
    score = reward.new_zeros(6).index_add(0, batch.turn_episode, reward)
    torch.testing.assert_close(torch.from_numpy(found), leave_one_out(score, batch.group)[batch.turn_episode])


def test_each_components_advantage_is_normalised_by_itself():
    batch = random_batch(3, episodes=6, groups=2)
    objective = build_objective("rloo", RLOOSettings(kl_coefficient=0.0))
    parts = torch.stack([randn(1, batch.turns), 1000.0 * randn(2, batch.turns)])
    found = component_advantage(objective, Rollouts(batch, parts.sum(0), version=2), parts, torch.tensor([1.0, 0.5]))
    actions, expected = batch.actions(), 0.0
    for part, weight in zip(parts, (1.0, 0.5), strict=True):
        score = actions.sum_by_episode(token_rewards(part, actions))
        advantage = leave_one_out(score, batch.group)[actions.episode]
        expected = expected + weight * whiten(advantage, torch.ones_like(advantage, dtype=torch.bool))
    torch.testing.assert_close(found, expected)
    with pytest.raises(ValueError, match="PPO has one critic for all components"):
        component_advantage(build_objective("ppo", PPOSettings()), Rollouts(batch, parts[0], version=2), parts, parts)


def test_an_episode_without_a_turn_is_an_error():
    batch = random_batch(3)
    import dataclasses

    wrong = dataclasses.replace(batch, terminated=torch.cat([batch.terminated, torch.tensor([True])]),
                                group=torch.cat([batch.group, torch.tensor([0])]))  # fmt: skip
    with pytest.raises(ValueError, match="offsets must rise"):
        turns_of(
            wrong, extrinsic=np.zeros(batch.turns), intrinsic=np.zeros(batch.turns), grounded=np.ones(batch.turns, bool)
        )
