"""What the session of a run has recorded of it: its own trace, and the sidecars that episodes are completed from."""

import time
from collections import deque
from collections.abc import Callable

from agents.report import RolloutReport
from orchestration.config import Config
from orchestration.configuration import is_traced, uses_judge
from orchestration.errors import TraceError
from orchestration.results import FeedResult
from orchestration.rundir import RunDir, code_revision
from orchestration.traces.late import LabelCopier, ScoreLog
from orchestration.traces.run_trace import LEARNER, REWARD_SERVER, JudgeUse, RunTrace
from reward_server.status import RewardServerStatus
from reward_server.types import JudgeStatus

_AGENTS = {"reward server": REWARD_SERVER}
"""What the trace calls parts that people call something else."""


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
        self._asks_judge = uses_judge(config)
        self._calls: dict[tuple[str, int | None], deque[tuple[str, float]]] = {}
        """Rollout calls that are not answered, by actor and group: id of the event, and when."""
        self._unread: deque[tuple[str, str]] = deque()
        """Rollouts that the learner has not read: source, and id of the event that brought it."""
        self._read: list[str] = []
        """Ids of those that it read since its last update."""
        self._serves = False
        """The reward server is there."""
        self._taught = reward_model_version or 0
        """Newest version of the reward model that it told of."""
        self._on_trouble = on_trouble
        self._trace = _run_trace(config, rundir, on_trouble, policy_version, reward_model_version)
        self._labels = LabelCopier(rundir.annotations, rundir.traces)
        self._scores = ScoreLog(rundir.traces)

    def spawned(self, actor: str) -> None:
        """A rollout actor is there."""
        if self._trace is not None:
            self._trace.spawned(actor, "actor")

    def lost(self, actor: str, reason: str) -> None:
        """A rollout actor died, and its calls with it."""
        if self._trace is not None:
            self._calls = {key: calls for key, calls in self._calls.items() if key[0] != actor}
            self._trace.lost(actor, reason)

    def learner_lost(self, reason: str) -> None:
        """The learner died, and what it had read since its last update went with it."""
        self._read.clear()
        if self._trace is not None:
            self._trace.lost(LEARNER, reason)

    def learner_replaced(self, policy_version: int) -> None:
        """Another learner took its place, and published this version."""
        if self._trace is not None:
            self._trace.spawned(LEARNER, "learner")
            self._trace.weights(policy_version)

    def reward_server_lost(self, reason: str) -> None:
        """The reward server died; that there is another, its next word tells."""
        if self._trace is not None and self._serves:
            self._serves = False
            self._trace.lost(REWARD_SERVER, reason)

    def stands_still(self, part: str, why: str) -> None:
        """A part makes no progress."""
        if self._trace is not None:
            self._trace.stands_still(_AGENTS.get(part, part), why)

    def goes_on(self, part: str, words: str) -> None:
        """It does again."""
        if self._trace is not None:
            self._trace.goes_on(_AGENTS.get(part, part), words)

    def retired(self, actor: str) -> None:
        """A rollout actor was let go: the run was scaled down."""
        if self._trace is not None:
            self._trace.retired(actor)

    def called(self, actor: str, group: int | None = None) -> None:
        """A rollout call was made: of a language model, for a group of episodes; calls of a network are answered in order."""
        if self._trace is not None:
            told = {} if group is None else {"group": group}
            call = (self._trace.delegated(actor, **told), time.monotonic())
            self._calls.setdefault((actor, group), deque()).append(call)

    def rolled_out(self, report: RolloutReport, group: int | None = None) -> None:
        """A rollout call was answered."""
        if self._trace is None:
            return
        calls = self._calls.get((report.source, group))
        if not calls:
            return
        call, began = calls.popleft()
        if not calls:
            del self._calls[report.source, group]
        details = {"steps": report.steps, "episodes": len(report.episodes), "policy_version": report.policy_version}
        # Groups are played side by side, while the calls of a network wait for each other.
        working = report.env_s + report.inference_s + report.other_s
        seconds = working if group is None else time.monotonic() - began
        self._unread.append((report.source, self._trace.returned(report.source, call, seconds, **details)))
        if self._asks_judge and report.new_captions:
            self._trace.told_captions(report.source, len(report.new_captions))

    def unanswered(self, actor: str) -> None:
        """A rollout call of a network brought nothing, as the weights for it were lost; it will be made again."""
        calls = self._calls.get((actor, None))
        if calls:
            calls.popleft()

    def learned(self, source: str, result: FeedResult) -> None:
        """The learner read what `source` brought: updates, versions, and the scores of captions that it gave."""
        if result.scores:
            self._write(lambda: self._scores.add(result.reward_model_version, result.scores))
        if self._trace is None:
            return
        rollout = self.unread(source)
        if rollout is not None:
            self._read.append(rollout)
        if result.updates:
            samples = sum(update.samples for update in result.updates)
            seconds = sum(update.train_s + update.reward_s for update in result.updates)
            self._trace.updated(self._read, seconds, updates=len(result.updates), samples=samples)
            self._read.clear()
        self._trace.weights(result.policy_version)
        self._trace.reward_model(result.reward_model_version)

    def judged(self, before: RewardServerStatus | None, status: RewardServerStatus) -> None:
        """The reward server told how it stands; `before` is what it told last."""
        if self._trace is None:
            return
        now = status.annotator
        if not self._serves:
            self._serves = True
            self._trace.spawned(REWARD_SERVER, "reward server")
        elif before is not None and before.annotator.judge_status != now.judge_status:
            away = now.judge_status in (JudgeStatus.DOWN, JudgeStatus.UNREADABLE)
            self._trace.judge_changed(str(now.judge_status), now.last_error, away=away)
        use = JudgeUse(now.requests, now.prompt_tokens, now.output_tokens)
        self._trace.judged(use, self._model, now.latency_mean_s, now.labelled_this_run)
        if status.version > self._taught:
            self._taught = status.version
            self._trace.taught(status.version)

    def unread(self, source: str) -> str | None:
        """The oldest rollout of `source` that the learner has not read is none that it will: the id of its event."""
        found = next((one for one in self._unread if one[0] == source), None)
        if found is None:
            return None
        self._unread.remove(found)
        return found[1]

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
