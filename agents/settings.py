"""Settings of the acting side. Plain frozen dataclasses: the configuration of a run is built from them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class AgentSettings:
    """Which policy acts."""

    network: str = "fast"
    """`fast` (embedded characters, small convolutions, GRU 256) or `oni` (the encoder of ONI, GRU 512)."""


@dataclass(frozen=True)
class ActorSettings:
    """How many act, and how much each brings with one call."""

    count: int = 1
    """Rollout actors, each a process."""
    cpus: float = 1.0
    """CPU cores that one actor reserves; 0.5 lets two of them share the core that one would keep busy, and the rest of the
    learner's."""
    envs: int = 64
    """Environments that one actor steps with one batched inference."""
    rollout_length: int = 32
    """Steps T of one trajectory, and of the truncated backpropagation through time."""
    in_flight: int = 2
    """Rollout calls that wait or run on each actor: 2 keeps it busy while the learner works."""
