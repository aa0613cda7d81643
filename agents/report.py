"""What is told of a rollout call. Apart from the rollout, so that a reader need not load torch."""

from dataclasses import dataclass

from envs.vector import EnvFailure, EpisodeEnd


@dataclass(frozen=True, slots=True)
class FinishedEpisode:
    """An episode that ended at step t of a trajectory, in the environment `end.env_index` of it."""

    t: int
    end: EpisodeEnd


@dataclass(frozen=True, slots=True)
class RolloutReport:
    """What the coordinator learns of one rollout call, apart from the trajectory itself."""

    source: str
    """Name of the rollout: its trajectories follow one another."""
    policy_version: int
    steps: int
    """Environment steps taken (T x B)."""
    new_captions: tuple[tuple[int, str], ...]
    """(id, text) of the captions to be told of: `agents.telling`."""
    episodes: tuple[FinishedEpisode, ...]
    failures: tuple[EnvFailure, ...]
    trajectory_bytes: int
    env_s: float
    """Seconds spent stepping environments."""
    inference_s: float
    """Seconds spent in the policy."""
    other_s: float
    """Seconds spent on everything else (captions, counts, copying)."""
    first_step_at: float | None = None
    """Wall clock (seconds since the epoch) when the call's first step was done; None where that is not told."""
    output_tokens: int = 0
    """Tokens that a language model sampled."""
    trouble: tuple[str, ...] = ()
    """Why episodes could not be recorded, a line each."""
