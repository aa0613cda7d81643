"""What an annotator says of itself, and the meter that it is read from."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, fields

from reward_server.types import Answer, JudgeStatus

RATE_WINDOW_S = 30.0
"""`labels_per_second` is taken over so many seconds."""


@dataclass(frozen=True, slots=True)
class AnnotatorStatus:
    """A snapshot; times in seconds, counts of captions unless said otherwise."""

    judge_status: JudgeStatus
    last_error: str | None
    """Root cause of the trouble that lasts (one line); None while the judge answers."""
    seen: int
    """Different captions submitted in this run."""
    queued: int
    in_flight: int
    labelled: int
    """With a label under this key, from this run or an earlier one."""
    labelled_this_run: int
    """Labels that the judge gave since the annotator was made."""
    failed: int
    """Given up in this run: no answer could be read."""
    dropped: int
    """Times that a caption fell out of the full backlog."""
    duplicates: int
    """Captions submitted again; they are not asked about again."""
    reused: int
    """Labels taken from other runs (`annotator.reuse`)."""
    requests: int
    request_failures: int
    """Requests that no answer came to (refused, timed out, broken)."""
    unreadable: int
    """Answers that could not be read."""
    prompt_tokens: int
    cached_tokens: int
    """Of the prompts' tokens, those that the engine had in its prefix cache."""
    output_tokens: int
    """Of the judge's answers, as far as its engine tells."""
    late: int
    """Requests given up at their deadline; whatever came of them later was thrown away."""
    latency_mean_s: float | None
    latency_p95_s: float | None
    """Of the last 256 answered requests; None before the first."""
    batch: int
    """Most captions that a request takes at present."""
    labels_per_second: float
    waiting_s: float
    """Time with nothing to ask."""
    busy_s: float
    """Time with a request on its way."""
    blocked_s: float
    """Time with captions queued but nothing on its way: the judge is down, or the budget is spent."""

    def counters(self) -> dict[str, float | None]:
        """All numbers of it that metrics follow, by name."""
        return {
            f"annotator/{field.name}": getattr(self, field.name)
            for field in fields(self)
            if field.name not in ("judge_status", "last_error", "labels_per_second")
        }


@dataclass
class Meter:
    """Counters and recent windows behind `AnnotatorStatus`."""

    requests: int = 0
    request_failures: int = 0
    unreadable: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    late: int = 0
    labelled: int = 0
    waiting_s: float = 0.0
    busy_s: float = 0.0
    blocked_s: float = 0.0
    _latencies: deque[float] = field(default_factory=lambda: deque[float](maxlen=256))
    _labels: deque[tuple[float, int]] = field(default_factory=deque[tuple[float, int]])
    _started: float | None = None

    def answered(self, latency_s: float, answers: Sequence[Answer]) -> None:
        self._latencies.append(latency_s)
        self.prompt_tokens += sum(answer.prompt_tokens for answer in answers)
        self.cached_tokens += sum(answer.cached_tokens for answer in answers)
        self.output_tokens += sum(answer.output_tokens for answer in answers)

    def labels(self, now: float, count: int) -> None:
        self.labelled += count
        self._labels.append((now, count))

    def spend(self, seconds: float, *, busy: bool, blocked: bool) -> None:
        """Books time: with a request on its way, else with captions that cannot leave, else with nothing to ask."""
        if busy:
            self.busy_s += seconds
        elif blocked:
            self.blocked_s += seconds
        else:
            self.waiting_s += seconds

    def start(self, now: float) -> None:
        if self._started is None:
            self._started = now

    def latency(self) -> tuple[float | None, float | None]:
        """Mean and 95th percentile (nearest rank) of the recent requests."""
        if not self._latencies:
            return None, None
        ordered = sorted(self._latencies)
        return sum(ordered) / len(ordered), ordered[-(len(ordered) // 20) - 1]

    def rate(self, now: float) -> float:
        """Labels a second over the window, or since the start where that is shorter."""
        while self._labels and self._labels[0][0] < now - RATE_WINDOW_S:
            self._labels.popleft()
        if self._started is None or not self._labels:
            return 0.0
        return sum(count for _, count in self._labels) / max(min(RATE_WINDOW_S, now - self._started), 1e-3)
