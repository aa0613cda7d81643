"""What Prometheus calls each number of a run.

Invariant: every number of a line of `metrics.jsonl` has one name here. What the table does not list falls to a family,
whose labels tell which number it is, so nothing is left out when a part of the system learns to measure more.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from orchestration.metrics import MetricsLine, scalars

PREFIX = "yendor_"
RUN_LABELS = ("run", "env")
"""Of every metric."""


class Kind(StrEnum):
    """Prometheus' types."""

    COUNTER = "counter"
    """Never falls while the process lives; its name ends in `_total`."""
    GAUGE = "gauge"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric (`labels` empty) or a family, one series for each combination of labels."""

    name: str
    """With `PREFIX`."""
    kind: Kind
    help: str
    sources: tuple[str, ...]
    """Its names in `metrics.jsonl` (those under `time` with `time/` before them). Several say the same; the first that a
    line has counts. Of a family, what the names begin with."""
    labels: tuple[str, ...] = ()
    """Beside `RUN_LABELS`."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A number of a line, as Prometheus is told."""

    metric: Metric
    labels: tuple[str, ...]
    """The values of `metric.labels`."""
    value: float


def _counter(name: str, help: str, *sources: str) -> Metric:
    return Metric(f"{PREFIX}{name}_total", Kind.COUNTER, help, sources)


def _gauge(name: str, help: str, *sources: str) -> Metric:
    return Metric(f"{PREFIX}{name}", Kind.GAUGE, help, sources)


METRICS = (
    _counter("env_steps", "Environment steps, those before a resume included", "env_steps"),
    _gauge("env_steps_per_second", "Recent rate of environment steps", "time/steps_per_second"),
    _gauge("wall_seconds", "Time since the run began, time before a resume included", "time/wall_s"),
    _gauge(
        "output_tokens_per_second", "Tokens that language models generate, of agents", "time/output_tokens_per_second"
    ),
    _gauge("actors", "Actors at present", "time/actors"),
    _gauge("actors_waiting", "Actors that wait for a machine to begin on", "time/actors_waiting"),
    _counter("actor_restarts", "Actors that died and were replaced", "time/actor_restarts"),
    _counter("learner_restarts", "Learners that died and were replaced", "time/learner_restarts"),
    _counter("reward_server_restarts", "Reward servers that died and were restarted", "time/reward_server_restarts"),
    _counter("judge_restarts", "Replicas of the judge that died and were replaced", "time/judge_restarts"),
    _counter("samples_lost", "Steps that no policy will learn from: a learner or a machine died with them", "time/samples_lost"),
    _counter("checkpoint_errors", "Checkpoints that could not be written", "time/checkpoint_errors"),
    _counter("uploads", "Checkpoints that were copied to checkpoint.url", "time/uploads"),
    _counter("upload_errors", "Attempts to copy a checkpoint to checkpoint.url that failed", "time/upload_errors"),
    _gauge("standing_still", "Parts that make no progress", "time/standing_still"),
    _gauge("running_out", "Disks, memories, object stores that run out, and clocks that differ", "time/running_out"),
    _gauge("disk_free_bytes", "Free where the run's folder is", "time/disk_free_bytes"),
    _counter("env_errors", "Environments that raised and were replaced", "env_errors"),
    _counter("trace_errors", "Records that could not be written", "time/trace_errors"),
    _counter("sink_errors", "Failures to hand on metrics, to W&B for example", "time/sink_errors"),
    _gauge(
        "memory_bytes",
        "Resident memory of the run's processes on the machine of its coordinator, without what they share",
        "time/memory_bytes",
    ),
    _gauge("rollout_bytes_per_step", "Size of a trajectory by environment steps", "rollout/bytes_per_step"),
    # Episodes: means of the last 100.
    _counter("episodes", "Episodes that ended", "episodes"),
    _gauge("episode_return_mean", "Extrinsic return, unscaled", "episode/return"),
    _gauge("episode_success_ratio", "Share of successes", "episode/success"),
    _gauge("episode_intrinsic_return_mean", "Intrinsic return, before reward.w_int", "episode/intrinsic_return"),
    _gauge("episode_length_mean", "Steps of an episode", "episode/length"),
    # The policy.
    _gauge("policy_version", "Version of the policy: optimisation steps so far", "policy/version"),
    _gauge("policy_lag_mean", "Versions between the policy that acted and the one that learned", "policy/lag_mean"),
    _gauge("policy_lag_max", "The same, most", "policy/lag_max"),
    _counter("samples_dropped", "Samples too old to learn from (learner.max_lag)", "samples_dropped"),
    # Captions and the judge.
    _counter("captions", "Different captions that agents met", "captions/unique"),
    _counter("captions_unknown", "Steps whose caption the learner did not know: no intrinsic reward", "captions/unknown"),
    _counter("captions_submitted", "Different captions that came to the annotator", "time/annotator/seen"),
    _counter("captions_duplicate", "Captions that came to the annotator again", "time/annotator/duplicates"),
    _counter("labels", "Captions with a label, from this run or an earlier one", "captions/labelled", "time/annotator/labelled"),
    _gauge("labels_per_second", "Recent rate of labels", "time/labels_per_second"),
    _counter("judge_labels", "Labels that the judge gave in this run", "time/annotator/labelled_this_run"),
    _counter("labels_reused", "Labels taken from other runs (annotator.reuse)", "time/annotator/reused"),
    _counter("captions_failed", "Captions given up: no answer could be read", "captions/failed", "time/annotator/failed"),
    _counter("captions_dropped", "Captions that fell out of the full backlog", "captions/dropped", "time/annotator/dropped"),
    _gauge("captions_queued", "Backlog: captions that wait for the judge", "captions/queued", "time/annotator/queued"),
    _gauge("captions_in_flight", "Captions that the judge is asked about now", "time/annotator/in_flight"),
    _counter("judge_requests", "Requests to the judge", "time/annotator/requests"),
    _counter("judge_request_failures", "Requests that no answer came to", "time/annotator/request_failures"),
    _counter("judge_requests_late", "Requests given up at their deadline", "time/annotator/late"),
    _counter("judge_prompt_tokens", "Tokens of the judge's prompts", "time/annotator/prompt_tokens"),
    _counter("judge_cached_tokens", "Of these, tokens that its prefix cache had", "time/annotator/cached_tokens"),
    _counter("judge_output_tokens", "Tokens that the judge wrote", "time/annotator/output_tokens"),
    _counter("judge_answers_unreadable", "Answers that could not be read", "time/annotator/unreadable"),
    _gauge("judge_latency_mean_seconds", "Of the last 256 requests", "time/annotator/latency_mean_s"),
    _gauge("judge_latency_p95_seconds", "Of the last 256 requests, 95th percentile", "time/annotator/latency_p95_s"),
    _gauge("judge_batch_captions", "Most captions that a request takes at present", "time/annotator/batch"),
    _counter("annotator_waiting_seconds", "Time with nothing to ask", "time/annotator/waiting_s"),
    _counter("annotator_busy_seconds", "Time with a request on its way", "time/annotator/busy_s"),
    _counter(
        "annotator_blocked_seconds",
        "Time with captions queued and none on its way: the judge is down, or the budget spent",
        "time/annotator/blocked_s",
    ),
    # The reward model, on labels that it was not trained on.
    _gauge("reward_model_version", "Version of the reward model in force; 0: none yet", "reward_model/version"),
    _gauge("reward_model_accuracy", "Share of labels that it meets, 0 to 1", "reward_model/accuracy"),
    _gauge("reward_model_balanced_accuracy", "Mean of the accuracies on both labels", "reward_model/balanced_accuracy"),
    _gauge("reward_model_auc", "Area under the ROC curve", "reward_model/auc"),
    _gauge("reward_model_calibration_error", "Expected calibration error", "reward_model/calibration_error"),
    _gauge("reward_model_loss", "Loss", "reward_model/loss"),
    _gauge("reward_model_labels", "Labels that it has", "reward_model/labels"),
    _gauge("reward_model_labels_positive", "Labels that call a caption helpful", "reward_model/positives"),
    _gauge("reward_model_labels_unseen", "Labels that it is measured on", "reward_model/unseen"),
    _gauge("reward_model_steps", "Optimisation steps of it", "reward_model/steps"),
    # The watch on reward hacking.
    _gauge("hacking_top_share", "Share of the intrinsic return from one caption", "hacking/top_share"),
    _gauge("hacking_top5_share", "Share of the intrinsic return from five captions", "hacking/top5_share"),
    _gauge("hacking_gini", "Gini coefficient of what captions bring", "hacking/gini"),
    _gauge("hacking_flags", "Captions that may be hacked", "hacking/flags"),
)  # fmt: skip
"""What every run may have, each under its own name."""

PART_TIME = Metric(
    f"{PREFIX}part_time_ratio",
    Kind.GAUGE,
    "Share of its time that a part of the system spends on something; a call counts where it ends",
    ("time/actor/", "time/learner/", "time/coordinator/", "time/reward server/"),
    ("part", "activity"),
)
OTHER = Metric(
    f"{PREFIX}diagnostic",
    Kind.GAUGE,
    "Any other number of the run, by its name in metrics.jsonl (policy/entropy, value/mean, ...)",
    ("",),
    ("name",),
)
FAMILIES = (
    PART_TIME,
    Metric(
        f"{PREFIX}episode_metric_mean",
        Kind.GAUGE,
        "What the environment measures of an episode (dungeon_level, gold, ...)",
        ("episode/",),
        ("name",),
    ),
    Metric(
        f"{PREFIX}reward_mean",
        Kind.GAUGE,
        "Components of the reward that is learned from, by step (by turn of a language model)",
        ("reward/",),
        ("component",),
    ),
    Metric(f"{PREFIX}loss", Kind.GAUGE, "Loss of the policy's optimisation and its parts", ("loss/",), ("part",)),
    Metric(f"{PREFIX}progress", Kind.GAUGE, "The progress estimator (docs/credit.md)", ("progress/",), ("name",)),
    OTHER,
)
"""What depends on environment, objective and settings. The first whose source fits counts; the last fits all."""

_BY_SOURCE = {source: metric for metric in METRICS for source in metric.sources}


def samples(line: MetricsLine) -> list[Sample]:
    """The numbers of `line` that are known, each once."""
    found: dict[tuple[str, tuple[str, ...]], Sample] = {}
    for source, value in {"env_steps": line.env_steps, **scalars(line)}.items():
        if value is not None and math.isfinite(value):
            sample = _sample(source, float(value))
            found.setdefault((sample.metric.name, sample.labels), sample)
    return list(found.values())


def _sample(source: str, value: float) -> Sample:
    metric = _BY_SOURCE.get(source)
    if metric is not None:
        return Sample(metric, (), value)
    for family in FAMILIES:
        for beginning in family.sources:
            if source.startswith(beginning):
                return Sample(family, _labels(family, source, beginning), value)
    raise AssertionError(f"no family takes {source}")


def _labels(family: Metric, source: str, beginning: str) -> tuple[str, ...]:
    rest = source.removeprefix(beginning)
    return (beginning.removeprefix("time/").rstrip("/"), rest) if family is PART_TIME else (rest,)


def names_table() -> str:
    """All metrics as a Markdown table: what docs/observability.md has, held by a test."""
    rows = [f"| {' | '.join(_row(metric))} |" for metric in (*METRICS, *FAMILIES)]
    return "\n".join(["| metric | type | in `metrics.jsonl` | |", "|---|---|---|---|", *rows])


def _row(metric: Metric) -> Iterable[str]:
    labels = f"`{{{', '.join(metric.labels)}}}`" if metric.labels else ""
    source = metric.sources[0] + ("…" if metric.labels else "")
    return f"`{metric.name}`{labels}", metric.kind, f"`{source}`" if metric is not OTHER else "the rest", metric.help
