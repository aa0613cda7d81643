"""Episodes as plain values, and traces made of them."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from agents.observer import EpisodeFinish, EpisodeStart, StepRecord
from envs.captions import caption_id
from orchestration.traces.recorder import TraceRecorder, TraceRun

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


def record(recorder: TraceRecorder, played: Played, *, env: int = 0, finish: bool = True) -> None:
    seeds = {"core": str(2**64 - 1), "disp": "0"}
    start = EpisodeStart(
        played.episode_id, "minihack/X", {"max_episode_steps": 9}, ACTIONS, seeds, 3, observation(0), "@"
    )
    recorder.start(env, start)
    for at, (action, caption, reward, version, count) in enumerate(
        zip(played.actions, played.captions, played.rewards, played.versions, played.counts(), strict=True)
    ):
        step = StepRecord(
            step=at,
            action=action,
            log_prob=-0.5 * at,
            value=float("nan") if at == 3 else 0.25,
            reward=reward,
            caption=caption,
            caption_id=caption_id(caption),
            caption_count=count,
            grounded=at % 2 == 0,
            policy_version=version,
            observation=observation(at + 1),
            screen=f"@ {at}\n.",
        )
        recorder.step(env, step)
    if finish:
        total = sum(played.rewards)
        recorder.finish(env, EpisodeFinish(total, len(played.actions), True, True, {"depth": 2.0}, None))


def recorder(folder: Path, rate: float = 1.0, **options: Any) -> TraceRecorder:
    return TraceRecorder(folder, rate, TraceRun("demo", 0, code_revision="abc", count_exponent=3.0), **options)
