"""What the learner told, as metrics, and as checkpoints keep it."""

import json

import pytest

from agents.report import FinishedEpisode, RolloutReport
from envs.vector import EpisodeEnd
from learner.update import Update
from orchestration.learning_progress import LearningProgress
from orchestration.results import FeedResult


def _report(*returns: float) -> RolloutReport:
    episodes = tuple(
        FinishedEpisode(
            t, EpisodeEnd(0, t, {}, got, length=5, success=got > 0, metrics={"depth": got}, terminated=True)
        )
        for t, got in enumerate(returns)
    )
    return RolloutReport("actor-00", 0, 10, (), episodes, (), 0, 0.0, 0.0, 0.0)


def _update(version: int, samples: int, lag: int, **metrics: float) -> Update:
    return Update(version, samples, metrics, lag_mean=float(lag), lag_max=lag, reward_s=0.0, train_s=0.0)


def _result(*updates: Update, version: int = 3) -> FeedResult:
    return FeedResult(
        updates,
        {(0, 0): 0.5},
        version,
        2,
        7,
        (),
        (),
        {},
        0.0,
        0.0,
        credit={"credit/loss": 0.25},
        earned=(("a key", 2.0),),
    )


def test_a_line_has_the_means_of_the_updates_since_the_last_one():
    progress = LearningProgress()
    assert progress.lag is None and not progress.unlogged
    first = _result(_update(1, 100, 0, loss=1.0, clipped=0.4), _update(2, 300, 4, loss=2.0))
    progress.learned(_report(1.0, -1.0), first, 20, judged=True)
    assert progress.unlogged and progress.lag == (2.0, 4)
    line = progress.line()
    # Weighted by samples: (100 x 1 + 300 x 2) / 400; of what one update did not tell, the other alone.
    assert line["loss"] == pytest.approx(1.75) and line["clipped"] == pytest.approx(0.4)
    assert line["policy/lag_mean"] == pytest.approx(3.0) and line["policy/lag_max"] == 4
    assert line["episodes"] == 2 and line["episode/return"] == 0.0 and line["episode/success"] == 0.5
    assert line["episode/intrinsic_return"] == pytest.approx(0.25), "0.5 of the first, none of the second"
    assert line["policy/version"] == 3 and line["reward_model/version"] == 2 and line["samples_dropped"] == 7
    assert line["episode/depth"] == 0.0 and line["credit/loss"] == 0.25
    again = progress.line()
    assert "loss" not in again and "policy/lag_max" not in again and again["episodes"] == 2
    assert progress.lag == (2.0, 4), "of the last updates, whatever was logged"


def test_a_checkpoint_keeps_it_whole():
    progress = LearningProgress()
    progress.learned(_report(1.0, -1.0, 2.0), _result(), 20, judged=True)
    progress.reward_model_accuracy = 0.75
    kept = json.loads(json.dumps(progress.state_dict()))
    # The names that checkpoints have had from the first.
    assert set(kept) == {"episodes", "policy_version", "reward_model_version", "reward_model_accuracy", "reward_watch"}
    other = LearningProgress()
    other.load_state_dict(kept)
    assert other.state_dict() == progress.state_dict()
    assert (other.policy_version, other.reward_model_version, other.reward_model_accuracy) == (3, 2, 0.75)
    assert other.episodes.recent() == progress.episodes.recent() and other.episodes.episodes == 3
    assert other.reward_watch.report() == progress.reward_watch.report()
