"""What recording costs: steps/s of training at several rates of traced episodes, and bytes of a NetHack episode.

Training here is rollout and learner in one process, as the serial runtime has them, without a judge. The systems take
turns, update by update, so that what else the machine does falls on all of them alike.
"""

import argparse
import json
import random
import resource
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from agents.networks import NETWORKS
from agents.observer import EpisodeFinish, Recalled
from agents.rollout import Rollout
from envs import make
from envs.base import YendorEnv
from orchestration.config import Config
from orchestration.configuration import load_config
from orchestration.parts import LearnerPart, action_count, build_observer, build_rollout
from orchestration.traces.again import Player, Recipe
from orchestration.traces.reader import read_trace
from orchestration.traces.recorder import Again
from orchestration.traces.writers import TraceRun

RATES = (0.0, 0.01, 1.0)
MOVES = frozenset({"N", "E", "S", "W", "NE", "NW", "SE", "SW", "SEARCH"})
"""What the long episode is played with: a character that only walks and searches lives for a while."""
EPISODE_STEPS = 2000


@dataclass(frozen=True)
class Cost:
    """Training at one rate of traced episodes."""

    rate: float
    steps_per_second: float
    """Median over the rounds."""
    ratio: float
    """Median over the rounds of its speed over that of rate 0 in the same round."""
    interval: tuple[float, float]
    """95 % interval of that median, by bootstrap over the rounds."""
    aside_us: float
    """Processor time a step of the process that writes the traces, in microseconds; 0 where there is none."""


@dataclass(frozen=True)
class Size:
    """A recorded episode."""

    steps: int
    bytes: int

    @property
    def of_2000(self) -> float:
        """Bytes of 2,000 such steps."""
        return self.bytes / self.steps * EPISODE_STEPS


def main(folder: Path, *options: str) -> None:
    """Prints a table and writes `traces.json`. `options` as on the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks traces", description=__doc__)
    parser.add_argument("--rounds", type=int, default=30, help="updates of each system (default 30)")
    parser.add_argument("--envs", type=int, default=32, help="environments of each system (default 32)")
    parser.add_argument("--seeds", type=int, default=40, help="games tried for the long episode (default 40)")
    given = parser.parse_args(options)
    folder.mkdir(parents=True, exist_ok=True)
    size = episode_size(folder / "episode", given.seeds)
    costs = training_costs(folder / "training", given.rounds, given.envs)
    print(f"a NetHack episode of {size.steps:,} steps: {size.bytes:,} bytes ({size.of_2000:,.0f} for 2,000)")
    print("| trace.rate | steps/s | of rate 0 | 95 % | beside it, µs of a processor a step |\n|---|---|---|---|---|")
    for cost in costs:
        low, high = cost.interval
        print(
            f"| {cost.rate:g} | {cost.steps_per_second:,.0f} | {cost.ratio:.3f} | {low:.3f} to {high:.3f} "
            f"| {cost.aside_us:.1f} |"
        )
    found = {"episode": {**asdict(size), "of_2000": size.of_2000}, "training": [asdict(cost) for cost in costs]}
    (folder / "traces.json").write_text(json.dumps(found, indent=2))


def training_costs(folder: Path, rounds: int, envs: int) -> list[Cost]:
    """Speed of training at each of `RATES`, the systems in turns."""
    torch.set_num_threads(1)
    systems = [_system(folder / f"{rate:g}", rate, envs) for rate in RATES]
    spent: list[list[float]] = [[] for _ in RATES]
    steps = 0
    for number in range(rounds + 1):
        order = list(range(len(RATES)))
        random.Random(number).shuffle(order)
        for index in order:
            rollout, learner = systems[index]
            began = time.perf_counter()
            done, version = 0, learner.learner.version
            # Up to the next update: calls without one are of rollouts alone.
            while learner.learner.version == version:
                trajectory, report = rollout.collect()
                learner.feed(report.source, trajectory, report.new_captions)
                done += trajectory.steps * trajectory.batch
            rollout.set_weights(learner.weights(), learner.learner.version)
            steps += done
            if number:  # the first round warms up
                spent[index].append((time.perf_counter() - began) / done)
    aside_us = [1e6 * _closing(rollout) / (steps / len(systems)) for rollout, _ in systems]
    ratios = np.array(spent[0]) / np.array(spent)
    return [
        Cost(
            rate,
            1 / statistics.median(spent[index]),
            float(np.median(ratios[index])),
            _interval(ratios[index]),
            aside_us[index],
        )
        for index, rate in enumerate(RATES)
    ]


def _interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """95 % interval of the median of `values` [N], by the percentiles of 4,000 bootstrap samples (Efron 1979)."""
    draws = np.random.default_rng(0).choice(values, (4000, len(values)))
    low, high = np.percentile(np.median(draws, axis=1), [2.5, 97.5])
    return float(low), float(high)


def _closing(rollout: Rollout) -> float:
    """Closes it; seconds of processor time that the processes took which end with it."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    rollout.close()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _system(folder: Path, rate: float, envs: int) -> tuple[Rollout, LearnerPart]:
    config: Config = load_config(
        "nethack_score",
        [
            "runtime=serial", "agent.network=fast", "actors.count=1", f"actors.envs={envs}", "reward.model=none",
            "judge.engine=none", "reward.w_int=0.0", f"trace.rate={rate}",
        ],
    )  # fmt: skip
    rollout = build_rollout(config, 0, observer=build_observer(config, folder, 0))
    learner = LearnerPart(config, action_count(config))
    rollout.set_weights(learner.weights(), learner.learner.version)
    return rollout, learner


class _Clock:
    """Steps of about 13 ms, as training with many environments has them."""

    def __init__(self) -> None:
        self._draw, self._now = random.Random(0), 0.0

    def __call__(self) -> float:
        self._now += self._draw.gauss(0.013, 0.002)
        return self._now


def episode_size(folder: Path, seeds: int) -> Size:
    """Bytes of the trace of a NetHack episode of 2,000 steps, or of the longest one of `seeds` games."""
    view = NETWORKS["fast"].view

    def make_env() -> YendorEnv:
        return make("nethack/Score", view, max_episode_steps=EPISODE_STEPS)

    env = make_env()
    names = env.env_spec.action_names
    moves = [index for index, name in enumerate(names) if name in MOVES]
    best: tuple[int, list[int]] = (0, [])
    for seed in range(seeds):
        draw, actions, ended = random.Random(seed), list[int](), False
        env.reset(seed=seed)
        while not ended:
            actions.append(draw.choice(moves))
            _, _, terminated, truncated, _ = env.step(actions[-1])
            ended = terminated or truncated
        best = max(best, (len(actions), [seed, *actions]), key=lambda each: each[0])
        if len(actions) >= EPISODE_STEPS:
            break
    seed, *actions = best[1]
    env.reset(seed=seed)
    draw = np.random.default_rng(0)
    length = len(actions)
    recalled = Recalled(
        episode_id="long",
        env_id=env.env_spec.id,
        env_options=env.env_spec.options,
        action_names=names,
        seeds=env.seeds,
        actions=np.array(actions),
        log_probs=draw.normal(-2.0, 1.0, length).astype(np.float32),
        values=draw.normal(0.0, 1.0, length).astype(np.float32),
        policy_versions=np.repeat(np.arange(length // 64 + 1), 64)[:length],
        reward_model_versions=np.full(length, -1),
    )
    env.close()
    recipe = Recipe("nethack/Score", view, {"max_episode_steps": EPISODE_STEPS}, folder, TraceRun("benchmark", 0))
    Player(recipe, clock=_Clock()).record(
        Again(recalled, EpisodeFinish(0.0, length, False, None, {}, None), "actor/0", "best")
    )
    path = folder / "long.jsonl.zst"
    trace = read_trace(path)
    assert len(trace.steps) == length
    return Size(length, path.stat().st_size)
