"""What a replay found."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from orchestration.errors import YendorError

AT_RESET = -1
"""`Verdict.step` where already the first observation differs."""


class Outcome(StrEnum):
    """What became of a trace that was played again."""

    MATCH = "MATCH"
    """Every observation, reward and end came out as recorded."""
    DIVERGED = "DIVERGED"
    """Something came out differently, and comes out so each time."""
    UNREPLAYABLE = "UNREPLAYABLE"
    """It cannot be played again here, or never the same way."""


EXIT_CODES: Mapping[Outcome, int] = {Outcome.MATCH: 0, Outcome.DIVERGED: 1, Outcome.UNREPLAYABLE: 3}
"""What the command line ends with."""


class UnreplayableError(YendorError):
    """Why an episode cannot be played again here, in one line, with what to do about it."""

    exit_code = EXIT_CODES[Outcome.UNREPLAYABLE]


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that did not come out as recorded."""

    key: str
    """`observation.blstats`, `reward`, `terminated`, `caption`, `seeds.core`, ..."""
    recorded: str
    replayed: str


@dataclass(frozen=True, slots=True)
class Divergence:
    """The first step that came out differently."""

    step: int
    """0 for the first action, `AT_RESET` before it."""
    differences: tuple[Difference, ...]
    """At least one; the first is the most telling."""
    recorded_screen: str
    """Empty where none was kept."""
    replayed_screen: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one trace that was played again."""

    outcome: Outcome
    path: str
    episode_id: str | None
    """None where the file cannot be read, as `env_id` then."""
    env_id: str | None
    steps: int
    """So many steps came out as recorded."""
    clock: str
    """`pinned`: the game read a time that follows from its seed; `wall`: it could read the time of day, so that it may
    differ where that decides; `none`: the world reads no clock."""
    divergence: Divergence | None = None
    reason: str | None = None
    """Why it is UNREPLAYABLE."""
    notes: tuple[str, ...] = ()
    """What else there is to know: what could not be compared, what was different here from where it was recorded."""

    @property
    def exit_code(self) -> int:
        """0 for MATCH, 1 for DIVERGED, 3 for UNREPLAYABLE."""
        return EXIT_CODES[self.outcome]

    @property
    def line(self) -> str:
        """The verdict in one line."""
        if self.outcome is Outcome.UNREPLAYABLE:
            return f"UNREPLAYABLE ({self.reason})"
        if self.divergence is None:
            return f"MATCH ({self.steps:,} steps, clock: {self.clock})"
        first = self.divergence.differences[0]
        step = self.divergence.step
        place = "at the reset" if step == AT_RESET else f"at step {step}"
        return f"DIVERGED {place} ({first.key}: recorded {first.recorded}, replayed {first.replayed})"


@dataclass(frozen=True, slots=True)
class Forked:
    """A branch of an episode."""

    verdict: Verdict
    """On the steps before the fork, which were played again."""
    at: int
    """The first step that is not the parent's."""
    policy: str
    path: Path | None
    """The trace of the branch, which begins with its parent's steps; None where those did not come out as recorded."""
    length: int = 0
    """Steps of the branch, its parent's included."""
    episode_return: float = 0.0
    success: bool | None = None


def exit_code(verdicts: Iterable[Verdict]) -> int:
    """Of several: 1 where one diverged, otherwise 3 where one could not be played, otherwise 0."""
    outcomes = {verdict.outcome for verdict in verdicts}
    worst = next((o for o in (Outcome.DIVERGED, Outcome.UNREPLAYABLE) if o in outcomes), Outcome.MATCH)
    return EXIT_CODES[worst]
