"""Evaluation: a trained policy plays episodes on fixed seeds, without learning.

Invariant: which episodes are played, and what comes of them, depends on checkpoint, seed and count alone, not on how many
processes share the work; and no training ever played one of them (`orchestration.seeds`).
"""

import math
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch

from agents.networks import build_policy
from agents.rollout import Rollout
from envs import make
from envs.vector import EpisodeEnd, VectorEnv
from learner.checkpoint import CheckpointError, latest_checkpoint, load_policy
from orchestration.config import Config
from orchestration.configuration import resume_config
from orchestration.errors import UsageError
from orchestration.machine import available_cpus
from orchestration.seeds import derive_seed, held_out_seed

_STEPS_A_CALL = 32
_TOGETHER = 64
"""Episodes that one process plays at a time."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What the episodes brought; intervals are 95 % (Wilson for a share, normal for a mean)."""

    env: str
    checkpoint: str
    episodes: int
    seed: int
    success_rate: float | None
    success_low: float | None
    success_high: float | None
    return_mean: float
    return_interval: float
    """Half the width of the interval around the mean."""
    length_mean: float
    metrics: dict[str, float]
    """Means of what the environment measures of an episode."""
    metric_intervals: dict[str, float]
    """Half the widths of their intervals."""
    wall_s: float


@dataclass(frozen=True, slots=True)
class _Job:
    """Episodes `first` to `first + count` of an evaluation."""

    config: Config
    checkpoint: Path
    seed: int
    first: int
    count: int


def evaluate(
    target: Path,
    *,
    episodes: int,
    seed: int,
    processes: int | None = None,
    split: str | None = None,
    temperature: float | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Evaluation:
    """Plays `episodes` episodes with the policy of a run's newest checkpoint, or of the checkpoint `target`.

    Episode i has a held-out seed derived from (seed, "eval", i), so the same episodes are played whatever the policy.
    Actions are sampled, as in training. `processes` play at once (None: one for each processor). Of a language model:
    `split` of its world (None: the one that is held out), `temperature` of sampling (None: as in training; 0: greedy); one
    engine plays all; games that are not there yet are generated first, and `progress` told what that is, how much of it is
    done, and how much there is. Raises CheckpointError, and `UsageError` for what the policy does not have.
    """
    began = time.perf_counter()
    checkpoint = _checkpoint(target)
    config = resume_config(checkpoint / "config.yaml", [])
    if config.agent.model is not None:
        from orchestration.language.evaluate import play_held_out

        if processes is not None:
            raise UsageError("--processes: the episodes of a language model share one engine")
        ends = play_held_out(
            checkpoint,
            config,
            episodes=episodes,
            seed=seed,
            split=split,
            temperature=temperature,
            progress=progress,
        )
        return _summarise(config.env.id, checkpoint, seed, ends, time.perf_counter() - began)
    if split is not None or temperature is not None:
        raise UsageError("--split and --temperature are for language models; a network was trained here")
    jobs = [
        _Job(config, checkpoint, seed, first, min(_TOGETHER, episodes - first))
        for first in range(0, episodes, _TOGETHER)
    ]
    workers = min(processes or available_cpus(), len(jobs))
    if workers > 1:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            parts = list(pool.map(_play, jobs))
    else:
        parts = [_play(job) for job in jobs]
    ends = [end for part in parts for end in part]
    return _summarise(config.env.id, checkpoint, seed, ends, time.perf_counter() - began)


def _play(job: _Job) -> list[EpisodeEnd]:
    """One episode for each environment: were environments to go on, short episodes would be counted more often."""
    from agents.networks import NETWORKS

    config = job.config
    view = NETWORKS[config.agent.network].view
    torch.set_num_threads(1)
    envs = VectorEnv(
        lambda: make(config.env.id, view, **config.env.options),
        job.count,
        lambda env, episode: held_out_seed(job.seed, "eval", job.first + env, episode),
    )
    policy = build_policy(config.agent.network, len(envs.env_spec.action_names))
    policy.load_state_dict(load_policy(job.checkpoint))
    rollout = Rollout(envs, policy, length=_STEPS_A_CALL, seed=derive_seed(job.seed, "eval actions", job.first))
    try:
        return _first_episodes(rollout)
    finally:
        rollout.close()


def _checkpoint(target: Path) -> Path:
    if (target / "manifest.json").is_file():
        return target
    newest = latest_checkpoint(target / "checkpoints")
    if newest is None:
        raise CheckpointError(f"{target} has no checkpoint yet; train longer, or name a checkpoint")
    return newest


def _first_episodes(rollout: Rollout) -> list[EpisodeEnd]:
    """The first episode of each environment, in order of environments. Raises RuntimeError where one breaks."""
    ends: dict[int, EpisodeEnd] = {}
    while len(ends) < rollout.envs.count:
        _, report = rollout.collect()
        for failure in report.failures:
            if failure.env_index not in ends:
                raise RuntimeError(f"environment {failure.env_index} raised {failure.error}")
        for episode in report.episodes:
            ends.setdefault(episode.end.env_index, episode.end)
    return [ends[i] for i in sorted(ends)]


def _summarise(env: str, checkpoint: Path, seed: int, ends: list[EpisodeEnd], wall_s: float) -> Evaluation:
    returns, half = mean_interval([end.episode_return for end in ends])
    judged = [end.success for end in ends if end.success is not None]
    low, high = wilson(sum(judged), len(judged)) if judged else (None, None)
    measured = {
        name: mean_interval([end.metrics[name] for end in ends if name in end.metrics]) for name in ends[0].metrics
    }
    return Evaluation(
        env=env,
        checkpoint=str(checkpoint),
        episodes=len(ends),
        seed=seed,
        success_rate=sum(judged) / len(judged) if judged else None,
        success_low=low,
        success_high=high,
        return_mean=returns,
        return_interval=half,
        length_mean=sum(end.length for end in ends) / len(ends),
        metrics={name: mean for name, (mean, _) in measured.items()},
        metric_intervals={name: interval for name, (_, interval) in measured.items()},
        wall_s=wall_s,
    )


def mean_interval(values: list[float], z: float = 1.96) -> tuple[float, float]:
    """Mean, and half the width of its normal confidence interval, 95 % by default; 0 for a single value."""
    n = len(values)
    mean = sum(values) / n
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / max(n - 1, 1))
    return mean, z * deviation / math.sqrt(n)


def wilson(successes: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval of a share (Wilson 1927), 95 % by default."""
    share = successes / trials
    centre = share + z * z / (2 * trials)
    spread = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)
