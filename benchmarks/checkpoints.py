"""What checkpoints cost the learner: written beside the training, copied to a URL as well, and, for comparison, in its way."""

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
from orchestration.offsite.runs import open_offsite
from orchestration.offsite.uploads import Uploads
from orchestration.parts import LearnerPart, action_count, build_rollout
from orchestration.rundir import RunDir

_ROUNDS = 3
_KEEP = 2
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
    uploaded_slowdown: float
    """The same with each checkpoint copied to a URL, by a thread of the same process (in a distributed run it is one of the
    coordinator's)."""
    upload_ms: float
    """That copying takes, beside it."""


def measure(network: str, interval_s: float, seconds: float, folder: Path, url: str) -> Cost:
    """Trains on the same trajectories again and again, without checkpoints, with them, and with copies of them at `url`."""
    config = load_config("nethack_score", [*_SETTINGS, f"agent.network={network}"])
    torch.set_num_threads(1)
    part = LearnerPart(config, action_count(config))
    rollout = build_rollout(config, 0, observer=None)
    rollout.set_weights(part.weights(), 0)
    trajectories = [rollout.collect()[0] for _ in range(2)]
    rollout.close()
    held: list[float] = []
    offered: list[Path] = []
    writes: list[float] = []
    writer = BackgroundWriter()
    run = open_offsite(url, network)
    run.move_aside()
    uploads = Uploads(run, RunDir(folder / network), _KEEP)

    def snapshot() -> Callable[[], Path]:
        return part.snapshot(RunDir(folder / network).checkpoints, part.learner.trained_samples, _REST, "", _KEEP)

    def updates(checkpoints: bool, upload: bool = False) -> float:
        began, due, count = time.perf_counter(), time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            for trajectory in trajectories:
                part.learner.version = 0  # none is ever too old
                count += len(part.learner.feed(trajectory))
            if upload and not writer.busy and (path := writer.outcome()[0]) not in (None, *offered):
                offered.append(path)
                uploads.offer(path)
            if checkpoints and time.perf_counter() >= due and not writer.busy:
                due = time.perf_counter() + interval_s
                if held:
                    writes.append(writer.outcome()[2])
                at = time.perf_counter()
                writer.start(snapshot())
                held.append(time.perf_counter() - at)
        return count / (time.perf_counter() - began)

    updates(False)
    rounds = [(updates(False), updates(True), updates(True, upload=True)) for _ in range(_ROUNDS)]
    writer.wait()
    if not uploads.finish(60.0) or uploads.errors:
        raise RuntimeError(f"{url}: {[news.text for news in uploads.news()]}")
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
        held_up_share=sum(held) / (2 * _ROUNDS * seconds),
        write_ms=statistics.median(writes) * 1e3 if writes else float("nan"),
        in_the_way_ms=statistics.median(in_the_way) * 1e3,
        slowdown=1.0 - statistics.median(written / without for without, written, _ in rounds),
        uploaded_slowdown=1.0 - statistics.median(uploaded / without for without, _, uploaded in rounds),
        upload_ms=uploads.seconds / max(uploads.done, 1) * 1e3,
    )


_REST: dict[str, Any] = {"runtime": "benchmark"}


def main(folder: Path, *options: str) -> None:
    """Prints one JSON object a network and writes `checkpoints.json`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks checkpoints", description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0, help="of each of the measurements")
    parser.add_argument("--interval", type=float, default=10.0, help="checkpoint.interval_s")
    parser.add_argument("--url", help="where checkpoints are copied to; default: a folder beside the others")
    arguments = parser.parse_args(options)
    url = arguments.url or str(folder / "far")
    found: list[Cost] = []
    for network in ("fast", "oni"):
        found.append(measure(network, arguments.interval, arguments.seconds, folder, url))
        print(json.dumps(asdict(found[-1])), flush=True)
    (folder / "checkpoints.json").write_text(json.dumps([asdict(cost) for cost in found], indent=2))
