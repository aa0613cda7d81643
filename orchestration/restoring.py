"""What a learner goes on from that takes another's place."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from learner.checkpoint import load_state, newest_sound_checkpoint

_log = logging.getLogger(__name__)


def newest_state(root: Path) -> tuple[str | None, dict[str, Any] | None]:
    """Folder and state of the newest sound checkpoint below `root`; None for both where there is none."""
    newest = newest_sound_checkpoint(root, _log.warning)
    return (None, None) if newest is None else (str(newest), load_state(newest))


def learned_samples(state: Mapping[str, Any]) -> int:
    """Environment steps that the policy of a checkpoint has learned from, or that wait in it."""
    session = state["session"]
    return int(session["env_steps"]) - int(session.get("faults", {}).get("samples_lost", 0))
