"""What checkpoints cost the learner: written beside the training, and, for comparison, in its way."""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from learner.background import BackgroundWriter
from orchestration.configuration import load_config
from orchestration.parts import LearnerPart, action_count, build_rollout

_ROUNDS = 3
_SETTINGS = ["env.id=nethack/Score", "reward.model=none", "learner.batch_size=2048", "actors.envs=64", "runtime=serial"]


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one network at one interval; times are medians."""

    network: str
    interval_s: float
    megabytes: float
    held_up_ms: float
    """That the learner stands still for a checkpoint that is written beside it."""
    held_up_share: float
    """Of the learner's time."""
    write_ms: float
    """That writing takes, beside it."""
    in_the_way_ms: float
    """That the learner would stand still if it wrote the checkpoint itself."""
    slowdown: float
    """Of updates, all in all: 1 − updates/s with checkpoints by those without, measured in turns."""


def measure(network: str, interval_s: float, seconds: float, folder: Path) -> Cost:
    """Trains on the same trajectories again and again, with checkpoints and without."""
    config = load_config("nethack_score", [*_SETTINGS, f"agent.network={network}"])
    torch.set_num_threads(1)
    part = LearnerPart(config, action_count(config))
    rollout = build_rollout(config, 0, observer=None)
    rollout.set_weights(part.weights(), 0)
    trajectories = [rollout.collect()[0] for _ in range(2)]
    rollout.close()
    held: list[float] = []
    writes: list[float] = []
    writer = BackgroundWriter()

    def snapshot() -> Callable[[], Path]:
        return part.snapshot(folder / network, part.learner.trained_samples, _REST, "", 2)

    def updates(checkpoints: bool) -> float:
        began, due, count = time.perf_counter(), time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            for trajectory in trajectories:
                part.learner.version = 0  # none is ever too old
                count += len(part.learner.feed(trajectory))
            if checkpoints and time.perf_counter() >= due and not writer.busy:
                due = time.perf_counter() + interval_s
                if held:
                    writes.append(writer.outcome()[2])
                at = time.perf_counter()
                writer.start(snapshot())
                held.append(time.perf_counter() - at)
        return count / (time.perf_counter() - began)

    updates(False)
    pairs = [(updates(False), updates(True)) for _ in range(_ROUNDS)]
    writer.wait()
    in_the_way: list[float] = []
    for _ in range(_ROUNDS):
        at = time.perf_counter()
        path = snapshot()()
        in_the_way.append(time.perf_counter() - at)
    return Cost(
        network=network,
        interval_s=interval_s,
        megabytes=sum(file.stat().st_size for file in path.iterdir()) / 1e6,
        held_up_ms=statistics.median(held) * 1e3,
        held_up_share=sum(held) / (_ROUNDS * seconds),
        write_ms=statistics.median(writes) * 1e3 if writes else float("nan"),
        in_the_way_ms=statistics.median(in_the_way) * 1e3,
        slowdown=1.0 - statistics.median(with_ / without for without, with_ in pairs),
    )


_REST: dict[str, Any] = {"runtime": "benchmark"}


def main(folder: Path, *options: str) -> None:
    """Prints one JSON object a network and writes `checkpoints.json`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks checkpoints", description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0, help="of each of the measurements")
    parser.add_argument("--interval", type=float, default=10.0, help="checkpoint.interval_s")
    arguments = parser.parse_args(options)
    found: list[Cost] = []
    for network in ("fast", "oni"):
        found.append(measure(network, arguments.interval, arguments.seconds, folder))
        print(json.dumps(asdict(found[-1])), flush=True)
    (folder / "checkpoints.json").write_text(json.dumps([asdict(cost) for cost in found], indent=2))
