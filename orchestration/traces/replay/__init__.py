"""Plays recorded episodes again. See `docs/replay.md`.

`replay` executes an episode from its seeds and compares (L2), `rescore` computes its rewards again (L1), `fork` goes on
from one of its steps with another policy (L4). What would force a language model's stored tokens (L3) belongs beside
them, in a module of its own that reads `llm_call` events; no agent writes those yet.
"""

from orchestration.traces.replay.isolate import replay
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
    "replay",
    "replay_trace",
]
