"""When to ask a judge that fails: exponential backoff, then a circuit breaker that lets one probe through at a time."""

import random

from reward_server.types import JudgeStatus


class CircuitBreaker:
    """Counts requests that fail in a row and says when the next may leave.

    Closed: requests leave, after `backoff_s * 2^(failures-1)` with jitter where the last one failed. Open, after
    `failures` in a row: one small request (a probe) every `probe_interval_s`. Any readable answer closes it.
    Wholly unreadable answers open it too (`UNREADABLE` instead of `DOWN`), where they concern two captions or more:
    a single odd caption is no evidence against the judge.
    """

    def __init__(self, failures: int, backoff_s: float, probe_interval_s: float, random_: random.Random) -> None:
        self._failures = failures
        self._backoff_s = backoff_s
        self._probe_interval_s = probe_interval_s
        self._random = random_
        self._in_a_row = 0
        self._unreadable_ids: set[int] = set()
        self._reason: JudgeStatus | None = None
        self.retry_at = 0.0
        """No request leaves before this time (on the caller's clock)."""

    @property
    def reason(self) -> JudgeStatus | None:
        """`DOWN` or `UNREADABLE` while open, None while closed."""
        return self._reason

    @property
    def is_open(self) -> bool:
        return self._reason is not None

    def success(self) -> bool:
        """A readable answer came. Returns whether that closed the breaker."""
        was_open = self.is_open
        self._in_a_row = 0
        self._unreadable_ids.clear()
        self._reason = None
        self.retry_at = 0.0
        return was_open

    def failure(self, now: float, not_before: float = 0.0) -> None:
        """No answer came. `not_before` delays the next probe further."""
        self._in_a_row += 1
        if self.is_open or self._in_a_row >= self._failures:
            self._open(now, JudgeStatus.DOWN)
            self.retry_at = max(self.retry_at, not_before)
        else:
            wait = self._backoff_s * 2.0 ** (self._in_a_row - 1) * self._random.uniform(0.5, 1.5)
            self.retry_at = now + min(wait, self._probe_interval_s)

    def unreadable(self, now: float, caption_ids: set[int]) -> None:
        """An answer came in which nothing could be read."""
        self._in_a_row += 1
        self._unreadable_ids |= caption_ids
        if self.is_open or (self._in_a_row >= self._failures and len(self._unreadable_ids) > 1):
            self._open(now, JudgeStatus.UNREADABLE)

    def _open(self, now: float, reason: JudgeStatus) -> None:
        self._reason = reason
        self.retry_at = now + self._probe_interval_s
