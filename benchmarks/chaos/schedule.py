"""Which faults happen when: drawn from a seed, the same for the same seed."""

import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What is done to a run."""

    KILL_ACTOR = "kill -9 an actor"
    STOP_ACTOR = "SIGSTOP an actor"
    KILL_LEARNER = "kill -9 the learner"
    STOP_LEARNER = "SIGSTOP the learner"
    KILL_REWARD_SERVER = "kill -9 the reward server"
    STOP_REWARD_SERVER = "SIGSTOP the reward server"
    KILL_WRITER = "kill -9 a trace writer"
    KILL_NODE = "a node goes and comes back"
    LOSE_NODE = "a node is out of reach, and another comes"
    KILL_LEARNER_NODE = "the learner's node goes and comes back"
    CUT = "the network is cut"
    SLOW_NETWORK = "the network is slow"
    JUDGE_HANGS = "the judge hangs"
    JUDGE_GARBAGE = "the judge answers garbage"
    JUDGE_ERRORS = "the judge answers errors"
    JUDGE_SLOW = "the judge is slow"
    DISK_FULL = "the disk is full"
    DAMAGE_STORE = "the label store is damaged"
    KILL_DRIVER = "kill -9 the driver, then --resume"
    KILL_HEAD = "the head's machine goes with the driver, another comes, then --resume"


NETWORK = frozenset({Kind.CUT, Kind.SLOW_NETWORK, Kind.LOSE_NODE})


@dataclass(frozen=True, slots=True)
class Share:
    """How often a kind happens, and for how long."""

    weight: float
    hold_s: tuple[float, float] = (0.0, 0.0)


SHARES: Mapping[Kind, Share] = {
    Kind.KILL_ACTOR: Share(34),
    Kind.STOP_ACTOR: Share(24, (0.5, 4.0)),
    Kind.KILL_LEARNER: Share(18),
    Kind.STOP_LEARNER: Share(14, (0.5, 4.0)),
    Kind.KILL_REWARD_SERVER: Share(16),
    Kind.STOP_REWARD_SERVER: Share(10, (0.5, 4.0)),
    Kind.KILL_WRITER: Share(12),
    Kind.KILL_NODE: Share(10, (1.0, 6.0)),
    Kind.LOSE_NODE: Share(4),
    Kind.KILL_LEARNER_NODE: Share(6, (1.0, 6.0)),
    Kind.CUT: Share(16, (0.3, 3.0)),
    Kind.SLOW_NETWORK: Share(12, (2.0, 5.0)),
    Kind.JUDGE_HANGS: Share(8, (2.0, 6.0)),
    Kind.JUDGE_GARBAGE: Share(8, (2.0, 5.0)),
    Kind.JUDGE_ERRORS: Share(8, (2.0, 5.0)),
    Kind.JUDGE_SLOW: Share(8, (2.0, 5.0)),
    Kind.DISK_FULL: Share(10, (2.0, 6.0)),
    Kind.DAMAGE_STORE: Share(5),
    Kind.KILL_DRIVER: Share(4),
    Kind.KILL_HEAD: Share(2),
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault of the schedule."""

    number: int
    kind: Kind
    wait_s: float
    """Between the end of the one before and this one."""
    hold_s: float
    """How long it lasts, where it is not a single blow."""
    choice: float
    """In [0, 1): which of several that it may meet."""


def schedule(seed: int, count: int, kinds: Collection[Kind], mean_wait_s: float = 2.0) -> tuple[Fault, ...]:
    """`count` faults of these kinds, each kind by its weight and at least once, in random order; waits are exponential.

    Raises ValueError where `count` is smaller than the number of kinds.
    """
    if count < len(kinds):
        raise ValueError(f"{count} faults of {len(kinds)} kinds: give at least {len(kinds)}")
    draw = random.Random(seed)
    ordered = [kind for kind in Kind if kind in kinds]
    chosen = ordered + draw.choices(ordered, [SHARES[kind].weight for kind in ordered], k=count - len(ordered))
    draw.shuffle(chosen)
    return tuple(
        Fault(number, kind, draw.expovariate(1 / mean_wait_s), draw.uniform(*SHARES[kind].hold_s), draw.random())
        for number, kind in enumerate(chosen)
    )
