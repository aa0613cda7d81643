"""The bookkeeping of one training run, the same in both runtimes: counters, metrics, summary, checkpoints' state."""

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from agents.report import RolloutReport
from orchestration.announcer import Announcer
from orchestration.config import Config
from orchestration.configuration import learns_intrinsic, to_yaml, uses_judge
from orchestration.errors import ConfigError, MetricsError
from orchestration.faults import Faults
from orchestration.learning_progress import LearningProgress
from orchestration.live import LiveView
from orchestration.machine import free_disk
from orchestration.metrics import MetricsWriter, write_summary
from orchestration.observability.memory import MemoryMeter
from orchestration.observability.sinks import open_sinks
from orchestration.offsite.uploads import open_uploads
from orchestration.results import FeedResult
from orchestration.rundir import RunDir
from orchestration.summary import Status, Summary
from orchestration.time_budget import Clock, Rate
from orchestration.traces.room import Room
from orchestration.traces.run_record import RunRecord
from orchestration.watch.backstops import Backstops
from reward_server.status import RewardServerStatus


class Session:
    """Knows how a run stands and tells it: to `metrics.jsonl`, `summary.json`, TensorBoard and the live view."""

    def __init__(self, config: Config, rundir: RunDir, view: LiveView, *, resumed: Mapping[str, Any] | None) -> None:
        self.config = config
        self.rundir = rundir
        self.view = view
        self.env_steps = 0
        self.stop_requested = False
        self.wall_before_s = 0.0
        self.actor_restarts = 0
        self.incarnation = 0
        """Of the actors that are made now: a higher one plays episodes that no actor of the run has played."""
        self.env_errors = 0
        self.faults = Faults()
        self.actors = 0
        self.actors_waiting = 0
        """Of those, for a machine to begin on."""
        self.learner_waited_s = 0.0
        """What the learner has waited for trajectories, since this process began."""
        self.learning = LearningProgress()
        self._episodes_spent = 0.0
        """Of `train.episodes`, on demonstrations before the run."""
        self.reward_status: RewardServerStatus | None = None
        self._labelled_before = {"labelled": 0, "failed": 0, "dropped": 0, "reused": 0}
        self._checkpoint: Path | None = None
        self._captions: set[int] = set()
        self._bytes_per_step = 0.0
        self._output_tokens = 0
        self._first_step_s: float | None = None
        self._clock = Clock()
        self._waits: dict[str, dict[str, float]] = {}
        self._window_began = time.monotonic()
        self._rate = Rate()
        self.trace_errors, self._trouble_told = 0, False
        self._sink_errors_before = 0
        if resumed is not None:
            self.load_state_dict(resumed)
        elif config.train.episodes is not None:
            self._episodes_spent = _spent(config, config.train.episodes)
        self._announcer = Announcer(config, self.faults, view)
        self.backstops = Backstops(self.faults, view, Room(rundir.traces))
        self.record = RunRecord(
            config,
            rundir,
            self.trouble,
            policy_version=self.learning.policy_version,
            reward_model_version=self.reward_model_in_force,
        )
        self._began = time.monotonic()
        self._started = time.time()
        self.metrics = MetricsWriter(
            rundir.metrics,
            rundir.tensorboard,
            resume_step=None if resumed is None else self.env_steps,
            interval_s=config.log.interval_s,
        )
        self._memory = MemoryMeter()
        self._sinks = open_sinks(config, rundir, view.event)
        self._uploads = open_uploads(config, rundir)
        self._uploads_before = (self.faults.uploads, self.faults.upload_errors)

    # What happened.

    def rolled_out(self, report: RolloutReport, group: int | None = None) -> None:
        """Counts the steps, captions and failures of one rollout call (of a language model: for `group`). Its episodes count
        when the learner has read it."""
        self.record.rolled_out(report, group)
        if self._first_step_s is None:
            first = report.first_step_at or time.time()
            self._first_step_s = first - psutil.Process().create_time()
        self.env_steps += report.steps
        self._captions.update(caption for caption, _ in report.new_captions)
        self._bytes_per_step = report.trajectory_bytes / max(report.steps, 1)
        self._output_tokens += report.output_tokens
        for failure in report.failures:
            self.env_errors += 1
            self.view.event(f"an environment of {report.source} raised and was replaced: {failure.error}", warning=True)
        for trouble in report.trouble:
            self.trouble(trouble)
        for what, seconds in (("env", report.env_s), ("policy", report.inference_s), ("other", report.other_s)):
            self._clock.add("actor", what, seconds)

    def learned(self, report: RolloutReport, result: FeedResult, env_steps: int) -> None:
        """Counts the episodes and updates of one trajectory; `env_steps` are those of the run when it arrived."""
        self.learning.learned(report, result, env_steps, judged=self.reward_status is not None)
        self._announcer.answers(result)
        self.record.learned(report.source, result)
        for update in result.updates:
            self._clock.add("learner", "train", update.train_s)
            self._clock.add("learner", "rewards", update.reward_s)
            if self.config.learner.workers > 1:
                self._clock.add("learner", "exchange", update.exchange_s)
        self._clock.add("learner", "rewards", result.reward_s)
        self._clock.add("learner", "wait", result.waited_s)
        self.learner_waited_s += result.waited_s

    def judged(self, status: RewardServerStatus) -> None:
        """Notes how the reward server stands, and says so where the judge went away or came back."""
        before = self.reward_status
        self.reward_status = status
        self.record.judged(before, status)
        self._announcer.judged(before, status)
        self.learning.reward_model_accuracy = status.accuracy

    @property
    def checkpoint(self) -> Path | None:
        """The newest one that this process wrote."""
        return self._checkpoint

    @checkpoint.setter
    def checkpoint(self, path: Path) -> None:
        self._checkpoint = path
        self.record.checkpoint(path.name, self.env_steps)
        if self._uploads is not None:
            self._uploads.offer(path)

    def checkpoint_failed(self, why: str) -> None:
        """One could not be written; told once, until one is again."""
        self.faults.checkpoint_errors += 1
        self._announcer.checkpoint_failed(why)

    def checkpoint_written(self) -> None:
        """One was."""
        self._announcer.checkpoint_written()

    def waited(self, part: str, what: str, seconds: float) -> None:
        """Counts time that a part of the system spent waiting."""
        self._clock.add(part, what, seconds)

    # How it stands.

    @property
    def finished(self) -> bool:
        """Whether the run reached `train.env_steps`, `train.max_wall_s` or `train.episodes`."""
        train = self.config.train
        return (
            self.env_steps >= train.env_steps
            or (train.max_wall_s is not None and self.wall_s >= train.max_wall_s)
            or (train.episodes is not None and self._episodes_spent + self.learning.episodes.episodes >= train.episodes)
        )

    @property
    def reward_model_in_force(self) -> int | None:
        """The version that steps are rewarded under; None where no reward model is learned. Traces tell of it."""
        return self.learning.reward_model_version if learns_intrinsic(self.config) else None

    @property
    def wall_s(self) -> float:
        return self.wall_before_s + time.monotonic() - self._began

    def report(self, *, due: bool) -> None:
        """Writes a line of metrics and the summary where `due`; shows the view its snapshot in any case."""
        self._rate.look(self.env_steps)
        self._hear_uploads()
        self.backstops.look_here()
        if due:
            self._log()
            self._write_summary()
        self.view.update(self.summary(Status.RUNNING))

    def _write_summary(self) -> None:
        """Numbers that cannot be written (a full disk) are no reason to end a run."""
        trouble = self.metrics.trouble
        try:
            write_summary(self.rundir.summary, self.summary(Status.RUNNING))
        except MetricsError as error:
            trouble = str(error)
        self._announcer.numbers(trouble)

    def finish_uploads(self) -> None:
        """Waits, for `checkpoint.upload_wait_s` at most, until the last checkpoint is at `checkpoint.url` too."""
        if self._uploads is None:
            return
        if self._uploads.pending:
            self.view.event(f"the last checkpoint is being uploaded to {self.config.checkpoint.url}")
        self._uploads.finish(self.config.checkpoint.upload_wait_s)
        self._hear_uploads()

    def _hear_uploads(self) -> None:
        if self._uploads is None:
            return
        before, errors_before = self._uploads_before
        self.faults.uploads = before + self._uploads.done
        self.faults.upload_errors = errors_before + self._uploads.errors
        for news in self._uploads.news():
            self.view.event(news.text, warning=news.warning)

    def end(self, status: Status, error: str | None = None) -> Summary:
        """The last snapshot of the run, also written."""
        self._hear_uploads()
        if self.learning.unlogged:
            self._log()
        self.record.end(str(status), self.env_steps, error)
        summary = replace(self.summary(status), error=error)
        write_summary(self.rundir.summary, summary, durable=True)
        self.metrics.close()
        self._sinks.close(status)
        return summary

    def trouble(self, why: str) -> None:
        """Notes that something could not be recorded, which is no reason to end a run. Only the first time is told: a full
        disk has as many as there are episodes."""
        self.trace_errors += 1
        if not self._trouble_told:
            self._trouble_told = True
            self.view.event(f"not recorded: {why}; the run goes on, and further such errors are counted", warning=True)

    @property
    def sink_errors(self) -> int:
        """Failures to hand metrics on, those before the run was resumed included."""
        return self._sink_errors_before + self._sinks.errors

    def summary(self, status: Status) -> Summary:
        learning = self.learning
        recent, tenths = learning.episodes.recent(), learning.episodes.tenths(self.env_steps)
        rate = self._rate.per_second
        left = max(self.config.train.env_steps - self.env_steps, 0)
        lag_mean, lag_max = learning.lag or (None, None)
        judged = self.reward_status
        annotator = None if judged is None else judged.annotator
        labels = self._label_counts()
        return Summary(
            run=self.rundir.name,
            env=self.config.env.id,
            status=status,
            runtime=self.config.runtime,
            env_steps=self.env_steps,
            target_env_steps=self.config.train.env_steps,
            wall_s=self.wall_s,
            first_step_s=self._first_step_s,
            eta_s=left / rate if rate else None,
            steps_per_second=rate,
            episodes=learning.episodes.episodes,
            return_mean=recent.extrinsic,
            success_rate=recent.success,
            intrinsic_return_mean=recent.intrinsic,
            episode_length_mean=recent.length,
            episode_metrics=recent.metrics,
            success_first_tenth=tenths.success_first,
            success_last_tenth=tenths.success_last,
            return_first_tenth=tenths.return_first,
            return_last_tenth=tenths.return_last,
            captions_unique=len(self._captions),
            captions_labelled=labels["labelled"],
            captions_failed=labels["failed"],
            captions_dropped=labels["dropped"],
            captions_queued=0 if annotator is None else annotator.queued,
            captions_reused=labels["reused"],
            labels_per_second=0.0 if annotator is None else annotator.labels_per_second,
            judge_status=str(annotator.judge_status) if annotator else "starting" if uses_judge(self.config) else "off",
            judge_error=None if annotator is None else annotator.last_error,
            judge_requests=0 if annotator is None else annotator.requests,
            judge_request_failures=0 if annotator is None else annotator.request_failures,
            judge_unreadable=0 if annotator is None else annotator.unreadable,
            judge_latency_mean_s=None if annotator is None else annotator.latency_mean_s,
            judge_latency_p95_s=None if annotator is None else annotator.latency_p95_s,
            reward_model_version=learning.reward_model_version,
            reward_model_accuracy=learning.reward_model_accuracy,
            policy_version=learning.policy_version,
            policy_lag_mean=lag_mean,
            policy_lag_max=lag_max,
            samples_dropped=learning.samples_dropped,
            actors=self.actors,
            actors_waiting=self.actors_waiting,
            actor_restarts=self.actor_restarts,
            learner_restarts=self.faults.learner_restarts,
            reward_server_restarts=self.faults.reward_server_restarts,
            judge_restarts=self.faults.judge_restarts,
            samples_lost=self.faults.samples_lost,
            checkpoint_errors=self.faults.checkpoint_errors,
            uploads=self.faults.uploads,
            upload_errors=self.faults.upload_errors,
            standing_still=dict(self.faults.still),
            running_out=dict(self.faults.running_out),
            env_errors=self.env_errors,
            trace_errors=self.trace_errors,
            sink_errors=self.sink_errors,
            metrics_url=self._sinks.url if status is Status.RUNNING else None,
            waits=self._waits,
            liked=learning.liked,
            disliked=learning.disliked,
            reward_watch=learning.reward_watch.report(),
            checkpoint=None if self.checkpoint is None else str(self.checkpoint),
            uploaded=None if self._uploads is None else self._uploads.newest,
            started=self._started,
            updated=time.time(),
        )

    def _label_counts(self) -> dict[str, int]:
        """As the reward server tells them. A resumed run knows those of its checkpoint until the reward server is up."""
        if self.reward_status is None:
            return self._labelled_before
        now = self.reward_status.annotator
        return {"labelled": now.labelled, "failed": now.failed, "dropped": now.dropped, "reused": now.reused}

    def _log(self) -> None:
        """One line: means over the updates since the last one, and how things stand."""
        metrics = {
            **self.learning.line(),
            "captions/unique": len(self._captions),
            "rollout/bytes_per_step": self._bytes_per_step,
            "env_errors": self.env_errors,
        }
        if self.reward_status is not None:
            metrics.update(self.reward_status.quality())
            annotator = self.reward_status.annotator
            metrics["captions/labelled"] = annotator.labelled
            metrics["captions/failed"] = annotator.failed
            metrics["captions/dropped"] = annotator.dropped
            metrics["captions/queued"] = annotator.queued
        now = time.monotonic()
        window_s = max(now - self._window_began, 1e-9)
        self._waits = self._clock.shares(window_s, {"actor": self.actors})
        self._clock, self._window_began = Clock(), now
        timing: dict[str, float | None] = {
            "wall_s": self.wall_s,
            "steps_per_second": self._rate.per_second,
            "actors": self.actors,
            "actors_waiting": self.actors_waiting,
            "actor_restarts": self.actor_restarts,
            "learner_restarts": self.faults.learner_restarts,
            "reward_server_restarts": self.faults.reward_server_restarts,
            "judge_restarts": self.faults.judge_restarts,
            "samples_lost": self.faults.samples_lost,
            "checkpoint_errors": self.faults.checkpoint_errors,
            "uploads": self.faults.uploads,
            "upload_errors": self.faults.upload_errors,
            "standing_still": len(self.faults.still),
            "running_out": len(self.faults.running_out),
            "disk_free_bytes": free_disk(self.rundir.path),
            "trace_errors": self.trace_errors,
            "sink_errors": self.sink_errors,
            "memory_bytes": self._memory.read(),
        }
        if self.config.agent.model is not None:
            timing["output_tokens_per_second"] = self._output_tokens / window_s
            self._output_tokens = 0
        if self.reward_status is not None:
            timing["labels_per_second"] = self.reward_status.annotator.labels_per_second
            timing.update(self.reward_status.annotator.counters())
        for part, shares in self._waits.items():
            timing.update({f"{part}/{what}": share for what, share in shares.items()})
        self._sinks.log(self.metrics.log(self.env_steps, metrics, timing))

    # What a checkpoint keeps of it.

    def state_dict(self) -> dict[str, Any]:
        return {
            **self.learning.state_dict(),
            "env_steps": self.env_steps,
            "wall_s": self.wall_s,
            "actor_restarts": self.actor_restarts,
            "incarnation": self.incarnation,
            "env_errors": self.env_errors,
            "trace_errors": self.trace_errors,
            "sink_errors": self.sink_errors,
            "faults": self.faults.state_dict(),
            "captions": list(
                self._captions
            ),  # a run may have met a million: sorting them would hold the loop up for seconds
            "labels": self._label_counts(),
            "episodes_spent": self._episodes_spent,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.env_steps = state["env_steps"]
        self.wall_before_s = state["wall_s"]
        self.actor_restarts = state["actor_restarts"]
        self.incarnation = state["incarnation"]
        self.env_errors = state["env_errors"]
        # None in checkpoints of before they were kept.
        self.trace_errors, self._sink_errors_before = state.get("trace_errors", 0), state.get("sink_errors", 0)
        if "faults" in state:  # none in checkpoints of before they were counted
            self.faults.load_state_dict(state["faults"])
        self.learning.load_state_dict(state)
        self._captions = set(state["captions"])
        self._labelled_before = dict(state["labels"])
        self._episodes_spent = state.get("episodes_spent", 0.0)  # none in checkpoints of before they were counted

    def config_yaml(self) -> str:
        """The resolved configuration, kept with each checkpoint."""
        return to_yaml(self.config)


def _spent(config: Config, budget: int) -> float:
    """Episodes that demonstrations took of the budget. Raises ConfigError where they leave none of it."""
    from orchestration.language.models import demonstrations_cost

    spent = demonstrations_cost(config)
    if spent >= budget:
        raise ConfigError(
            f"train.episodes={budget}: the demonstrations that agent.model={config.agent.model} learnt from cost {spent:g} of "
            "them (sft.demonstration_cost each), so none is left to play"
        )
    return spent
