"""Samples/s of one learner and of several that share its batches, on real trajectories of NetHack; all take turns.

The followers are processes beside this one, as Ray would have them; every one has one thread.
"""

import argparse
import json
import multiprocessing
import statistics
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agents.trajectory import Trajectory
    from learner.learner import Learner

ENV = "nethack/Score"
STEPS = 32


@dataclass(frozen=True)
class Rate:
    """Of one network, batch and number of workers."""

    network: str
    batch_size: int
    workers: int
    samples_per_s: list[float]
    """Of each repeat."""
    exchange: float
    """Share of the leader's time that exchanges take, those it waits in included."""


def main(folder: Path, *options: str) -> None:
    """Prints a table and writes `learners.json`. `options` as on the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks learners", description=__doc__)
    parser.add_argument("--networks", default="fast,oni")
    parser.add_argument("--batches", default="2048,8192", help="samples of an update (default 2048,8192)")
    parser.add_argument("--workers", default="1,2")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args(options)
    rates: list[Rate] = []
    for network in given.networks.split(","):
        for batch in map(int, given.batches.split(",")):
            rates += measure(network, batch, [int(n) for n in given.workers.split(",")], given.repeats)
    (folder / "learners.json").write_text(json.dumps([asdict(rate) for rate in rates], indent=2))
    print(table(rates))


def measure(network: str, batch_size: int, workers: Sequence[int], repeats: int) -> list[Rate]:
    """The second update of learners of so many workers each, which are made and ended in turn."""
    import torch

    torch.set_num_threads(1)
    batch = _batch(network, batch_size)
    spent: dict[int, list[float]] = {n: [] for n in workers}
    exchanged: dict[int, list[float]] = {n: [] for n in workers}
    for _ in range(repeats):
        for n in workers:
            with _learner(network, batch_size, n) as learner:
                learner.update([batch])
                update = learner.update([batch])
            spent[n].append(update.train_s + update.exchange_s + update.reward_s)
            exchanged[n].append(update.exchange_s / spent[n][-1])
    return [
        Rate(network, batch_size, n, [batch_size / s for s in spent[n]], statistics.median(exchanged[n]))
        for n in workers
    ]


def table(rates: Sequence[Rate]) -> str:
    """The figures as Markdown; medians."""
    lines = ["| network | batch | workers | samples/s | exchange |", "|---|---|---|---|---|"]
    for rate in rates:
        speed = statistics.median(rate.samples_per_s)
        lines.append(f"| {rate.network} | {rate.batch_size} | {rate.workers} | {speed:,.0f} | {rate.exchange:.0%} |")
    return "\n".join(lines)


def _batch(network: str, batch_size: int) -> "Trajectory":
    """`batch_size` samples of a policy that does not learn."""
    import torch

    from agents.networks import NETWORKS, build_policy
    from agents.rollout import Rollout
    from envs import make
    from envs.vector import VectorEnv

    envs = VectorEnv(
        lambda: make(ENV, NETWORKS[network].view), batch_size // STEPS, lambda env, episode: 1000 * env + episode
    )
    torch.manual_seed(0)
    rollout = Rollout(envs, build_policy(network, len(envs.env_spec.action_names)), length=STEPS, seed=0)
    try:
        return rollout.collect()[0]
    finally:
        envs.close()


@contextmanager
def _learner(network: str, batch_size: int, workers: int) -> "Generator[Learner]":
    """One that leads `workers` − 1 processes, which end with it."""
    import torch

    from learner.parallel import Group, open_meeting

    learner = _build(network, batch_size)
    if workers == 1:
        yield learner
        return
    meeting, context = open_meeting("127.0.0.1"), multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_follow, args=(network, batch_size, meeting.address, rank, workers))
        for rank in range(1, workers)
    ]
    for process in processes:
        process.start()
    leader = learner.lead(Group(meeting, 0, workers, torch.device("cpu")))
    try:
        yield learner
    finally:
        leader.close()
        for process in processes:
            process.join()


def _build(network: str, batch_size: int) -> "Learner":
    import torch

    from agents.networks import NETWORKS, build_policy
    from envs import make
    from learner.learner import Learner, NoIntrinsicReward
    from learner.settings import LearnerSettings, RewardSettings

    env = make(ENV, NETWORKS[network].view)
    actions = len(env.env_spec.action_names)
    env.close()
    torch.manual_seed(0)
    settings = LearnerSettings(device="cpu", batch_size=batch_size)
    return Learner(build_policy(network, actions), settings, RewardSettings(), NoIntrinsicReward())


def _follow(network: str, batch_size: int, address: str, rank: int, workers: int) -> None:
    import torch

    from learner.parallel import Group, join_meeting
    from learner.team import Follower

    torch.set_num_threads(1)
    step = _build(network, batch_size).step
    Follower(Group(join_meeting(address), rank, workers, torch.device("cpu")), step).follow()
