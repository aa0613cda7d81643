"""Credit of language-model agents, with a tiny random Qwen3: shared and separate backbones, adapters, components."""

import copy

import numpy as np
import pytest
import torch

from envs import registry
from learner.checkpoint import checkpoints
from learner.credit.attribution import CreditRule
from learner.credit.estimator import ProgressEstimator
from learner.credit.features import decoder_reader, turn_features
from learner.credit.language import (
    LanguageCredit,
    component_advantage,
    episodes_of,
    turns_of,
)
from learner.credit.progress import episode_sums, progress_loss
from learner.credit.registry import build_credit
from learner.credit.separate import SeparateEstimator, spoken_episodes
from learner.credit.settings import CreditSettings
from learner.language.advantages import leave_one_out, token_rewards, whiten
from learner.language.attention import PACKED
from learner.language.batch import EpisodeTokens, TokenSequence, pack
from learner.language.episodes import episode_tokens
from learner.language.learner import LanguageLearner
from learner.language.model import LanguageModel, Lora, load_model, width_of
from learner.language.objective import Rollouts
from learner.language.registry import build_objective, objective_kind
from learner.language.settings import LanguageSettings, PPOSettings, RLOOSettings
from learner.language.step import LanguageStep
from learner.learner import NoIntrinsicReward
from learner.settings import RewardSettings
from orchestration.configuration import attributes_credit, load_config
from orchestration.errors import ConfigError
from orchestration.traces.credit import credit_of
from orchestration.traces.reader import read_trace, trace_files
from tests.language_agents_support import Corridor, tiny_model
from tests.language_learner_support import NoTokenizer, episode, network
from tests.language_support import action_rows, randn, random_batch
from tests.test_language_runs import metrics, train, weights

CPU = torch.device("cpu")
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


def test_features_are_read_at_the_last_action_token_of_each_turn(qwen):
    batch = random_batch(5)
    with torch.no_grad():
        found = turn_features(decoder_reader(qwen), batch, limit=12)
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
            features = turn_features(decoder_reader(qwen), batch, limit=64)
        of_turn = [int(batch.tokens[batch.action & (batch.turn == k)][-1]) for k in range(batch.turns)]
        first = [batch.turn_episode.tolist().index(e) for e in range(6)]
        return batch, features, [float(of_turn[k] < 5) for k in first]

    for seed in range(50):
        batch, features, outcome = some(seed)
        for played in episodes_of(features, batch, outcome, version=seed):
            estimator.observe(played)
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


def own(qwen, adapters, draw=1, **settings) -> SeparateEstimator:
    """An estimator with a copy of the network as its backbone, read in passes of one or two sequences; adapters drawn anew."""
    torch.manual_seed(draw)
    lora = Lora(2, 4, "q_proj,v_proj") if adapters else None
    backbone = LanguageModel(copy.deepcopy(qwen), NoTokenizer(), device=CPU, lora=lora)
    for name, parameter in backbone.network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    given = {"hidden": 8, "heads": 2, "min_episodes": 1, "holdout": 0.0, "backbone_learning_rate": 1e-2, **settings}
    return SeparateEstimator(CreditSettings(learning_rate=1e-2, **given), backbone, limit=12, seed=0, device=CPU)


@pytest.mark.parametrize("adapters", [False, True])
def test_a_separate_backbone_learns_by_the_gradient_of_the_whole_batch(qwen, adapters):
    """Read in many passes, though episodes go over several; against autograd over everything at once."""
    estimator = own(qwen, adapters)
    batch = random_batch(4)
    assert batch.sequences > batch.episodes  # or it would show nothing
    outcome = [1.0, 0.0, 1.0, 0.5]
    episodes = spoken_episodes(batch, outcome, version=3)
    network = estimator.backbone.network
    trained = {f"network.{name}": p for name, p in network.named_parameters() if p.requires_grad}
    trained |= {f"heads.{name}": p for name, p in estimator.heads.named_parameters()}
    frozen = {name: p.detach().clone() for name, p in network.named_parameters() if not p.requires_grad}
    for mask in (None, torch.tensor([[1.0, 0.0, 1.0, 1.0], [0.0, 1.0, 1.0, 0.0]])):
        network.set_attn_implementation("eager")
        found = estimator.heads(turn_features(decoder_reader(network), batch, limit=1000))
        network.set_attn_implementation(PACKED)
        sums = episode_sums(found, torch.ones(batch.turns), batch.turn_episode, batch.episodes)
        loss = progress_loss(sums, torch.tensor(outcome), mask)
        expected = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
        estimator.optimizer.zero_grad()
        told = estimator._gradient(episodes, mask)
        assert told == pytest.approx(loss.item(), rel=1e-5)
        for (name, parameter), gradient in zip(trained.items(), expected, strict=True):
            if gradient is not None:
                assert parameter.grad is not None, name
                torch.testing.assert_close(parameter.grad, gradient, atol=1e-6, rtol=1e-4)
    for each in episodes:
        estimator.observe(each)
    estimator.learn(25)
    assert estimator.loss < 0.5 * told
    assert all(torch.equal(p, frozen[name]) for name, p in network.named_parameters() if not p.requires_grad)
    assert bool(frozen) == adapters


@pytest.mark.parametrize("adapters", [False, True])
def test_a_separate_estimator_is_published_measured_and_resumed(qwen, adapters):
    made = {"holdout": 0.25, "publish_every": 2, "squash": 1.0, "uncertainty": 0.5}
    one = own(qwen, adapters, **made)
    other = own(qwen, adapters, draw=2, **made)
    batch = random_batch(5, episodes=8)
    outcome = [float(n % 2) for n in range(8)]
    assert one.contributions(batch)[0].tolist() == [0.0] * batch.turns  # nothing is known yet
    for each in spoken_episodes(batch, [*outcome[:7], float("nan")], version=1):
        one.observe(each)
    assert sum(one.replay.counts) + sum(one.held_out.counts) == 7, "what has no outcome is left out"
    one.learn(3)
    assert one.version == 1 and one.metrics()["progress/held_out_episodes"] == 16
    other.load_state_dict(one.state_dict())
    for estimator in (one, other):
        estimator.learn(3)
    assert one.metrics() == other.metrics() and one.version == 3
    for mine, theirs in zip(one.contributions(batch), other.contributions(batch), strict=True):
        np.testing.assert_array_equal(mine, theirs)
        assert mine.any()


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


# The learner.


def language_learner(algorithm="rloo", objective=None, w_prog=2.0, backbone=None, **credit) -> LanguageLearner:
    kind = objective_kind(algorithm)
    built = build_objective(algorithm, kind.settings(**{"kl_coefficient": 0.0, **(objective or {})}))
    model = LanguageModel(network(), NoTokenizer(), device=CPU, critic=built.needs_value)
    reward = RewardSettings(w_prog=w_prog, w_ground=0.125)
    settings = {"method": "spa+grounding", "min_episodes": 2, "publish_every": 2, "holdout": 0.0, **credit}
    attributed = LanguageCredit(
        CreditSettings(**settings), reward, discount=1.0, bootstraps=built.needs_value, width=width_of(model.network), limit=40,
        seed=0, device=CPU, backbone=None if backbone is None else LanguageModel(network(), NoTokenizer(), device=CPU),
    )  # fmt: skip
    given = LanguageSettings(micro_batch_tokens=40, learning_rate=1e-3, batch_episodes=4)
    return LanguageLearner(LanguageStep(model, built, given), reward, NoIntrinsicReward(), credit=attributed)


def groups(first: int, count: int):
    """Groups of four episodes of 1 to 4 turns, two of which succeed."""
    for group in range(first, first + count):
        yield [
            episode(10 * group + n, turns=1 + n, group=group, reward=float(n % 2), terminated=n != 3) for n in range(4)
        ]


@pytest.mark.parametrize("backbone", [None, "full"])
def test_what_the_learner_pays_adds_up(backbone):
    learner = language_learner(conserve=True, backbone=backbone)
    for group in groups(0, 4):
        (update,) = learner.feed(group)
        m = update.metrics
        turns, won = sum(e.length for e in group), 2
        assert m["reward/progress"] == pytest.approx(2.0 * won / turns) and m["reward/grounding"] == pytest.approx(
            0.125
        )
        parts = sum(m[f"reward/{name}"] for name in ("extrinsic", "intrinsic", "penalty", "progress", "grounding"))
        assert m["reward/total"] == pytest.approx(parts)
    told = learner.credit.metrics()
    assert told["progress/version"] == 2 and (told["progress/episodes_low"], told["progress/episodes_high"]) == (8, 8)


def test_features_do_not_depend_on_micro_batches():
    learner = language_learner()
    (group,) = groups(0, 1)
    batch = pack([episode_tokens(e) for e in group])
    few, all_at_once = (turn_features(learner.model.hidden, batch, limit) for limit in (1, 10_000))
    torch.testing.assert_close(few, all_at_once, atol=1e-5, rtol=1e-4)


def test_stages_and_resuming():
    def make():
        return language_learner(schedule="staged", explore_steps=25, estimate_steps=3)

    learner, other = make(), make()
    played = list(groups(0, 5))
    before = {k: v.clone() for k, v in learner.weights().items()}
    assert [len(learner.feed(group)) for group in played[:3]] == [0, 0, 0]  # 10 turns each
    assert all(torch.equal(before[k], v) for k, v in learner.weights().items())
    assert not learner.credit.exploring and learner.credit.metrics()["progress/version"] == 2
    other.credit.load_state_dict(learner.state_dict()["credit"])
    for group in played[3:]:
        mine, theirs = learner.feed(group), other.feed(group)
        assert {k: v for k, v in mine[0].metrics.items() if "second" not in k} == {
            k: v for k, v in theirs[0].metrics.items() if "second" not in k
        }
    assert learner.credit.metrics() == other.credit.metrics() and learner.version == 2


def test_separate_advantages_train_the_model():
    learner = language_learner(advantage="separate", conserve=True)
    before = {k: v.clone() for k, v in learner.weights().items()}
    for group in groups(0, 3):
        learner.feed(group)
    assert any(not torch.equal(before[k], v) for k, v in learner.weights().items())
    with pytest.raises(ValueError, match="PPO has one critic"):
        next(language_learner("ppo", advantage="separate").feed(group) for group in groups(0, 1))
    with pytest.raises(ValueError, match=r"which learner\.algorithm=rloo makes itself"):
        language_learner(method="leave_one_out")


@pytest.mark.parametrize("algorithm", ["ppo", "rloo"])
def test_a_potential_is_taken_back_where_a_cut_is_the_end(algorithm):
    """Without a critic the return of an episode that was cut ends there, so its shaping has to sum to 0 as any other's."""
    learner = language_learner(algorithm, method="potential")
    assert learner.credit is not None and learner.credit.estimator is not None
    learner.credit.estimator.contributions = lambda features: (np.ones(len(features)), np.zeros(len(features)))
    (group,) = groups(0, 1)
    batch = pack([episode_tokens(e) for e in group])
    nothing, lengths = np.zeros(batch.turns), [e.length for e in group]
    paid = learner.credit.attribute(
        batch, extrinsic=nothing, intrinsic=nothing, grounded=np.ones(batch.turns, bool), outcome=np.ones(4),
        policy=learner.model.hidden, version=0,
    )  # fmt: skip
    sums = [part.sum() for part in np.split(paid.progress, np.cumsum(lengths)[:-1])]
    cut = 2.0 * lengths[3] if algorithm == "ppo" else 0.0  # the critic's value of the last state takes it back
    np.testing.assert_allclose(sums, [0.0, 0.0, 0.0, cut])


def test_a_penalty_counts_beside_separate_advantages():
    """All else is equal between the episodes, and nothing is paid for progress."""
    learner = language_learner(advantage="separate", w_prog=0.0)
    assert learner.credit is not None
    learner.credit.weights[:] = 0.0
    before = {k: v.clone() for k, v in learner.weights().items()}
    group = [episode(n, turns=2, group=0, penalty=-float(n % 2)) for n in range(4)]
    (update,) = learner.feed(group)
    assert update.metrics["reward/penalty"] == -0.25
    assert any(not torch.equal(before[k], v) for k, v in learner.weights().items())


def test_the_configuration_of_language_models():
    keys = [
        "agent.model=tiny",
        "env.id=textworld/w2-o3-q4",
        "credit.method=spa",
        "reward.w_prog=1",
        "reward.model=none",
    ]
    rloo = ["learner.algorithm=rloo", "agent.group_size=4"]
    plain = [key for key in keys if key != "credit.method=spa"]
    assert attributes_credit(load_config(None, [*keys, *rloo]))
    with pytest.raises(ConfigError, match=r"credit\.max_turns: has no effect, as a language model acts"):
        load_config(None, [*keys, *rloo, "credit.max_turns=5"])
    with pytest.raises(ConfigError, match=r"credit\.method=leave_one_out: gives advantages.*learner\.algorithm=rloo"):
        load_config(None, [*plain, *rloo, "credit.method=leave_one_out"])
    shaped = [*plain, "learner.algorithm=ppo", "credit.method=potential", "language.objective.discount=0.9"]
    with pytest.raises(ConfigError, match=r"credit\.method=potential: .*discount=0\.9 counts by tokens"):
        load_config(None, shaped)
    load_config(None, [*shaped, "language.objective.advantage_level=turn"])
    load_config(
        None, [*keys, *rloo, "credit.backbone=lora", "credit.lora_rank=4", "credit.backbone_learning_rate=1e-5"]
    )
    with pytest.raises(ConfigError, match=r"credit\.lora_rank: has no effect, as credit\.backbone=full"):
        load_config(None, [*keys, *rloo, "credit.backbone=full", "credit.lora_rank=4"])
    with pytest.raises(ConfigError, match=r"credit\.backbone_learning_rate: has no effect, as credit\.backbone=shared"):
        load_config(None, [*keys, *rloo, "credit.backbone_learning_rate=1e-5"])
    with pytest.raises(ConfigError, match=r"credit\.backbone: has no effect, as a network acts"):
        load_config("minihack_spa", ["credit.backbone=full"])
    for more in (["learner.algorithm=ppo"], rloo):
        with pytest.raises(ConfigError, match=r"credit\.advantage=separate: learner\.algorithm="):
            load_config(None, [*keys, *more, "credit.advantage=separate"])


@pytest.fixture
def corridor():
    registry.register_text_family("corridor", lambda name, **options: Corridor(**options), lambda: ["corridor/test"])
    yield
    del registry._families["corridor"]


@pytest.mark.usefixtures("corridor")
@pytest.mark.parametrize("backbone", ["shared", "full", "lora"])
def test_a_serial_run_that_was_resumed_equals_one_that_was_not(tmp_path, backbone):
    """From the configuration to checkpoints and on."""
    model = tiny_model(tmp_path / "model")
    keys = (
        "language.objective.kl_coefficient=0", "reward.model=none", "reward.w_prog=1",
        "credit.method=spa", "credit.conserve=true", "credit.min_episodes=1", "credit.publish_every=1", "credit.holdout=0.25",
        "language.learning_rate=1e-3", f"credit.backbone={backbone}",
    )  # fmt: skip
    whole = train(tmp_path, "whole", model, 48, *keys)
    train(tmp_path, "parts", model, 24, *keys)
    train(tmp_path, "parts", model, 48, *keys, resume=True)
    one, other = metrics(tmp_path / "whole"), metrics(tmp_path / "parts")
    assert whole.status == "done" and weights(tmp_path / "whole") == weights(tmp_path / "parts")
    names = ("reward/progress", "reward/total", "progress/episodes_low", "progress/episodes_high", "progress/version")
    assert [[m[name] for name in names] for m in one] == [[m[name] for name in names] for m in other]
    assert one[-1]["progress/episodes_low"] + one[-1]["progress/episodes_high"] > 0


@pytest.mark.usefixtures("corridor")
@pytest.mark.parametrize("backbone", ["shared", "full", "lora"])
def test_the_credit_of_a_traced_episode_is_what_the_estimator_makes_of_its_tokens(tmp_path, monkeypatch, backbone):
    """`yendor trace show --credit`: features of each turn's tokens equal those of the learner's packed episodes."""
    model = tiny_model(tmp_path / "model")
    keys = (
        "language.objective.kl_coefficient=0", "reward.model=none", "reward.w_prog=1", "trace.rate=1", "agent.failure_penalty=0.1",
        "credit.method=spa", "credit.conserve=true", "credit.min_episodes=1", "credit.publish_every=1", "credit.holdout=0",
        "language.learning_rate=1e-3", f"credit.backbone={backbone}",
    )  # fmt: skip
    train(tmp_path, "run", model, 48, *keys)
    # It has met no success to learn from; what it reads is what matters here.
    square = lambda self, features: (features.square().mean(1).double().numpy(), np.zeros(len(features)))  # noqa: E731
    monkeypatch.setattr(ProgressEstimator, "contributions", square)
    own_square = lambda self, batch: square(self, turn_features(self.backbone.hidden, batch, 10_000).detach())  # noqa: E731
    monkeypatch.setattr(SeparateEstimator, "contributions", own_square)
    files = [path for path in trace_files(tmp_path / "run") if not path.name.endswith(".part")]
    newest = checkpoints(tmp_path / "run" / "checkpoints")[-1]
    # The policy has moved on since; a backbone of the estimator's own has not, as it has not learnt.
    network = load_model(str(newest / "model" if backbone == "shared" else model), device=CPU)
    for path in files[:4]:
        trace = read_trace(path)
        found = credit_of(trace)
        assert found.checkpoint == str(newest) and len(found.turns) == len(trace.steps)
        assert found.sums()["progress"] == pytest.approx(found.outcome)
        calls = [event for event in trace.events if event.type == "llm_call"]
        told = EpisodeTokens(
            sequences=tuple(
                TokenSequence(
                    tokens=torch.tensor([*call.prompt, *call.output]),
                    action=torch.tensor([False] * len(call.prompt) + [True] * len(call.output)),
                    turn=torch.tensor([-1] * len(call.prompt) + [number] * len(call.output)),
                    behaviour_log_prob=torch.zeros(len(call.prompt) + len(call.output)),
                )
                for number, call in enumerate(calls)
            ),
            versions=tuple(0 for _ in calls), terminated=True, group=0,
        )  # fmt: skip
        batch = pack([told])
        features = turn_features(network.hidden, batch, limit=10_000)
        expected = features.float().square().mean(1).detach().numpy()
        np.testing.assert_allclose([turn.contribution for turn in found.turns], expected, rtol=1e-4)
        unread = ["failure" in call.sampling for call in calls]
        assert unread == ["could not be read" in turn.why for turn in found.turns]
