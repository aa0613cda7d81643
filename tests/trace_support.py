"""Episodes as plain values, and traces made of them."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agents.observer import EpisodeFinish, EpisodeStart, EpisodeSteps
from envs.captions import caption_id
from orchestration.traces.recorder import Keeper, TraceRecorder
from orchestration.traces.writers import EpisodeWriters, TraceRun, WritersAside

ACTIONS = ("north", "south", "kick")
CAPTIONS = ("", "You see here a key.", "It's a wall.", '\u00e9\u4e2d \U0001f600 "quoted" \\')


def observation(value: int) -> dict[str, Any]:
    return {"chars": np.full((3, 4), value % 256, np.uint8), "blstats": np.full(5, value / 3, np.float32)}


@dataclasses.dataclass
class Played:
    """An episode as plain values, the reference that a trace is compared with."""

    episode_id: str
    actions: list[int]
    captions: list[str]
    rewards: list[float]
    versions: list[int]

    def counts(self) -> list[int]:
        return [self.captions[: at + 1].count(text) if text else 0 for at, text in enumerate(self.captions)]


def begin(recorder: TraceRecorder, played: Played, *, env: int = 0, reward_model_version: int | None = None) -> None:
    seeds = {"core": str(2**64 - 1), "disp": "0"}
    options = {"max_episode_steps": 9}
    start = EpisodeStart(
        played.episode_id, "minihack/X", options, ACTIONS, seeds, 3, reward_model_version, observation(0), ["@"], 0.0
    )
    recorder.start(env, start)


def record(recorder: TraceRecorder, played: Played, *, env: int = 0, finish: bool = True, at_once: int = 1) -> None:
    """Records an episode as a rollout tells of it, `at_once` steps (of the same version) in each call."""
    begin(recorder, played, env=env)
    length = len(played.actions)
    for low in range(0, length, at_once):
        recorder.steps(env, steps_of(played, low, min(low + at_once, length)))
    if finish:
        recorder.finish(env, EpisodeFinish(sum(played.rewards), length, True, True, {"depth": 2.0}, None))


def steps_of(played: Played, low: int, high: int) -> EpisodeSteps:
    numbers = range(low, high)
    observations = [observation(at + 1) for at in numbers]
    return EpisodeSteps.alone(
        policy_version=played.versions[low],
        reward_model_version=None,
        action=np.array(played.actions[low:high]),
        log_prob=np.array([-0.5 * at for at in numbers], np.float32),
        value=np.array([math.nan if at == 3 else 0.25 for at in numbers], np.float32),
        reward=np.array(played.rewards[low:high]),  # type: ignore[arg-type]  (exact, to be compared)
        captions=played.captions[low:high],
        caption_id=np.array([caption_id(text) for text in played.captions[low:high]]),
        grounded=np.array([at % 2 == 0 for at in numbers]),
        at=np.array([0.001 * (at + 1) for at in numbers]),
        duration=np.array([0.5 if at == 2 else 0.0 for at in numbers]),
        observation={name: np.stack([each[name] for each in observations]) for name in observations[0]},
        screens=[f"@ {at}\n." for at in numbers],
    )


def recorder(
    folder: Path,
    rate: float = 1.0,
    *,
    asked: Sequence[str] = (),
    keeper: Keeper | None = None,
    beside: bool = False,
    **options: Any,
) -> TraceRecorder:
    """`beside`: written by a process of its own. `options` are those of `EpisodeWriters`."""
    run = TraceRun("demo", 0, code_revision="abc", count_exponent=3.0)
    writers = WritersAside(folder, run, "actor") if beside else EpisodeWriters(folder, run, "actor", **options)
    return TraceRecorder(folder, rate, run, writers, asked=asked, keeper=keeper)
