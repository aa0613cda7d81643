"""How a run stands: one immutable snapshot, which `summary.json`, the live view, `runs` and `status` all show."""

import dataclasses
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

import orjson

from orchestration.errors import MetricsError


class Status(StrEnum):
    """What became of a run."""

    STARTING = "starting"
    RUNNING = "running"
    DONE = "done"
    INTERRUPTED = "interrupted"
    """Ended by Ctrl-C or `yendor stop`, after a checkpoint."""
    FAILED = "failed"
    DIED = "died"
    """Never written: its summary says that it goes, and its process is gone, or nothing is heard of its machine."""


LIVE = frozenset({Status.STARTING, Status.RUNNING})


@dataclasses.dataclass(frozen=True, slots=True)
class CaptionScore:
    """What the reward model thinks of a caption."""

    text: str
    probability: float
    """That it is helpful, in [0, 1]."""
    count: int
    """How often it came in this run."""


@dataclasses.dataclass(frozen=True, slots=True)
class HackingFlag:
    """A caption that may be hacked for its intrinsic reward; means over an episode."""

    text: str
    reasons: tuple[str, ...]
    """`grows`: it brings more, and success does not come with it; `concentrated`: it brings most of the intrinsic return."""
    share: float
    """Of the intrinsic return, lately."""
    earned_before: float
    earned_now: float
    goal: str
    """What did not grow: `success`, or `return` where the task has no success."""
    goal_before: float
    goal_now: float


@dataclasses.dataclass(frozen=True, slots=True)
class RewardWatchReport:
    """Where the intrinsic return of late comes from, and what looks like reward hacking (`orchestration.reward_watch`)."""

    episodes: int = 0
    """That "lately" consists of: the last quarter of the run's."""
    top_share: float | None = None
    """Of the caption that brings most; null where nothing was earned."""
    top5_share: float | None = None
    gini: float | None = None
    """Of what captions bring: 0 where all bring the same."""
    stagnant: bool = False
    """Success (return) has not grown against the quarter before, and the task is not learnt either."""
    flags: tuple[HackingFlag, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Summary:
    """Snapshot of a run. Null where there is no value (yet), or where the task has none."""

    run: str
    env: str
    status: Status = Status.STARTING
    runtime: str = "ray"
    env_steps: int = 0
    target_env_steps: int = 0
    wall_s: float = 0.0
    """Since the run began, time before a resume included."""
    first_step_s: float | None = None
    """Seconds from the start of the process to the first environment step."""
    eta_s: float | None = None
    steps_per_second: float = 0.0
    """Recent rate of environment steps."""
    episodes: int = 0
    return_mean: float | None = None
    """Mean extrinsic return of the last 100 episodes, unscaled."""
    success_rate: float | None = None
    """Of the last 100 episodes; null where the task has no notion of success."""
    intrinsic_return_mean: float | None = None
    """Mean sum of r_int / N^count_exponent of the last 100 episodes, before `w_int`."""
    episode_length_mean: float | None = None
    episode_metrics: Mapping[str, float] = dataclasses.field(default_factory=dict[str, float])
    """What the environment measures of an episode (dungeon level, gold, ...), mean of the last 100."""
    success_first_tenth: float | None = None
    """Success rate of the episodes that ended in the first tenth of the steps run so far."""
    success_last_tenth: float | None = None
    return_first_tenth: float | None = None
    return_last_tenth: float | None = None
    captions_unique: int = 0
    captions_labelled: int = 0
    captions_failed: int = 0
    captions_dropped: int = 0
    captions_queued: int = 0
    captions_reused: int = 0
    """Labels taken from other runs (`annotator.reuse`)."""
    labels_per_second: float = 0.0
    judge_status: str = "off"
    judge_error: str | None = None
    """Why the judge is down."""
    judge_requests: int = 0
    judge_request_failures: int = 0
    """Requests that no answer came to."""
    judge_unreadable: int = 0
    """Answers that could not be read."""
    judge_latency_mean_s: float | None = None
    """Of the last 256 requests."""
    judge_latency_p95_s: float | None = None
    reward_model_version: int = 0
    reward_model_accuracy: float | None = None
    """On labels kept from its training."""
    policy_version: int = 0
    policy_lag_mean: float | None = None
    """Versions between the policy that acted and the one that learned from it, per sample."""
    policy_lag_max: int | None = None
    samples_dropped: int = 0
    """Too old to learn from (`learner.max_lag`)."""
    actors: int = 0
    actors_waiting: int = 0
    """Of those, for a machine to begin on."""
    actor_restarts: int = 0
    learner_restarts: int = 0
    reward_server_restarts: int = 0
    judge_restarts: int = 0
    """Replicas of the judge that died and were replaced."""
    samples_lost: int = 0
    """Steps that were played and that no policy will have learned from: a learner died with them, or a machine."""
    checkpoint_errors: int = 0
    """Checkpoints that could not be written; training goes on, and the next is tried when it is due."""
    uploads: int = 0
    """Checkpoints that were copied to `checkpoint.url`."""
    upload_errors: int = 0
    """Attempts to do so that failed; training goes on, and they are tried again."""
    standing_still: Mapping[str, float] = dataclasses.field(default_factory=dict[str, float])
    """Parts that make no progress, with the time since when (seconds since the epoch)."""
    running_out: Mapping[str, str] = dataclasses.field(default_factory=dict[str, str])
    """What runs out (a disk, memory, the object store), with how much is left and what to do."""
    env_errors: int = 0
    """Environments that raised and were replaced."""
    trace_errors: int = 0
    """Episodes, labels and other records that could not be written; training goes on without."""
    sink_errors: int = 0
    """Failures to hand on metrics to Prometheus, W&B or MLflow; training goes on without."""
    metrics_url: str | None = None
    """Where Prometheus can read the run's numbers while it goes."""
    waits: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict[str, dict[str, float]])
    """For each part of the system, what it spends its time on: shares that sum to at most 1."""
    liked: tuple[CaptionScore, ...] = ()
    """The captions that the reward model likes most."""
    disliked: tuple[CaptionScore, ...] = ()
    reward_watch: RewardWatchReport = dataclasses.field(default_factory=RewardWatchReport)
    checkpoint: str | None = None
    """Folder of the newest checkpoint."""
    uploaded: str | None = None
    """URL of the newest checkpoint there (`checkpoint.url`)."""
    error: str | None = None
    """Root cause of a failure, one line."""
    started: float = 0.0
    """Seconds since the epoch."""
    updated: float = 0.0


def read_summary(path: Path) -> Summary | None:
    """The snapshot in `summary.json`; None where there is none yet. Raises `MetricsError` for a file that is none."""
    try:
        tree = orjson.loads(path.read_bytes())
        return _summary(tree)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise MetricsError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, AttributeError, LookupError) as error:
        raise MetricsError(f"{path}: not a summary: {error}") from error


def _summary(tree: Any) -> Summary:
    known = {field.name for field in dataclasses.fields(Summary)}
    values = {name: value for name, value in tree.items() if name in known}
    values["status"] = Status(values["status"])
    for name in ("liked", "disliked"):
        values[name] = tuple(CaptionScore(**score) for score in values.get(name, ()))
    if "reward_watch" in values:
        watch: dict[str, Any] = dict(values["reward_watch"])
        flags: list[dict[str, Any]] = watch.pop("flags")
        found = tuple(HackingFlag(reasons=tuple(flag.pop("reasons")), **flag) for flag in flags)
        values["reward_watch"] = RewardWatchReport(**watch, flags=found)
    return Summary(**values)
