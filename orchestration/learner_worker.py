"""What the hosts of learners have in common, whoever learns: a sign of life, and checkpoints written beside the training."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestration.results import Written

if TYPE_CHECKING:
    from reward_server.models.base import RewardModelVersion


class LearnerHost:
    """A base of Ray actors, each of which has its learner's part in `_part`."""

    def __init__(self) -> None:
        from learner.background import BackgroundWriter

        self._part: Any
        self._writer = BackgroundWriter()

    def beat(self) -> None:
        """Answers when the calls before it are done, and so says that this process lives."""

    def adopt(self, version: "RewardModelVersion") -> None:
        self._part.adopt(version)

    def checkpoint(
        self, root: Path, env_steps: int, rest: Mapping[str, Any], reward_server: Any, config_yaml: str, keep: int
    ) -> float:
        """Begins to write a checkpoint of what has been fed so far; the seconds that the learner was held up.

        `reward_server` is the state of that, which comes here without passing the coordinator.
        """
        began = time.perf_counter()
        self._writer.wait()
        try:
            write = self._part.snapshot(root, env_steps, {**rest, "reward_server": reward_server}, config_yaml, keep)
        except OSError as error:
            write = _failed(error)
        self._writer.start(write)
        return time.perf_counter() - began

    def written(self, wait: bool) -> Written | None:
        """What came of the newest checkpoint; None while it is being written, which `wait` waits for."""
        if wait:
            self._writer.wait()
        if self._writer.busy:
            return None
        path, error, seconds = self._writer.outcome()
        if error is None:
            return Written(path, None, seconds)
        return Written(None, f"{type(error).__name__}: {error}", seconds)


def _failed(error: OSError) -> Callable[[], Path]:
    def write() -> Path:
        raise error

    return write
