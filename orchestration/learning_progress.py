"""What the learner has told: episodes that it has read, updates that it made, and the versions that are in force."""

from collections import deque
from collections.abc import Mapping
from typing import Any

from agents.report import RolloutReport
from learner.update import Update
from orchestration.results import FeedResult
from orchestration.reward_watch import RewardWatch
from orchestration.statistics import EpisodeResult, EpisodeStatistics
from orchestration.summary import CaptionScore
from reward_server.models.base import RewardModelMetrics


class LearningProgress:
    """Counts it, and gives the means of a line of metrics."""

    def __init__(self) -> None:
        self.episodes = EpisodeStatistics()
        self.reward_watch = RewardWatch()
        self.policy_version = 0
        self.reward_model_version = 0
        self.reward_model_accuracy: float | None = None
        self.samples_dropped = 0
        self.steps_unknown = 0
        self.liked: tuple[CaptionScore, ...] = ()
        self.disliked: tuple[CaptionScore, ...] = ()
        self._credit: Mapping[str, float] = {}
        self._offline: RewardModelMetrics | None = None
        self._updates: deque[Update] = deque(maxlen=64)
        self._unlogged: list[Update] = []

    def learned(self, report: RolloutReport, result: FeedResult, env_steps: int, *, judged: bool) -> None:
        """Counts one trajectory, which arrived at `env_steps`; `judged`: a reward server tells of its model itself."""
        self.reward_watch.earned(result.earned)
        for episode in report.episodes:
            intrinsic = result.intrinsic_returns.get((episode.t, episode.end.env_index), 0.0)
            self.reward_watch.ended(episode.end.success, episode.end.episode_return)
            self.episodes.add(
                EpisodeResult(
                    env_steps=env_steps,
                    extrinsic=episode.end.episode_return,
                    intrinsic=intrinsic,
                    length=episode.end.length,
                    success=episode.end.success,
                    metrics=episode.end.metrics,
                )
            )
        self._updates.extend(result.updates)
        self._unlogged.extend(result.updates)
        self.policy_version = result.policy_version
        self.samples_dropped = result.samples_dropped
        self.steps_unknown = result.steps_unknown
        self.reward_model_version = result.reward_model_version
        self.liked, self.disliked = result.liked, result.disliked
        self._credit = result.credit
        if not judged and result.reward_model is not None:
            self._offline, self.reward_model_accuracy = result.reward_model, result.reward_model.accuracy

    @property
    def unlogged(self) -> bool:
        """Whether there were updates since the last line."""
        return bool(self._unlogged)

    @property
    def lag(self) -> tuple[float, int] | None:
        """Mean and most of the last updates, in versions of the policy."""
        updates = self._updates
        return (sum(u.lag_mean for u in updates) / len(updates), max(u.lag_max for u in updates)) if updates else None

    def line(self) -> dict[str, float | None]:
        """Metrics: means over the updates since the last line, and how things stand."""
        updates, self._unlogged = self._unlogged, []
        recent, watch = self.episodes.recent(), self.reward_watch.report()
        metrics: dict[str, float | None] = {
            "episodes": self.episodes.episodes,
            "episode/return": recent.extrinsic,
            "episode/success": recent.success,
            "episode/intrinsic_return": recent.intrinsic,
            "episode/length": recent.length,
            **{f"episode/{name}": value for name, value in recent.metrics.items()},
            "hacking/top_share": watch.top_share,
            "hacking/top5_share": watch.top5_share,
            "hacking/gini": watch.gini,
            "hacking/flags": len(watch.flags),
            "policy/version": self.policy_version,
            "reward_model/version": self.reward_model_version,
            "reward_model/accuracy": self.reward_model_accuracy,
            "samples_dropped": self.samples_dropped,
            "captions/unknown": self.steps_unknown,
            **self._credit,
        }
        if updates:
            weight = sum(u.samples for u in updates)
            # An update that had nothing to learn from (no group of RLOO's differs) has fewer metrics.
            for name in dict.fromkeys(name for u in updates for name in u.metrics):
                told = [u for u in updates if name in u.metrics]
                metrics[name] = sum(u.metrics[name] * u.samples for u in told) / sum(u.samples for u in told)
            metrics["policy/lag_mean"] = sum(u.lag_mean * u.samples for u in updates) / weight
            metrics["policy/lag_max"] = max(u.lag_max for u in updates)
        if self._offline is not None:
            metrics.update(self._offline.quality())
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """As a checkpoint keeps it."""
        episodes = self.episodes.state_dict()
        episodes["sums"] = [[float(x) for x in row] for row in episodes["sums"]]
        return {
            "episodes": episodes,
            "policy_version": self.policy_version,
            "reward_model_version": self.reward_model_version,
            "reward_model_accuracy": self.reward_model_accuracy,
            "reward_watch": self.reward_watch.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.episodes.load_state_dict(state["episodes"])
        self.policy_version = state["policy_version"]
        self.reward_model_version = state["reward_model_version"]
        self.reward_model_accuracy = state["reward_model_accuracy"]
        self.reward_watch.load_state_dict(state["reward_watch"])
