"""What a person is told while a run goes on: that something fails, once, and that it works again."""

from orchestration.config import Config
from orchestration.faults import Faults
from orchestration.live import LiveView
from orchestration.results import FeedResult
from reward_server.status import RewardServerStatus

_UNREADABLE = 0.9
"""Share of answers that could not be read, from which on a person is told."""


class Announcer:
    """Tells the view of changes alone."""

    def __init__(self, config: Config, faults: Faults, view: LiveView) -> None:
        self._agent = config.agent
        self._faults = faults
        self._view = view
        self._warned_of_answers = False
        self._unwritten: str | None = None
        """Why numbers cannot be written now."""

    def judged(self, before: RewardServerStatus | None, status: RewardServerStatus) -> None:
        """Where the judge went away or came back, and how its labels are kept."""
        annotator = status.annotator
        if before is not None and before.annotator.judge_status != annotator.judge_status:
            reason = f": {annotator.last_error}" if annotator.last_error else ""
            self._view.event(f"judge is {annotator.judge_status}{reason}", warning=annotator.judge_status == "down")
        self._store(before, status)

    def _store(self, before: RewardServerStatus | None, status: RewardServerStatus) -> None:
        """Where labels cannot be written, or can again, and where the file had to be replaced."""
        failed = None if before is None else before.store_error
        if status.store_error is not None and failed is None:
            self._view.event(f"labels are kept and written later: {status.store_error}", warning=True)
        elif status.store_error is None and failed is not None:
            self._view.event("labels are written again")
        if status.store_restored is not None and (before is None or before.store_restored != status.store_restored):
            self._view.event(
                f"the label store was damaged: it was made anew from its copy, and what was there lies in "
                f"{status.store_restored}",
                warning=True,
            )

    def answers(self, result: FeedResult) -> None:
        """Warns, once, of a language model that hardly says anything that can be read."""
        shares = [update.metrics["failures"] for update in result.updates if "failures" in update.metrics]
        if shares and shares[-1] > _UNREADABLE and not self._warned_of_answers:
            self._warned_of_answers = True
            agent = self._agent
            self._view.event(
                f"{shares[-1]:.0%} of the model's answers could not be read as agent.answer={agent.answer}: fine-tune it on "
                f"demonstrations first (yendor sft), or raise agent.max_new_tokens={agent.max_new_tokens}",
                warning=True,
            )

    def checkpoint_failed(self, why: str) -> None:
        """One could not be written; told once, until one is again."""
        if not self._faults.checkpoint_failing:
            self._view.event(f"checkpoint not written: {why}; it is tried again when the next is due", warning=True)
        self._faults.checkpoint_failing = True

    def checkpoint_written(self) -> None:
        """One was."""
        if self._faults.checkpoint_failing:
            self._view.event("checkpoints are written again")
        self._faults.checkpoint_failing = False

    def numbers(self, trouble: str | None) -> None:
        """Why metrics or summary cannot be written (a full disk); None where they are."""
        if trouble is not None and self._unwritten is None:
            self._view.event(f"numbers are kept and written later: {trouble}", warning=True)
        elif trouble is None and self._unwritten is not None:
            self._view.event("numbers are written again")
        self._unwritten = trouble
