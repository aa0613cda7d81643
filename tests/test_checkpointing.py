"""Checkpoints of a distributed run are written though the reward server gives no state: the state before stands."""

from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, RayTaskError

from orchestration import checkpointing
from orchestration.checkpointing import Checkpoints
from orchestration.config import Config
from reward_server.store import DamagedStoreError


class Calls:
    """Stands for the handle of an actor: remembers what it was asked, and answers when told to."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []

    def options(self, **options: Any) -> "Calls":
        return self

    def remote(self, *arguments: Any) -> Any:
        self.asked.append(arguments)
        return "taken", "the new state"


def failed(error: Exception) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_exception(error)
    return future


class Scene:
    def __init__(self) -> None:
        session: Any = SimpleNamespace(
            rundir=SimpleNamespace(checkpoints=Path("c")), env_steps=7, state_dict=dict, config_yaml=str
        )
        self.pending: list[Any] = []
        self.checkpoints = Checkpoints(
            Config(),
            session,
            then=lambda _, answer: self.pending.append(answer),
            own_state=dict,
            reward_server_state="old",
        )
        self.checkpoints._due = 0.0
        self.state, self.learner = Calls(), Calls()
        self.server: Any = SimpleNamespace(state_dict=self.state)
        self.trainer: Any = SimpleNamespace(checkpoint=self.learner)

    def tick(self) -> None:
        self.checkpoints.tick(self.trainer, self.server)

    @property
    def written_with(self) -> list[Any]:
        """The reward server's state that each checkpoint was asked for with."""
        return [arguments[3] for arguments in self.learner.asked]


def test_a_reward_server_that_hangs_holds_no_checkpoint_up(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene()
    scene.tick()
    scene.tick()
    assert len(scene.state.asked) == 1 and scene.written_with == []
    monkeypatch.setattr(checkpointing.time, "monotonic", lambda: float("1e12"))
    scene.tick()
    assert scene.written_with == ["old"]
    # It wakes up: the next checkpoint has its state, and this one is not asked for twice.
    answer: Future[Any] = Future()
    answer.set_result(True)
    scene.pending[0](answer)
    scene.tick()
    assert scene.written_with == ["old"] and scene.checkpoints.reward_server_state == "the new state"


@pytest.mark.parametrize(
    "error", [ActorDiedError(), RayTaskError("state_dict", "trace", DamagedStoreError("annotations.sqlite is damaged"))]
)
def test_one_that_dies_or_whose_store_is_damaged_leaves_the_state_before(error: Exception) -> None:
    scene = Scene()
    scene.tick()
    scene.pending[0](failed(error))
    assert scene.written_with == ["old"]
    with pytest.raises(ZeroDivisionError):
        scene.pending[0](failed(ZeroDivisionError()))
