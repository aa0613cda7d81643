"""Evaluation: a trained policy plays episodes on fixed seeds, without learning."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from agents.networks import build_policy
from agents.rollout import Rollout
from envs import make
from envs.vector import EpisodeEnd, VectorEnv
from learner.checkpoint import CheckpointError, latest_checkpoint, load_policy
from orchestration.configuration import resume_config
from orchestration.seeds import derive_seed

_STEPS_A_CALL = 32


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


def evaluate(target: Path, *, episodes: int, seed: int) -> Evaluation:
    """Plays `episodes` episodes with the policy of a run's newest checkpoint, or of the checkpoint `target`.

    The first episode of environment i has the seed derived from (seed, "eval", i), so the same episodes are played
    whatever the policy; training never uses these seeds. Actions are sampled, as in training. Raises CheckpointError.
    """
    checkpoint = _checkpoint(target)
    config = resume_config(checkpoint / "config.yaml", [])
    network = config.agent.network
    from agents.networks import NETWORKS

    view = NETWORKS[network].view
    # One episode for each environment: were environments to go on, short episodes would be counted more often.
    count = min(episodes, 256)
    torch.set_num_threads(1)
    ends: list[EpisodeEnd] = []
    for first in range(0, episodes, count):
        envs = VectorEnv(
            lambda: make(config.env.id, view, **config.env.options),
            min(count, episodes - first),
            lambda env, episode, first=first: derive_seed(seed, "eval", first + env, episode),
        )
        policy = build_policy(network, len(envs.env_spec.action_names))
        policy.load_state_dict(load_policy(checkpoint))
        rollout = Rollout(envs, policy, length=_STEPS_A_CALL, seed=derive_seed(seed, "eval actions", first))
        ends += _first_episodes(rollout)
        rollout.close()
    return _summarise(config.env.id, checkpoint, seed, ends)


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


def _summarise(env: str, checkpoint: Path, seed: int, ends: list[EpisodeEnd]) -> Evaluation:
    n = len(ends)
    returns = [end.episode_return for end in ends]
    mean = sum(returns) / n
    deviation = math.sqrt(sum((r - mean) ** 2 for r in returns) / max(n - 1, 1))
    judged = [end.success for end in ends if end.success is not None]
    low, high = wilson(sum(judged), len(judged)) if judged else (None, None)
    names = ends[0].metrics.keys()
    return Evaluation(
        env=env,
        checkpoint=str(checkpoint),
        episodes=n,
        seed=seed,
        success_rate=sum(judged) / len(judged) if judged else None,
        success_low=low,
        success_high=high,
        return_mean=mean,
        return_interval=1.96 * deviation / math.sqrt(n),
        length_mean=sum(end.length for end in ends) / n,
        metrics={name: sum(end.metrics.get(name, 0.0) for end in ends) / n for name in names},
    )


def wilson(successes: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval of a share (Wilson 1927), 95 % by default."""
    share = successes / trials
    centre = share + z * z / (2 * trials)
    spread = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)
