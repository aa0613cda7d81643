"""NetHack's score: return against steps with and without the language model's reward, and beside a random policy.

What each policy has learnt is then measured on held-out games, the same for all: they are not those of training.
"""

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from agents.networks import NETWORKS
from benchmarks.evidence_runs import EXTRINSIC, Study, compare, model_of, run_name
from envs import make
from envs.vector import VectorEnv
from orchestration.config import Config
from orchestration.configuration import load_config
from orchestration.evaluate import evaluate, mean_interval
from orchestration.seeds import held_out_seed

TASK = "nethack/Score"
NETWORK = "fast"
_EVAL_SEED = 1
_TOGETHER = 50


@dataclass(frozen=True)
class Held:
    """Return of a policy on held-out games."""

    policy: str
    seed: int | None
    episodes: int
    mean: float
    interval: float
    """Half of the 95 % interval around the mean."""


def random_policy(config: Config, episodes: int) -> Held:
    """Uniform actions in the games that `yendor eval` plays."""
    rng = np.random.default_rng(0)
    returns: list[float] = []
    for first in range(0, episodes, _TOGETHER):
        envs = VectorEnv(
            lambda: make(config.env.id, NETWORKS[config.agent.network].view, **config.env.options),
            min(_TOGETHER, episodes - first),
            lambda env, episode, first=first: held_out_seed(_EVAL_SEED, "eval", first + env, episode),
        )
        envs.reset()
        ended: dict[int, float] = {}
        while len(ended) < envs.count:
            step = envs.step(rng.integers(len(envs.env_spec.action_names), size=envs.count))
            if step.failures:
                raise RuntimeError(f"environment {step.failures[0].env_index} raised {step.failures[0].error}")
            for end in step.episodes:
                ended.setdefault(end.env_index, end.episode_return)
        envs.close()
        returns += ended.values()
    mean, half = mean_interval(returns)
    return Held("random", None, episodes, mean, half)


def main(folder: Path, *options: str) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks evidence_score", description=__doc__)
    parser.add_argument("--models", nargs="+", type=model_of, default=(EXTRINSIC, "classification"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1_000_000, help="environment steps of each run")
    parser.add_argument("--episodes", type=int, default=200, help="held-out games for each policy")
    parser.add_argument("--set", nargs="*", default=[], metavar="MODEL:key=value", help="`all:` for all models")
    chosen = parser.parse_args(options)
    study = Study(
        stem="evidence_score",
        preset="nethack_score",
        tasks=(TASK,),
        models=chosen.models,
        seeds=chosen.seeds,
        steps=chosen.steps,
        measure="return",
        more=(f"all:agent.network={NETWORK}", *chosen.set),
    )
    results = compare(folder, study)
    shared = [key for name, _, key in (one.partition(":") for one in study.more) if name == "all"]
    held = [random_policy(load_config(study.preset, shared), chosen.episodes)]
    print(f"| policy | training | {chosen.episodes} held-out games, mean return |\n|---|---|---|")
    print(f"| random | | {held[0].mean:.1f} ± {held[0].interval:.1f} |")
    for result in results:
        run = folder / run_name(study, TASK, result.model, result.seed)
        found = evaluate(run, episodes=chosen.episodes, seed=_EVAL_SEED)
        held.append(Held(result.model, result.seed, found.episodes, found.return_mean, found.return_interval))
        print(f"| {result.model} | seed {result.seed} | {held[-1].mean:.1f} ± {held[-1].interval:.1f} |", flush=True)
    (folder / f"{study.stem}-held_out.json").write_text(json.dumps([asdict(each) for each in held], indent=1))
