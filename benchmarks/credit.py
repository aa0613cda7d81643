"""What credit attribution adds to an update: learners with and without it on the same trajectories, in turn, in one process."""

import argparse
import copy
import json
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from orchestration.configuration.loader import load_config

KINDS: dict[str, tuple[str, ...]] = {
    "none": ("reward.w_prog=0", "reward.w_ground=0"),
    "outcome": ("reward.w_prog=0", "reward.w_ground=0", "credit.method=outcome"),
    "spa+grounding": (),
    "potential": ("credit.method=potential", "reward.w_ground=0"),
    "spa, 5 heads": ("credit.method=spa", "reward.w_ground=0", "credit.heads=5", "credit.uncertainty=0.1"),
    "spa, separate advantages": ("credit.method=spa", "reward.w_ground=0", "credit.advantage=separate"),
}
_WARM_UP = 12


@dataclass(frozen=True)
class Cost:
    """Processor time of updates with one kind of credit."""

    kind: str
    ms: tuple[float, ...]
    """Of each update."""
    ratios: tuple[float, ...]
    """Each over the update without credit on the same trajectory."""
    state_mb: float
    """What it adds to a checkpoint, replay and slots included."""

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)


def main(folder: Path, *options: str) -> None:
    """Prints a table and writes `credit.json`. `options` as on the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks credit", description=__doc__)
    parser.add_argument("--updates", type=int, default=40, help="measured of each kind (default 40)")
    given = parser.parse_args(options)
    torch.set_num_threads(1)
    found = measure(given.updates)
    print(table(found), flush=True)
    (folder / "credit.json").write_text(json.dumps([{**asdict(c), "ratio": c.ratio} for c in found], indent=2))


def measure(updates: int, *keys: str) -> list[Cost]:
    """All kinds, in turn on each trajectory of the preset `minihack_spa`.

    Every other environment's episodes are told to have succeeded, so that there is something to learn from at once: what
    an update costs does not depend on what it learns.
    """
    from agents.networks import build_policy
    from learner.credit.fragments import Origin
    from learner.credit.outcomes import EpisodeOutcome
    from learner.learner import Learner, NoIntrinsicReward
    from orchestration.configuration import attributes_credit
    from orchestration.parts import build_credit, build_rollout

    configs = {kind: load_config("minihack_spa", (*more, *keys)) for kind, more in KINDS.items()}
    rollout = build_rollout(configs["none"], 0, observer=None)
    actions = len(rollout.envs.env_spec.action_names)
    policy = build_policy("fast", actions)
    learners = {
        kind: Learner(
            copy.deepcopy(policy),
            config.learner,
            config.reward,
            NoIntrinsicReward(),
            build_credit(config, policy.state_size, actions) if attributes_credit(config) else None,
        )
        for kind, config in configs.items()
    }
    spent: dict[str, list[float]] = {kind: [] for kind in learners}
    for call in range(updates + _WARM_UP):
        trajectory, report = rollout.collect()
        ends = [EpisodeOutcome(e.t, e.end.env_index, e.end.env_index % 2 == 0, 0.0) for e in report.episodes]
        origin = Origin(report.source, 0, trajectory.batch, tuple(ends))
        for kind, learner in learners.items():
            began = time.process_time()
            learner.feed(trajectory, origin)
            if call >= _WARM_UP:
                spent[kind].append(time.process_time() - began)
        rollout.policy_version = learners["none"].version
    rollout.close()
    plain = spent["none"]
    return [
        Cost(
            kind,
            tuple(1e3 * s for s in seconds),
            tuple(s / base for s, base in zip(seconds, plain, strict=True)),
            _megabytes(learners[kind].state_dict()["credit"]),
        )
        for kind, seconds in spent.items()
    ]


def _megabytes(state: object) -> float:
    """Of all tensors in a tree."""
    if isinstance(state, torch.Tensor):
        return state.nbytes / 2**20
    children = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    return sum(map(_megabytes, children))


def table(found: list[Cost]) -> str:
    """As a Markdown table."""
    lines = [
        "| credit | ms an update (median) | over none (median, 10 % to 90 %) | MB in a checkpoint |",
        "|---|---|---|---|",
    ]
    for cost in found:
        low, high = (sorted(cost.ratios)[int(share * (len(cost.ratios) - 1))] for share in (0.1, 0.9))
        lines.append(
            f"| {cost.kind} | {statistics.median(cost.ms):.1f} | {cost.ratio:.2f} ({low:.2f} to {high:.2f}) "
            f"| {cost.state_mb:.1f} |"
        )
    return "\n".join(lines)
