"""Records episodes of every family, and replays a folder of them: as functions, and as a process of its own.

`python -m tests.trace_replay_support record FOLDER` and `... replay FOLDER`, which prints a JSON object for each trace.
"""

import dataclasses
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from agents.networks import NETWORKS, build_policy
from agents.rollout import Rollout
from envs.registry import make, make_text
from envs.textworld import prepare
from envs.vector import VectorEnv
from orchestration.seeds import derive_seed
from orchestration.traces.files import TraceFile
from orchestration.traces.reader import Trace, read_trace, trace_files
from orchestration.traces.recorder import TraceRecorder
from orchestration.traces.replay import replay_trace
from orchestration.traces.replay.play import stepped
from orchestration.traces.replay.policies import Choice
from orchestration.traces.replay.worlds import Seen, WordWorld, World
from orchestration.traces.replay.writer import EpisodeWriter
from orchestration.traces.schema import SCHEMA, Caption, Header
from orchestration.traces.versions import clock_text, native_versions, package_versions
from orchestration.traces.writers import EpisodeWriters, TraceRun

CACHE = Path(__file__).resolve().parent.parent / ".cache"
GAMES, HOUSES = CACHE / "test-games", CACHE / "test-houses"

ARRAYS = {
    "nethack": [("nethack/Score", {}), ("nethack/StaircaseLvl3", {"actions": "full"}), ("nethack/Challenge", {})],
    "minihack": [("minihack/KeyRoom-S5", {}), ("minihack/River-Narrow", {}), ("minihack/MazeWalk-9x9", {})],
}
WORDS: dict[str, tuple[str, dict[str, Any], int]] = {
    "textworld": ("textworld/w2-o3-q4", {"cache_dir": str(GAMES), "reward": "dense"}, 2),
    "alfworld": (
        "alfworld/pick_and_place_simple",
        {"cache_dir": str(HOUSES), "split": "unseen", "games": 1, "reward": "dense"},
        1,
    ),
}
FAMILIES = (*ARRAYS, *WORDS)


def record_arrays(
    folder: Path, env_id: str, options: dict[str, Any], *, envs: int, steps: int, rounds: int = 1, seed: int = 0
) -> None:
    """`envs` x `rounds` episodes of at most `steps` steps, played and recorded as training does."""
    torch.manual_seed(seed)
    view = NETWORKS["fast"].view
    name = env_id.partition("/")[2].replace("/", "-")
    vector = VectorEnv(
        lambda: make(env_id, view, max_episode_steps=steps, **options),
        envs,
        lambda env, episode: derive_seed(seed, "env", env_id, env, episode),
    )
    policy = build_policy("fast", len(vector.env_spec.action_names))
    run = TraceRun("test", seed, policy="fast")
    observer = TraceRecorder(folder, 1.0, run, EpisodeWriters(folder, run, "actor"))
    rollout = Rollout(vector, policy, length=steps, seed=seed, name=name, observer=observer)
    for _ in range(rounds):
        rollout.collect()
    rollout.close()


def record_words(
    folder: Path, env_id: str, options: dict[str, Any], seed: int, commands: random.Random, name: str
) -> Path:
    """One episode of a text world, of random commands, some of which the world does not understand."""

    def choose(seen: Seen) -> Choice:
        return Choice(-1, commands.choice((*seen.admissible, "look", "xyzzy", "Go NORTH. ")), None, None)

    return record_world(folder, WordWorld(make_text(env_id, **options)), env_id, options, seed, choose, name)


def record_world(
    folder: Path,
    world: World,
    env_id: str,
    options: dict[str, Any],
    seed: int,
    choose: Callable[[Seen], Choice],
    name: str,
) -> Path:
    """One episode, of what `choose` makes of what was seen last."""
    seen = world.reset(seed)
    header = Header(
        schema=SCHEMA,
        episode_id=name,
        run="test",
        env_id=env_id,
        env_options=options,
        action_names=world.action_names,
        seeds=dict(world.seeds),
        policy_version=0,
        versions=package_versions(),
        code_revision=None,
        clock=clock_text(world.seeds),
        recorded_at=time.time(),
        count_exponent=None,
        natives=native_versions(),
    )
    writer = EpisodeWriter(folder, header, seen, agent="test")
    while not seen.ended:
        choice = choose(seen)
        seen = stepped(world, choice.action, choice.name, seen)
        writer.step(choice, seen, 0)
    world.close()
    return writer.finish()


def record_all(folder: Path, *, episodes: int, steps: int) -> None:
    """At least `episodes` episodes of every family, each family in a folder of its own."""
    for family, worlds in ARRAYS.items():
        for env_id, options in worlds:
            envs = -(-episodes // len(worlds))
            record_arrays(folder / family, env_id, options, envs=envs, steps=steps)
    for family, (env_id, options, games) in WORDS.items():
        if family == "textworld":
            prepare(env_id, range(1, games + 1), cache_dir=GAMES)
        for number in range(episodes):
            given = {**options, "max_episode_steps": 12}
            seed = 1 + number % games
            record_words(folder / family, env_id, given, seed, random.Random(number), f"{family}-{number:03d}")


def replay_all(folder: Path) -> Iterable[dict[str, Any]]:
    """Of each family, or of a run's actors."""
    for family in FAMILIES if (folder / FAMILIES[0]).is_dir() else ("traces",):
        for path in trace_files(folder / family):
            verdict = replay_trace(read_trace(path))
            line = {"family": family, "outcome": verdict.outcome, "steps": verdict.steps, "line": verdict.line}
            yield {**line, "clock": verdict.clock, "finished": path.suffix != ".part", "notes": verdict.notes}


def write(trace: Trace, folder: Path, name: str) -> Path:
    """Writes the records of a trace as a file of its own."""
    file = TraceFile(folder, name)
    file.write(dataclasses.replace(trace.header, episode_id=name))
    for identity, text in trace.captions.items():
        file.write(Caption(identity, text))
    for record in (*trace.events, *([] if trace.end is None else [trace.end])):
        file.write(record)
    file.flush()
    file.complete()
    return file.final


def die(*arguments: Any) -> None:
    """What takes the place of a replay or a fork to see what becomes of one whose process dies."""
    del arguments
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "record":
        record_all(Path(sys.argv[2]), episodes=int(sys.argv[3]), steps=int(sys.argv[4]))
    else:
        for result in replay_all(Path(sys.argv[2])):
            print(json.dumps(result))
