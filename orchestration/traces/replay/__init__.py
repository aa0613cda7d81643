"""Plays recorded episodes again. See `docs/replay.md`.

`replay` executes an episode from its seeds and compares (L2), `rewards.rescore` computes its rewards again (L1),
`tokens.force_tokens` scores the stored tokens of a language model again (L3), `fork_aside` goes on from a step with another
policy (L4).
"""

from orchestration.traces.replay.isolate import fork_aside, replay
from orchestration.traces.replay.play import replay_trace
from orchestration.traces.replay.verdict import (
    AT_RESET,
    EXIT_CODES,
    Difference,
    Outcome,
    UnreplayableError,
    Verdict,
)

__all__ = [
    "AT_RESET",
    "EXIT_CODES",
    "Difference",
    "Outcome",
    "UnreplayableError",
    "Verdict",
    "fork_aside",
    "replay",
    "replay_trace",
]
