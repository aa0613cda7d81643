"""What the session of a run has recorded of it: its own trace, and the sidecars that episodes are completed from."""

from collections.abc import Callable

from orchestration.config import Config
from orchestration.configuration import is_traced
from orchestration.errors import TraceError
from orchestration.results import FeedResult
from orchestration.rundir import RunDir, code_revision
from orchestration.traces.late import LabelCopier, ScoreLog
from orchestration.traces.run_trace import LEARNER, REWARD_SERVER, RunTrace
from reward_server.status import RewardServerStatus
from reward_server.types import JudgeStatus


class RunRecord:
    """Records a run as long as it goes; nothing where it is not traced. Trouble with files is told and ends nothing."""

    def __init__(
        self,
        config: Config,
        rundir: RunDir,
        on_trouble: Callable[[str], None],
        *,
        policy_version: int,
        reward_model_version: int | None,
    ) -> None:
        """The versions that the run begins, or goes on, with; None where no reward model is learned."""
        self._model = config.judge.model
        self._on_trouble = on_trouble
        self._trace = _run_trace(config, rundir, on_trouble, policy_version, reward_model_version)
        self._labels = LabelCopier(rundir.annotations, rundir.traces)
        self._scores = ScoreLog(rundir.traces)

    def spawned(self, actor: str) -> None:
        """A rollout actor is there."""
        if self._trace is not None:
            self._trace.spawned(actor, "actor")

    def lost(self, actor: str, reason: str) -> None:
        """A rollout actor died."""
        if self._trace is not None:
            self._trace.lost(actor, reason)

    def learner_lost(self, reason: str) -> None:
        """The learner died."""
        if self._trace is not None:
            self._trace.lost(LEARNER, reason)

    def learner_replaced(self, policy_version: int) -> None:
        """Another learner took its place, and published this version."""
        if self._trace is not None:
            self._trace.spawned(LEARNER, "learner")
            self._trace.weights(policy_version)

    def retired(self, actor: str) -> None:
        """A rollout actor was let go: the run was scaled down."""
        if self._trace is not None:
            self._trace.retired(actor)

    def learned(self, result: FeedResult) -> None:
        """The learner read a trajectory: versions, and the scores of captions that it gave."""
        if result.scores:
            self._write(lambda: self._scores.add(result.reward_model_version, result.scores))
        if self._trace is not None:
            self._trace.weights(result.policy_version)
            self._trace.reward_model(result.reward_model_version)

    def judged(self, before: RewardServerStatus | None, status: RewardServerStatus) -> None:
        """The reward server told how it stands; `before` is what it told last."""
        if self._trace is None:
            return
        now = status.annotator
        if before is None:
            self._trace.spawned(REWARD_SERVER, "reward server")
        elif before.annotator.judge_status != now.judge_status:
            away = now.judge_status in (JudgeStatus.DOWN, JudgeStatus.UNREADABLE)
            self._trace.judge_changed(str(now.judge_status), now.last_error, away=away)
        self._trace.judged(now.requests, self._model, now.latency_mean_s, now.labelled_this_run)

    def checkpoint(self, name: str, env_steps: int) -> None:
        """A checkpoint was written."""
        if self._trace is not None:
            self._flush()
            self._trace.checkpoint(name, env_steps)

    def end(self, status: str, env_steps: int, error: str | None) -> None:
        """The run has ended; nothing is recorded after that."""
        trace, self._trace = self._trace, None
        if trace is not None:
            self._flush()
            trace.end(status, env_steps, error)

    def _flush(self) -> None:
        self._write(self._labels.copy)
        self._write(self._scores.flush)

    def _write(self, write: Callable[[], object]) -> None:
        try:
            write()
        except TraceError as error:
            self._on_trouble(str(error))


def _run_trace(
    config: Config,
    rundir: RunDir,
    on_trouble: Callable[[str], None],
    policy_version: int,
    reward_model_version: int | None,
) -> RunTrace | None:
    """The trace of the run itself; None where nothing is traced."""
    if not is_traced(config):
        return None
    return RunTrace(
        rundir.traces,
        run=config.run.name,
        env_id=config.env.id,
        env_options=config.env.options,
        seed=config.run.seed,
        policy=config.agent.model or config.agent.network,
        policy_version=policy_version,
        reward_model_version=reward_model_version,
        code_revision=code_revision(),
        count_exponent=config.reward.count_exponent,
        on_trouble=on_trouble,
    )
