"""Training throughput against the limit that the machine sets: its cores, if nothing but environments, inference and
optimisation took time, each as quick as when it is alone."""

import argparse
import json
import os
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks.versus import KEYS, LAYOUT, NETWORKS, START_S, WARM_UP_S, Progress, rate
from orchestration.configuration.loader import load_config

_CALLS = 12
"""Rollouts, each with the update that it fills, of one measurement of the parts."""


@dataclass(frozen=True)
class Parts:
    """Seconds an environment step, each part alone on one core."""

    env: float
    inference: float
    training: float
    other: float
    """Of the rollout: captions, counts, copies. Not part of the limit: it is overhead."""

    def limit(self, cores: int) -> float:
        """Steps/s of `cores` without any overhead."""
        return cores / (self.env + self.inference + self.training)


@dataclass(frozen=True)
class Limit:
    """What one network reaches, and what it could."""

    network: str
    cores: int
    parts: tuple[Parts, ...]
    reached: tuple[float, ...]
    """Steps/s of each run, between measurements of the parts."""
    shares: dict[str, float]
    """Of the last run: what actors and learner spent their time on."""
    command: str

    @property
    def share(self) -> float:
        """Median steps/s over the median limit."""
        return statistics.median(self.reached) / statistics.median(p.limit(self.cores) for p in self.parts)


def main(folder: Path, *options: str) -> None:
    """Prints a table and writes `limit.json`. `options` as on the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks limit", description=__doc__)
    parser.add_argument("--network", choices=NETWORKS, action="append", help="both without it")
    parser.add_argument("--seconds", type=float, default=45.0, help="measured of each run (default 45)")
    parser.add_argument("--repeats", type=int, default=3, help="of parts and runs, in turn (default 3)")
    parser.add_argument("--calls", type=int, default=_CALLS, help="rollouts of one measurement of the parts")
    given = parser.parse_args(options)
    torch.set_num_threads(1)
    found: list[Limit] = []
    for network in given.network or NETWORKS:
        found.append(measure(folder, network, given.seconds, given.repeats, given.calls))
        print(table(found[-1]), flush=True)
        figures = [{**asdict(each), "share": each.share} for each in found]
        (folder / "limit.json").write_text(json.dumps(figures, indent=2))


def measure(folder: Path, network: str, seconds: float, repeats: int, calls: int) -> Limit:
    """The parts alone and whole runs, in turn."""
    from benchmarks import runs

    cores = len(os.sched_getaffinity(0))
    keys = (f"agent.network={network}", *KEYS, *LAYOUT[network])
    parts: list[Parts] = []
    reached: list[float] = []
    run = None
    for number in range(repeats):
        parts.append(measure_parts(network, calls))
        run = runs.train(
            folder, f"{network}-{number}", "nethack_score", *keys, f"train.max_wall_s={START_S + WARM_UP_S + seconds}"
        )
        progress = [Progress(line["time"]["wall_s"], line["env_steps"]) for line in run.lines]
        reached.append(rate(progress, WARM_UP_S, seconds))
    assert run is not None
    names = (
        "actor/env",
        "actor/policy",
        "actor/other",
        "actor/wait",
        "learner/train",
        "learner/rewards",
        "learner/wait",
    )
    shares = {name: run.share(name) for name in names}
    return Limit(network, cores, tuple(parts), tuple(reached), shares, run.command)


def measure_parts(network: str, calls: int) -> Parts:
    """The very objects of a run, with its batch sizes, in one thread of this process."""
    from agents.networks import build_policy
    from learner.learner import Learner, NoIntrinsicReward
    from orchestration.parts import build_rollout

    config = load_config("nethack_score", (f"agent.network={network}", *KEYS, *LAYOUT[network]))
    rollout = build_rollout(config, 0, observer=None)
    learner = Learner(
        build_policy(network, len(rollout.envs.env_spec.action_names)),
        config.learner,
        config.reward,
        NoIntrinsicReward(),
    )
    env = inference = other = training = 0.0
    steps = trained = 0
    for call in range(calls + 2):
        trajectory, report = rollout.collect()
        updates = learner.feed(trajectory)
        if call < 2:  # the first ones make the games, allocate memory and choose kernels
            continue
        env, inference, other = env + report.env_s, inference + report.inference_s, other + report.other_s
        steps += report.steps
        training += sum(u.train_s + u.reward_s for u in updates)
        trained += sum(u.samples for u in updates)
    rollout.close()
    return Parts(env / steps, inference / steps, training / trained, other / steps)


def table(found: Limit) -> str:
    """The limit and what was reached, as a Markdown table, and where the rest goes."""
    parts = [
        statistics.median(getattr(p, name) for p in found.parts) for name in ("env", "inference", "training", "other")
    ]
    limit = statistics.median(p.limit(found.cores) for p in found.parts)
    each = ", ".join(f"{x:,.0f}" for x in found.reached)
    shares = ", ".join(f"{name} {share:.0%}" for name, share in found.shares.items())
    return "\n".join(
        [
            f"| nethack/Score, {found.network} | environment | inference | training | (other) | limit, {found.cores} cores"
            " | reached, each | of the limit |",
            "|---|---|---|---|---|---|---|---|",
            f"| µs a step, alone | {' | '.join(f'{1e6 * x:.0f}' for x in parts)} | {limit:,.0f} steps/s | {each} "
            f"| {found.share:.2f} |",
            f"  where the time of the last run went: {shares}",
        ]
    )
