"""The distiller: learns rare labels, goes on where it was, and says how good it is."""

import asyncio
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from envs.captions import caption_id
from reward_server.annotator import Annotator
from reward_server.distiller import Distiller
from reward_server.models.base import RewardModelVersion
from reward_server.models.classification import ClassificationModel
from reward_server.settings import AnnotatorSettings, DistillerSettings
from reward_server.store import AnnotationStore, LabelRecord
from reward_server.types import Answer, JudgeKey

KEY = JudgeKey("v1", "default", "fake", "direct", "{}")
SMALL = DistillerSettings(steps_per_update=4, batch_size=8)

_COLOURS = ("red", "dark", "shiny", "old", "worn", "cursed", "small", "blue")
_THINGS = ("apple", "dagger", "rock", "scroll", "potion", "sling", "boulder", "cloak", "lamp", "coin", "worm", "bat")


def messages(n: int, positive_share: float, seed: int = 0) -> list[tuple[str, int]]:
    """Captions with labels: those about a key are helpful."""
    rng = np.random.default_rng(seed)
    rows: dict[str, int] = {}
    positives = round(n * positive_share)
    while len(rows) < n:
        label = int(sum(rows.values()) < positives)
        thing = "key" if label else rng.choice(_THINGS)
        text = f"{rng.choice(['You see here a', 'You feel a', 'There is a'])} {rng.choice(_COLOURS)} {thing}"
        text += f" {rng.choice(['here', 'nearby', 'to the west', 'below'])}, {rng.integers(100)} steps away."
        rows[text] = label
    shuffled = list(rows.items())
    return [shuffled[i] for i in rng.permutation(n)]


def fill(store: AnnotationStore, rows: Sequence[tuple[str, int]], probability: float | None = None) -> None:
    records = [LabelRecord(caption_id(text), Answer(label, probability, "", 0.0)) for text, label in rows]
    store.write(KEY, records, [(caption_id(text), text) for text, _ in rows])


@pytest.fixture
def store(tmp_path: Path) -> AnnotationStore:
    return AnnotationStore(tmp_path / "annotations.sqlite")


def settle(distiller: Distiller, rounds: int = 30) -> RewardModelVersion:
    newest = None
    for _ in range(rounds):
        version = distiller.update()
        if version is None:
            break
        newest = version
    assert newest is not None
    return newest


# -- learning -------------------------------------------------------------------------------------------------------


def test_rare_positives_are_learnt_and_generalise(store: AnnotationStore) -> None:
    rows = messages(240, 0.1)
    train, test = rows[:80], rows[80:]
    fill(store, train)
    distiller = Distiller(store, KEY, replace(DistillerSettings(), batch_size=32, steps_per_update=16))
    version = settle(distiller)
    assert version.metrics.converged and version.metrics.train is not None
    assert version.metrics.train.balanced_accuracy >= 0.99
    assert version.metrics.labels == 80 and version.metrics.positives == sum(y for _, y in train)
    model = ClassificationModel(DistillerSettings(), seed=99)
    version.load_into(model)
    np.testing.assert_array_equal(model.score([t for t, _ in train]), [y for _, y in train])
    unseen = model.score([t for t, _ in test])
    labels = np.array([y for _, y in test])
    assert labels.sum() >= 5
    assert np.mean([(unseen[labels == kind] == kind).mean() for kind in (0, 1)]) > 0.85
    assert distiller.update() is None, "it rests once it agrees"


def test_it_publishes_nothing_before_it_knows_enough(store: AnnotationStore) -> None:
    distiller = Distiller(store, KEY, replace(SMALL, min_labels=8))
    assert distiller.update() is None and distiller.version == 0 and distiller.current() is None
    fill(store, messages(7, 0.5))
    assert distiller.update() is None
    fill(store, messages(8, 0.5, seed=1)[:1])
    version = distiller.update()
    assert version is not None and version.version == distiller.version == 1 and distiller.labels == 8
    assert version.name == "classification" and version.seconds > 0


def test_a_distiller_started_anew_numbers_above_its_predecessor(store: AnnotationStore) -> None:
    fill(store, messages(10, 0.5))
    distiller = Distiller(store, KEY, replace(SMALL, converge=2.0))
    distiller.skip_to(7)
    assert distiller.version == 0 and distiller.current() is None
    numbers = [version.version for version in (distiller.update(), distiller.update()) if version is not None]
    distiller.skip_to(3)
    last = distiller.update()
    assert last is not None and [*numbers, last.version] == [8, 9, 10]


def test_labels_of_one_kind_converge_at_once_to_that_kind(store: AnnotationStore) -> None:
    fill(store, [(text, 0) for text, _ in messages(20, 0.0)])
    version = settle(Distiller(store, KEY, SMALL))
    assert version.metrics.converged and version.version <= 3
    assert version.metrics.train is not None and version.metrics.train.auc is None


def test_labels_that_cannot_be_learnt_end_by_patience(store: AnnotationStore) -> None:
    rng = np.random.default_rng(0)
    # The same first 123 bytes, different labels: the network cannot tell them apart.
    fill(store, [("x" * 123 + f"{i}", int(rng.integers(2))) for i in range(24)])
    chosen = replace(SMALL, caption_bytes=123, patience=3, steps_per_update=2)
    distiller = Distiller(store, KEY, chosen)
    version = settle(distiller, rounds=100)
    assert not version.metrics.converged and version.version < 100
    assert distiller.update() is None
    fill(store, messages(1, 1.0, seed=5))
    assert distiller.update() is not None, "a new label begins anew"


def test_few_steps_once_warm(store: AnnotationStore) -> None:
    fill(store, messages(30, 0.3))
    assert settle(Distiller(store, KEY, replace(SMALL, warm_labels=30)), rounds=1).metrics.steps == 1
    assert settle(Distiller(store, KEY, replace(SMALL, warm_labels=31)), rounds=1).metrics.steps == 4


def test_soft_targets_follow_the_judges_probability(store: AnnotationStore) -> None:
    fill(store, [(text, 1) for text, _ in messages(16, 0.0)], probability=0.7)
    means: dict[bool, float] = {}
    for soft in (False, True):
        chosen = replace(SMALL, soft_targets=soft, converge=2.0, patience=1000, steps_per_update=10)
        distiller = Distiller(store, KEY, chosen)
        for _ in range(4):
            version = distiller.update()
            assert version is not None
        model = ClassificationModel(chosen)
        version.load_into(model)
        means[soft] = float(model.probabilities([t for t, _ in messages(16, 0.0)]).mean())
    assert means[True] == pytest.approx(0.7, abs=0.1) and means[False] > 0.9


def test_balanced_draws_bring_rare_positives_into_half_of_each_batch(store: AnnotationStore) -> None:
    fill(store, messages(100, 0.04))
    chosen = replace(SMALL, steps_per_update=4, batch_size=16)
    probabilities: dict[bool, float] = {}
    for balanced in (False, True):
        version = settle(Distiller(store, KEY, replace(chosen, balanced=balanced)), rounds=4)
        model = ClassificationModel(chosen)
        version.load_into(model)
        probabilities[balanced] = float(model.probabilities([t for t, _ in messages(100, 0.04)]).mean())
    assert probabilities[False] < 0.2 < probabilities[True]


# -- what it says of itself -----------------------------------------------------------------------------------------


def test_holdout_is_not_trained_on_and_begins_late(store: AnnotationStore) -> None:
    rows = messages(200, 0.3)
    fill(store, rows[:100])
    chosen = replace(SMALL, holdout=0.5, holdout_after=100)
    distiller = Distiller(store, KEY, chosen)
    first = distiller.update()
    assert first is not None and first.metrics.holdout is None and first.metrics.fresh is None
    assert first.metrics.accuracy is None
    fill(store, rows[100:])
    second = distiller.update()
    assert second is not None and second.metrics.holdout is not None and second.metrics.fresh is not None
    held = second.metrics.holdout.count
    assert 30 < held < 70
    assert second.metrics.train is not None and second.metrics.train.count == 200 - held
    assert second.metrics.fresh.count == 100
    assert second.metrics.accuracy == second.metrics.holdout.accuracy


def test_fresh_measures_are_of_predictions_made_before_training(store: AnnotationStore) -> None:
    rows = messages(60, 0.3)
    fill(store, rows[:40])
    distiller = Distiller(store, KEY, SMALL)
    first = settle(distiller)
    model = ClassificationModel(SMALL)
    first.load_into(model)
    before = model.score([t for t, _ in rows[40:]])
    fill(store, rows[40:])
    second = distiller.update()
    assert second is not None and second.metrics.fresh is not None
    assert second.metrics.fresh.accuracy == pytest.approx(np.mean(before == [y for _, y in rows[40:]]))


# -- pacing ---------------------------------------------------------------------------------------------------------


class Clock:
    """Each look takes `step` seconds."""

    def __init__(self, step: float) -> None:
        self.now = 0.0
        self.step = step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


def test_rounds_are_paced_by_interval_and_share(store: AnnotationStore) -> None:
    fill(store, messages(20, 0.5))
    for interval_s, share, wait in ((10.0, 1.0, 10.0), (0.0, 0.25, 6.0), (0.0, 1.0, 0.0)):
        clock = Clock(1.0)
        chosen = replace(SMALL, steps_per_update=1, interval_s=interval_s, max_share=share)
        distiller = Distiller(store, KEY, chosen, clock=clock, busy=clock)
        assert distiller.due()
        assert distiller.update() is not None  # by this clock a round takes 4 s, 2 of them at work
        clock.step, ended = 0.0, clock.now
        clock.now = ended + max(wait - 5.0, 0.0)
        assert distiller.due() is (wait == 0.0)
        clock.now = ended + wait + 4.0
        assert distiller.due()


# -- determinism and resuming ---------------------------------------------------------------------------------------


def _through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def test_one_seed_gives_one_model_whatever_else_draws_random_numbers(store: AnnotationStore) -> None:
    fill(store, messages(40, 0.2))
    states: list[bytes] = []
    for noise in (0, 1, 0):
        torch.manual_seed(noise)
        np.random.seed(noise)
        distiller = Distiller(store, KEY, SMALL, seed=11)
        before = torch.random.get_rng_state()
        states.append(settle(distiller, rounds=3).state)
        assert torch.equal(torch.random.get_rng_state(), before)
    assert states[0] == states[1] == states[2]
    assert settle(Distiller(store, KEY, SMALL, seed=12), rounds=3).state != states[0]


def test_a_resumed_distiller_equals_one_that_was_not_interrupted(tmp_path: Path) -> None:
    waves = [messages(30, 0.2, seed=1), messages(20, 0.2, seed=2)]
    chosen = replace(SMALL, holdout_after=30, holdout=0.3)

    def play(store: AnnotationStore, distiller: Distiller) -> list[RewardModelVersion | None]:
        fill(store, waves[1])
        return [distiller.update() for _ in range(4)]

    def begin(store: AnnotationStore) -> Distiller:
        distiller = Distiller(store, KEY, chosen, seed=4)
        fill(store, waves[0])
        distiller.update()
        distiller.update()
        return distiller

    with AnnotationStore(tmp_path / "whole.sqlite") as store:
        whole = play(store, begin(store))
    with AnnotationStore(tmp_path / "cut.sqlite") as store:
        checkpoint = _through_a_file(begin(store).state_dict())
    with AnnotationStore(tmp_path / "cut.sqlite") as store:
        resumed = Distiller(store, KEY, chosen, seed=77)
        resumed.load_state_dict(checkpoint)
        current = resumed.current()
        assert current is not None and current.version == 2
        cut = play(store, resumed)
    assert [_identity(v) for v in cut] == [_identity(v) for v in whole]


def _identity(version: RewardModelVersion | None) -> object:
    return None if version is None else (version.version, version.state, version.metrics)


def test_a_run_killed_after_its_checkpoint_distils_the_same_models(tmp_path: Path) -> None:
    """Labels that came after the checkpoint are in the store already; the resumed run meets them in their turn."""

    class Judge:
        key = KEY

        async def ask(self, captions: Sequence[str]) -> list[Answer]:
            return [Answer(caption_id(text) % 2, None, "", 0.0) for text in captions]

        async def close(self) -> None: ...

    rows = [(caption_id(text), text) for text, _ in messages(60, 0.3)]
    chosen = replace(SMALL, steps_per_update=2)

    def play(annotator: Annotator, distiller: Distiller, first: int, last: int) -> list[object]:
        versions: list[object] = []
        for start in range(first, last, 5):
            annotator.submit(rows[start : start + 10])
            asyncio.run(annotator.drain())
            versions.append(_identity(distiller.update()))
        return versions

    def parts(store: AnnotationStore) -> tuple[Annotator, Distiller]:
        annotator = Annotator(Judge(), store, AnnotatorSettings(batch=3))
        return annotator, Distiller(store, KEY, chosen, seed=1)

    with AnnotationStore(tmp_path / "whole.sqlite") as store:
        whole = play(*parts(store), 0, 50)
    with AnnotationStore(tmp_path / "cut.sqlite") as store:
        annotator, distiller = parts(store)
        versions = play(annotator, distiller, 0, 20)
        checkpoint = _through_a_file({"annotator": annotator.state_dict(), "distiller": distiller.state_dict()})
        play(annotator, distiller, 20, 40)
    with AnnotationStore(tmp_path / "cut.sqlite") as store:
        annotator, distiller = parts(store)
        annotator.load_state_dict(checkpoint["annotator"])
        distiller.load_state_dict(checkpoint["distiller"])
        versions += play(annotator, distiller, 20, 50)
    assert versions == whole


def test_a_checkpoint_without_its_store_or_of_another_model_is_refused(store: AnnotationStore, tmp_path: Path) -> None:
    fill(store, messages(10, 0.5))
    distiller = Distiller(store, KEY, SMALL)
    distiller.update()
    state = distiller.state_dict()
    other = Distiller(AnnotationStore(tmp_path / "other.sqlite"), KEY, SMALL)
    with pytest.raises(ValueError, match=r"10 of the 10 captions .* put back the `annotations\.sqlite`"):
        other.load_state_dict(state)
    with pytest.raises(ValueError, match=r"'ranking', and `reward\.model` asks for 'classification'"):
        distiller.load_state_dict({**state, "name": "ranking"})
