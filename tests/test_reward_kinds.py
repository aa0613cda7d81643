"""The kinds of reward model, each against a computation that shares nothing with it."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from envs.captions import caption_id
from reward_server.kinds import KINDS, Source
from reward_server.models import build_reward_model, reward_model_kind
from reward_server.models.base import RewardModelVersion, build_trainer
from reward_server.models.classification import ClassificationModel, ClassificationTrainer
from reward_server.models.ellm import EllmModel
from reward_server.models.hash import HashTrainer
from reward_server.models.measures import measure_pairs
from reward_server.models.network import encode_captions
from reward_server.models.offline import (
    OfflineModel,
    OfflineModelError,
    holds_labels,
    read_model,
    save_model,
    train_model,
)
from reward_server.models.ranking import MIN_DEVIATION, RankingModel, RankingTrainer
from reward_server.models.rnd import MIN_SCALE, RndModel, RunningVariance
from reward_server.pair_table import LabelledPair
from reward_server.scorer import CaptionScorer
from reward_server.settings import DistillerSettings, EllmSettings, ModelSettings, RndSettings
from reward_server.store import AnnotationStore, Labelled, LabelRecord
from reward_server.types import Answer, JudgeKey, Pair
from tests.judge_support import tiny_judge

SMALL = DistillerSettings(steps_per_update=8, batch_size=16)
KEY = JudgeKey("v1", "default", "fake", "direct", "{}")
TEXTS = [f"You find {n} {what}." for what in ("gold pieces", "rocks", "keys") for n in range(2, 8)]


def labelled(text: str, label: int, probability: float | None = None) -> Labelled:
    return Labelled(1, caption_id(text), text, label, probability)


def compared(a: str, b: str, label: int, probability: float | None = None) -> LabelledPair:
    """`label` 1: a is better, 2: b is, in whichever order they are shown."""
    pair = Pair.of((caption_id(a), a), (caption_id(b), b))
    if pair.first != a and label:
        label, probability = 3 - label, None if probability is None else 1.0 - probability
    return LabelledPair(1, pair.id, pair.first_id, pair.second_id, pair.first, pair.second, label, probability)


def test_every_kind_can_be_made_and_carried() -> None:
    for name, registered in KINDS.items():
        kind = reward_model_kind(name)
        assert (kind.trainer is not None) == registered.source.asks_judge
        assert (kind.fixed is not None) == (not registered.source.asks_judge)
        model = build_reward_model(name, ModelSettings())
        assert model.name == name
        if kind.fixed is not None and name != "offline":
            version = kind.fixed(ModelSettings())
            assert (version.version, version.name) == (1, name)
            version.load_into(model)
            assert model.score(TEXTS).shape == (len(TEXTS),)


# -- hash -----------------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(TEXTS), st.integers(0, 1), st.floats(0, 1)), max_size=30), st.booleans())
def test_hash_equals_a_dictionary(rows: list[tuple[str, int, float]], soft: bool) -> None:
    trainer = HashTrainer(replace(SMALL, soft_targets=soft))
    dictionary: dict[str, float] = {}
    for text, label, p in rows:
        trainer.add([labelled(text, label, p)])
        dictionary.setdefault(text, p if soft else label)
    expected = np.array([dictionary.get(text, 0.0) for text in TEXTS], dtype=np.float32)
    np.testing.assert_array_equal(trainer.model.score(TEXTS), expected)
    copy = HashTrainer(replace(SMALL, soft_targets=soft))
    copy.load_state_dict(trainer.state_dict(), lambda ids: {})
    copy.model.load_state_dict(trainer.model.state_dict())
    np.testing.assert_array_equal(copy.model.score(TEXTS), expected)
    assert trainer.labels == copy.labels == len(dictionary)
    assert trainer.train_round() == bool(rows) and not trainer.train_round()


# -- classification -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("soft", [False, True])
def test_a_caption_with_a_label_is_rewarded_by_it_and_the_network_speaks_for_the_others(soft: bool) -> None:
    """Labels that no network could have learnt: alternating, with hardly a step of training."""
    rows = [labelled(text, i % 2, 0.25 + 0.5 * (i % 2)) for i, text in enumerate(TEXTS[:12])]
    chosen = replace(SMALL, soft_targets=soft, steps_per_update=1, holdout=0.5, holdout_after=0)
    trainer = ClassificationTrainer(chosen, seed=1)
    trainer.add(rows)
    trainer.train_round()
    version = RewardModelVersion(1, "classification", _saved(trainer.model.state_dict()), None, 0.0)
    model = ClassificationModel(chosen, seed=9)
    version.load_into(model)
    found = model.evaluate(TEXTS)
    np.testing.assert_array_equal(found.reward[:12], [i % 2 for i in range(12)])
    said = [0.25 + 0.5 * (i % 2) if soft else i % 2 for i in range(12)]
    np.testing.assert_allclose(found.probability[:12], said, rtol=1e-6)
    np.testing.assert_allclose(found.probability[12:], model.probabilities(TEXTS[12:]), atol=1e-6)
    # What is measured is the network, not the labels that it was given.
    held = trainer.metrics().holdout
    assert held is not None and held.loss > 0.1

    plain = ClassificationTrainer(replace(chosen, known_labels=False), seed=1)
    plain.add(rows)
    plain.train_round()
    p = plain.model.probabilities(TEXTS)
    np.testing.assert_array_equal(plain.model.evaluate(TEXTS).probability, p)
    np.testing.assert_array_equal(plain.model.score(TEXTS), p > 0.5)
    np.testing.assert_allclose(p, trainer.model.probabilities(TEXTS), atol=1e-6)


def test_the_loss_is_the_cross_entropy_of_the_probability_that_is_rewarded() -> None:
    trainer = ClassificationTrainer(SMALL, seed=1)
    trainer.add([labelled(text, int("keys" in text)) for text in TEXTS])
    while trainer.train_round():
        pass
    trainer.model.network.eval()  # without dropout
    target = np.linspace(0.0, 1.0, len(TEXTS))
    p = trainer.model.probabilities(TEXTS).astype(np.float64)
    expected = -np.mean(target * np.log(p) + (1.0 - target) * np.log(1.0 - p))
    found = trainer._loss(TEXTS, torch.tensor(target, dtype=torch.float32)).item()
    assert p.max() - p.min() > 0.2 and found == pytest.approx(expected, rel=1e-4)


def test_the_rankings_gradient_is_bounded() -> None:
    """Adam makes the same step of gradients of any size, but for those far below its epsilon (1e-8)."""

    def moved(bound: float) -> float:
        trainer = RankingTrainer(replace(SMALL, max_grad_norm=bound, steps_per_update=1), seed=3)
        before = [parameter.detach().clone() for parameter in trainer.model.network.parameters()]
        trainer.add([compared(a, b, 1) for a in TEXTS[12:] for b in TEXTS[:6]])
        trainer.train_round()
        after = trainer.model.network.parameters()
        return max(float((a.detach() - b).abs().max()) for a, b in zip(after, before, strict=True))

    assert moved(10.0) == pytest.approx(SMALL.learning_rate, rel=0.01)
    assert moved(1e-12) < SMALL.learning_rate * 1e-3


# -- soft targets ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranking", [False, True])
def test_soft_targets_reduce_to_hard_ones(ranking: bool) -> None:
    """Probabilities of 0, 1 (and one half for ties) train the very same network, bit for bit; others another one."""

    def trained(soft: bool, certain: bool) -> dict[str, torch.Tensor]:
        chosen = replace(SMALL, soft_targets=soft)
        if ranking:
            trainer = RankingTrainer(chosen, seed=1)
            sure = {0: 0.5, 1: 1.0, 2: 0.0}
            rows = [(a, b, (i + j) % 3) for i, a in enumerate(TEXTS[:6]) for j, b in enumerate(TEXTS[6:10])]
            trainer.add([compared(a, b, y, sure[y] if certain else 0.6) for a, b, y in rows])
        else:
            trainer = ClassificationTrainer(chosen, seed=1)
            trainer.add([labelled(t, i % 2, float(i % 2) if certain else 0.6) for i, t in enumerate(TEXTS)])
        trainer.train_round()
        return trainer.model.state_dict()

    hard, same, other = trained(False, True), trained(True, True), trained(True, False)
    assert all(torch.equal(hard[name], same[name]) for name in hard)
    assert not all(torch.equal(hard[name], other[name]) for name in hard)


# -- ranking --------------------------------------------------------------------------------------------------------


def test_ranking_has_the_layers_of_oni() -> None:
    sizes = [m.out_features for m in RankingModel(SMALL).network.head if isinstance(m, torch.nn.Linear)]
    assert sizes == [256, 512, 1]


def test_the_ranking_loss_is_bradley_and_terrys_with_ties() -> None:
    trainer = RankingTrainer(SMALL, seed=2)
    pairs = [compared(TEXTS[0], TEXTS[7], 1), compared(TEXTS[3], TEXTS[12], 2), compared(TEXTS[5], TEXTS[6], 0)]
    examples = [(p.first_id, p.second_id, p.first, p.second) for p in pairs]
    targets = [trainer._hard(p.label) for p in pairs]
    loss = trainer._loss(examples, torch.tensor(targets)).item()
    expected = 0.0
    for pair in pairs:  # L = -(1/B) sum_j y_j log softmax(r1, r2)_j, by hand
        r1, r2 = (float(trainer.model.scores([text])[0]) for text in (pair.first, pair.second))
        y = {0: (0.5, 0.5), 1: (1.0, 0.0), 2: (0.0, 1.0)}[pair.label]
        total = math.exp(r1) + math.exp(r2)
        expected -= (y[0] * math.log(math.exp(r1) / total) + y[1] * math.log(math.exp(r2) / total)) / len(pairs)
    assert loss == pytest.approx(expected, rel=1e-5)
    bce = functional.binary_cross_entropy(
        torch.tensor(trainer._predict(examples), dtype=torch.float64), torch.tensor(targets, dtype=torch.float64)
    )
    assert loss == pytest.approx(bce.item(), rel=1e-5)


def test_ranking_recovers_a_known_order_from_noisy_pairs() -> None:
    """12 captions of known strength; answers drawn from Bradley and Terry's model, several against the order; near ones may
    tie. The reference is the maximum likelihood of one free score a caption, by Hunter's MM algorithm (2004)."""
    rng = np.random.default_rng(0)
    texts = [
        f"You {verb} the {thing}." for verb in ("lose", "see", "take") for thing in ("rock", "sword", "key", "gem")
    ]
    strength = np.linspace(-3.0, 3.0, len(texts))
    pairs: list[LabelledPair] = []
    won = np.zeros((len(texts), len(texts)))
    wrong = 0
    for i in range(len(texts)):
        for j in range(i):
            if abs(strength[i] - strength[j]) < 0.6 and rng.random() < 0.5:
                pairs.append(compared(texts[i], texts[j], 0))
                won[i, j] = won[j, i] = 0.5
                continue
            wins = rng.random() < 1 / (1 + math.exp(strength[j] - strength[i]))
            wrong += not wins
            won[(i, j) if wins else (j, i)] = 1.0
            pairs.append(compared(texts[i], texts[j], 1 if wins else 2))
    assert wrong >= 5
    trainers = [RankingTrainer(replace(SMALL, steps_per_update=30, patience=3), seed=seed) for seed in range(3)]
    for trainer in trainers:
        trainer.add(pairs)
        for _ in range(5):
            trainer.train_round()
    gamma = np.ones(len(texts))
    for _ in range(500):
        spread = (won + won.T) / (gamma[:, None] + gamma[None, :])
        gamma = (won.sum(1) + 1e-3) / spread.sum(1)
        gamma /= gamma.mean()
    # One fit stops early, at another place for each seed; their mean is what is compared.
    scores = np.mean([trainer.model.scores(texts) for trainer in trainers], axis=0)
    assert _spearman(scores, strength) > 0.8
    assert _spearman(scores, strength) > _spearman(gamma, strength) - 0.1
    assert _spearman(scores, gamma) > 0.9
    for trainer in trainers:
        measured = trainer.metrics().train
        assert measured is not None and measured.accuracy > 0.8


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.argsort().argsort(), b.argsort().argsort())[0, 1])


def test_ranking_rewards_are_normalised_and_thresholded() -> None:
    trainer = RankingTrainer(replace(SMALL, rank_threshold=-0.5, steps_per_update=12), seed=3)
    trainer.add([compared(a, b, 1) for a in TEXTS[12:] for b in TEXTS[:6]])
    for _ in range(4):
        trainer.train_round()
    used = TEXTS[12:] + TEXTS[:6]
    raw = trainer.model.scores(used)
    assert raw.std() > MIN_DEVIATION
    z = (raw - raw.mean()) / raw.std()
    expected = np.where(z > -0.5, z, 0.0)
    assert (z < -0.5).any() and (z > 0.5).any()
    # What travels to the learner rewards in the same way.
    version = RewardModelVersion(1, "ranking", _saved(trainer.model.state_dict()), None, 0.0)
    other = build_reward_model("ranking", ModelSettings(distiller=replace(SMALL, rank_threshold=-0.5)))
    version.load_into(other)
    np.testing.assert_allclose(other.score(used), expected, atol=1e-4)


def test_scores_without_any_preference_are_not_made_large() -> None:
    trainer = RankingTrainer(SMALL, seed=3)
    trainer.add([compared(a, b, 0) for a, b in zip(TEXTS[:9], TEXTS[9:], strict=True)])
    trainer.train_round()
    assert trainer.metrics().converged and trainer.metrics().positives == 0
    # To rounding: the same captions in batches of another size.
    raw = np.abs(trainer.model.scores(TEXTS) - trainer.model.mean).max()
    assert np.abs(trainer.model.score(TEXTS)).max() <= raw / MIN_DEVIATION + 1e-4 < 0.01
    assert trainer.model.deviation == MIN_DEVIATION


def test_pairs_are_held_out_by_captions_that_no_other_pair_trains_on() -> None:
    chosen = replace(SMALL, holdout=0.5, holdout_after=0)
    trainer = RankingTrainer(chosen, seed=3)
    pairs = [(a, b) for i, a in enumerate(TEXTS) for b in TEXTS[:i]]
    trainer.add([compared(a, b, 1) for a, b in pairs])
    trainer.train_round()
    metrics = trainer.metrics()
    aside = {text for text in TEXTS if caption_id(text) % 10_000 < 2_500}
    assert metrics.holdout is not None and metrics.train is not None and aside
    assert metrics.holdout.count == sum(bool({a, b} & aside) for a, b in pairs)
    assert metrics.holdout.count + metrics.train.count == len(pairs)
    # A caption that was trained on before pairs were held out stays one that is.
    late = RankingTrainer(replace(chosen, holdout_after=len(pairs)), seed=3)
    late.add([compared(a, b, 1) for a, b in pairs])
    late.add([compared(f"You find nothing, {text}", text, 1) for text in aside])
    held = sum(caption_id(f"You find nothing, {text}") % 10_000 < 2_500 for text in aside)
    late.train_round()
    assert (late.metrics().holdout.count if late.metrics().holdout else 0) == held


def test_measures_of_pairs() -> None:
    p, y = np.array([0.9, 0.2, 0.7, 0.5, 0.9]), np.array([1, 2, 2, 0, 0])
    found = measure_pairs(p, y)
    assert found is not None
    assert found.accuracy == pytest.approx(2 / 3)  # of the three that are decided
    assert found.auc == pytest.approx(1.0)
    assert found.balanced_accuracy == pytest.approx(((2 / 3) + (1 / 2)) / 2)
    by_hand = [math.log(0.9), math.log(0.8), math.log(0.3), math.log(0.5), (math.log(0.9) + math.log(0.1)) / 2]
    assert found.loss == pytest.approx(-np.mean(by_hand))
    assert measure_pairs(np.array([0.3]), np.array([0])) is None


def test_a_resumed_ranking_goes_on_bit_for_bit(tmp_path: Path) -> None:
    pairs = [compared(a, b, (i + j) % 3) for i, a in enumerate(TEXTS[:6]) for j, b in enumerate(TEXTS[6:12])]
    whole = RankingTrainer(SMALL, seed=5)
    whole.add(pairs)
    whole.train_round()
    torch.save(whole.state_dict(), tmp_path / "state.pt")
    whole.train_round()
    resumed = RankingTrainer(SMALL, seed=9)
    texts = {caption_id(text): text for text in TEXTS}
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True), lambda ids: texts)
    resumed.train_round()
    assert all(torch.equal(a, b) for a, b in zip(_tensors(whole), _tensors(resumed), strict=True))
    with pytest.raises(ValueError, match="not in the annotation store"):
        resumed.load_state_dict(whole.state_dict(), lambda ids: {})


def _tensors(trainer: RankingTrainer) -> Sequence[torch.Tensor]:
    return list(trainer.model.state_dict().values())


def _saved(state: dict[str, torch.Tensor]) -> bytes:
    from safetensors.torch import save

    return save(state)


# -- without a judge ------------------------------------------------------------------------------------------------


def test_bags_of_words_have_the_cosine_of_their_vectors() -> None:
    chosen = EllmSettings(goals="unlock the door; take the golden key", threshold=0.4)
    captions = ["You unlock the door.", "You take the key, the key!", "It's a wall.", ""]
    words = sorted({w.strip(".,!;") for t in (*captions, chosen.goals) for w in t.lower().split()})

    def vector(text: str) -> np.ndarray:
        parts = [w.strip(".,!;") for w in text.lower().split()]
        return np.array([parts.count(word) for word in words], dtype=float)

    expected: list[float] = []
    for caption in captions:
        c = vector(caption)
        goals = [vector(goal) for goal in chosen.goals.split(";")]
        cosines = [float(c @ g / (np.linalg.norm(c) * np.linalg.norm(g))) if c.any() else 0.0 for g in goals]
        expected.append(max(cosines) if max(cosines) >= 0.4 else 0.0)
    found = EllmModel(chosen).score(captions)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found[0] > 0.8 and found[1] > 0.4 and not found[2:].any()


def test_an_encoder_is_the_mean_of_its_hidden_states(tmp_path: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    folder = tiny_judge(tmp_path)
    captions = ["You unlock the door.", "It's a wall.", "You see here a key named The Master Key of Thievery."]
    found = EllmModel(EllmSettings(goals="open a door", embedding=str(folder), threshold=-1.0)).score(captions)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()

    def embed(text: str) -> torch.Tensor:
        with torch.no_grad():
            return model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)

    expected = [functional.cosine_similarity(embed(c), embed("open a door"), dim=0).item() for c in captions]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_rnd_rewards_are_the_predictors_error_over_the_deviation_of_returns() -> None:
    model = RndModel(RndSettings(share=1.0, discount=0.5), seed=4)
    scorer = CaptionScorer(model)
    scorer.observe((caption_id(text), text) for text in TEXTS)
    scorer.update(reward_model_kind("rnd").fixed(ModelSettings(rnd=RndSettings(), seed=4)))  # pyright: ignore
    encoded = torch.tensor(encode_captions(TEXTS))
    first = model.target(encoded[:3]).detach()
    centre, scale = first.mean(0), (first - first.mean(0)).pow(2).mean().sqrt().clamp(min=MIN_SCALE)

    def errors() -> np.ndarray:
        target = (model.target(encoded) - centre) / scale
        return (model.predictor(encoded) - target).square().mean(1).detach().numpy()

    before = errors()
    ids = np.array([[caption_id(TEXTS[0]), caption_id(TEXTS[1])], [0, caption_id(TEXTS[0])], [caption_id(TEXTS[2]), 0]])
    scorer.learn("actor-00", ids)
    assert scorer.version == 2
    e = np.array([[before[0], before[1]], [0.0, before[0]], [before[2], 0.0]])
    returns = np.array([e[0], 0.5 * e[0] + e[1], 0.25 * e[0] + 0.5 * e[1] + e[2]])
    assert model.returns.deviation == pytest.approx(returns.std(), rel=0.05)  # begun at variance 1 with weight 1e-4
    found = scorer.lookup(np.array([caption_id(text) for text in TEXTS]))
    np.testing.assert_allclose(found, errors() / model.returns.deviation, rtol=1e-3)
    assert scorer.lookup(np.zeros(1, np.int64))[0] == 0.0


def test_rnd_finds_what_came_often_less_novel() -> None:
    scorer = CaptionScorer(model := RndModel(RndSettings(share=1.0, learning_rate=1e-3), seed=1))
    scorer.observe((caption_id(text), text) for text in TEXTS)
    scorer.update(reward_model_kind("rnd").fixed(ModelSettings(seed=1)))  # pyright: ignore
    often = np.array([[caption_id(text) for text in TEXTS[:6]]] * 4)
    scorer.learn("a", often)
    familiar = model.errors([TEXTS[0]])[0]
    for _ in range(60):
        scorer.learn("a", often)
    assert model.errors([TEXTS[0]])[0] < 0.1 * familiar
    assert model.errors(["The gnome king zaps a wand at you!"])[0] > 5 * model.errors([TEXTS[0]])[0]


def test_a_resumed_rnd_goes_on_bit_for_bit() -> None:
    def begun(seed: int) -> CaptionScorer:
        scorer = CaptionScorer(RndModel(RndSettings(share=0.5), seed=seed))
        scorer.observe((caption_id(text), text) for text in TEXTS)
        scorer.update(reward_model_kind("rnd").fixed(ModelSettings(seed=seed)))  # pyright: ignore
        return scorer

    ids = np.array([caption_id(text) for text in TEXTS]).reshape(6, 3)
    whole, resumed = begun(1), begun(2)
    whole.learn("a", ids)
    resumed.load_state_dict(whole.state_dict())
    for scorer in (whole, resumed):
        scorer.learn("a", ids[::-1])
    assert whole.version == resumed.version == 3
    np.testing.assert_array_equal(whole.lookup(ids), resumed.lookup(ids))


@given(st.lists(st.lists(st.floats(-100, 100), min_size=1, max_size=5), min_size=1, max_size=6))
def test_the_running_variance_is_that_of_all_numbers(parts: list[list[float]]) -> None:
    running = RunningVariance()
    running.state = (0.0, 0.0, 0.0)
    for part in parts:
        running.add(np.array(part))
    everything = np.concatenate([np.array(part) for part in parts])
    assert running.state[:2] == pytest.approx((everything.mean(), everything.var()), abs=1e-6)


# -- offline --------------------------------------------------------------------------------------------------------


def fill(path: Path) -> None:
    with AnnotationStore(path) as store:
        rows = [(caption_id(t), t, int("keys" in t)) for t in TEXTS]
        store.write(KEY, [LabelRecord(i, Answer(y, None, "", 0.0)) for i, _, y in rows], [(i, t) for i, t, _ in rows])
        old = replace(KEY, prompt_version="v0")  # fewer labels, all of them otherwise: not to be taken
        store.write(old, [LabelRecord(i, Answer(1 - y, None, "", 0.0)) for i, _, y in rows[:9]])


def test_a_store_is_trained_from_once_and_a_file_gives_the_same_model(tmp_path: Path) -> None:
    path = tmp_path / "annotations.sqlite"
    fill(path)
    chosen = DistillerSettings(batch_size=16, min_labels=4)
    trained = train_model(path, chosen, seed=7)
    assert trained.artifact.kind == "classification" and trained.artifact.labels == len(TEXTS)
    assert trained.artifact.key["prompt_version"] == "v1"
    save_model(trained, tmp_path / "model.safetensors")
    assert holds_labels(path) and not holds_labels(tmp_path / "model.safetensors")
    fixed = reward_model_kind("offline").fixed
    assert fixed is not None
    rewards: list[np.ndarray] = []
    for source in (path, tmp_path / "model.safetensors"):
        settings = ModelSettings(distiller=chosen, offline_path=str(source), seed=7)
        model = build_reward_model("offline", settings)
        fixed(settings).load_into(model)
        rewards.append(model.score(TEXTS))
        again = OfflineModel()  # a checkpoint needs neither of the files
        again.load_state_dict(model.state_dict())
        np.testing.assert_array_equal(again.score(TEXTS), rewards[-1])
    np.testing.assert_array_equal(rewards[0], rewards[1])
    np.testing.assert_array_equal(rewards[0], [float("keys" in text) for text in TEXTS])
    assert read_model(tmp_path / "model.safetensors").artifact == trained.artifact


def test_an_offline_model_says_how_good_it_is(tmp_path: Path) -> None:
    """So few labels are all trained on; what is unseen is measured on another model."""
    path = tmp_path / "annotations.sqlite"
    many = [f"You find {n} {what}." for what in ("gold pieces", "rocks", "keys") for n in range(2, 80)]
    with AnnotationStore(path) as store:
        rows = [(caption_id(t), t, int("keys" in t)) for t in many]
        store.write(KEY, [LabelRecord(i, Answer(y, None, "", 0.0)) for i, _, y in rows], [(i, t) for i, t, _ in rows])
    fixed = reward_model_kind("offline").fixed
    assert fixed is not None
    metrics = fixed(ModelSettings(distiller=SMALL, offline_path=str(path), seed=7)).metrics
    assert metrics is not None and metrics.train is not None and metrics.holdout is not None
    assert metrics.labels == metrics.train.count == len(many)
    assert metrics.holdout.count == sum(i % 10_000 < 2_000 for i, _, _ in rows) >= 30
    assert metrics.unseen == metrics.holdout and metrics.holdout.balanced_accuracy > 0.9


def test_pairs_of_a_store_make_a_ranking(tmp_path: Path) -> None:
    path = tmp_path / "annotations.sqlite"
    fill(path)
    with AnnotationStore(path) as store:
        pairs = [Pair.of((caption_id(a), a), (caption_id(b), b)) for a in TEXTS[12:] for b in TEXTS[:6]]
        answers = [Answer(1 if "keys" in pair.first else 2, None, "", 0.0) for pair in pairs]
        records = [LabelRecord(p.id, answer) for p, answer in zip(pairs, answers, strict=True)]
        assert store.pairs.write(KEY, records, [(pair.id, pair) for pair in pairs]) == 36
    trained = train_model(path, replace(SMALL, steps_per_update=16))
    assert trained.artifact.kind == "ranking" and trained.artifact.labels == 36
    model = build_trainer("ranking", SMALL, 0).model
    model.load_state_dict(trained.state)
    assert model.score(TEXTS[12:]).min() > model.score(TEXTS[:6]).max()
    assert train_model(path, SMALL, kind="hash").artifact.labels == len(TEXTS)


def test_what_cannot_be_used_offline_is_named(tmp_path: Path) -> None:
    path = tmp_path / "annotations.sqlite"
    AnnotationStore(path).close()
    with pytest.raises(OfflineModelError, match=r"annotations.sqlite: 0 labels of captions are too few"):
        train_model(path, SMALL)
    with pytest.raises(OfflineModelError, match="no reward model that is trained on labels"):
        train_model(path, SMALL, kind="counts")
    (tmp_path / "x").write_text("nonsense")
    with pytest.raises(OfflineModelError, match="neither an annotation store nor a reward model"):
        read_model(tmp_path / "x")
    with pytest.raises(OfflineModelError, match="cannot be read"):
        holds_labels(tmp_path / "absent")


def test_only_models_that_ask_have_a_judge() -> None:
    assert {name for name, kind in KINDS.items() if kind.source.asks_judge} == {"hash", "classification", "ranking"}
    assert KINDS["ranking"].source is Source.PAIRS
