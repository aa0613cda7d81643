"""Computes the rewards of a recorded episode again, without playing it (level L1)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learner.checkpoint import checkpoints, load_state
from learner.fusion import fuse
from orchestration.config import Config
from orchestration.configuration.loader import read_config
from orchestration.errors import UsageError
from orchestration.traces.reader import Trace
from orchestration.traces.replay.verdict import Difference, Outcome, UnreplayableError
from orchestration.traces.schema import COMPONENT, RAW, Reward

LATEST = "latest"
TOLERANCE = 1e-5
"""A reward model's numbers depend in the last places on how many captions it reads at once."""

_FUSED = frozenset({"environment", "reward_model", "fusion"})
"""Sources of components that are computed here; those of others are taken as they stand."""


@dataclass(frozen=True, slots=True)
class StepReward:
    """The reward of one step: `total` is the sum of the three before it."""

    step: int
    caption: str
    count: int
    r_int: float
    """What the reward model makes of the caption, before counts and weights."""
    extrinsic: float
    intrinsic: float
    stored: float
    """Components of other sources, as the trace has them."""
    total: float


@dataclass(frozen=True, slots=True)
class Rescored:
    """The rewards of an episode under one version of the reward model."""

    version: int
    checkpoint: Path
    steps: tuple[StepReward, ...]
    compared: int
    """Rewards of this version that the trace holds, and that were compared."""
    step: int | None
    """The first step whose stored reward is another; None where all agree."""
    difference: Difference | None

    @property
    def outcome(self) -> Outcome:
        """MATCH also where the trace holds none of this version's rewards."""
        return Outcome.MATCH if self.difference is None else Outcome.DIVERGED

    def sums(self) -> dict[str, float]:
        """Over the episode: `extrinsic`, `intrinsic`, `stored`, `total`."""
        names = ("extrinsic", "intrinsic", "stored", "total")
        return {name: float(sum(getattr(step, name) for step in self.steps)) for name in names}


def rescore(trace: Trace, model: str) -> Rescored:
    """Scores the captions of `trace` again and fuses them with its rewards and counts, under the settings of its run.

    `model`: a version that one of the run's checkpoints holds, `latest`, or the folder of a checkpoint. Raises
    `UnreplayableError` where no checkpoint holds it, and `UsageError` for what is neither.
    """
    checkpoint, state = _find(trace, model)
    config = read_config(checkpoint / "config.yaml")
    r_int = _intrinsic(trace, config, state)
    steps = trace.steps
    stored = _components(trace)
    fused = fuse(
        np.array([step.reward for step in steps], np.float32),
        r_int,
        np.array([step.caption_count for step in steps], np.int32),
        config.reward,
    )
    total = fused.total + stored
    scored = tuple(
        StepReward(
            step=step.step,
            caption=trace.captions.get(step.caption_id, ""),
            count=step.caption_count,
            r_int=float(r_int[at]),
            extrinsic=float(fused.extrinsic[at]),
            intrinsic=float(fused.intrinsic[at]),
            stored=float(stored[at]),
            total=float(total[at]),
        )
        for at, step in enumerate(steps)
    )
    version = int(state["version"])
    compared, place, difference = _compare(trace, version, scored)
    return Rescored(version, checkpoint, scored, compared, place, difference)


def _find(trace: Trace, model: str) -> tuple[Path, Mapping[str, Any]]:
    """The checkpoint that holds the version, and the scorer's state in it."""
    if not model.isdecimal() and model != LATEST:
        if not (Path(model) / "manifest.json").is_file():
            raise UsageError(f"--reward-model {model}: is no version, not {LATEST!r} and no folder of a checkpoint")
        return Path(model), _scorer(Path(model))
    run = trace.path.resolve().parent.parent
    found = checkpoints(run / "checkpoints")
    if not found:
        raise UnreplayableError(
            f"no weights of a reward model: {run} holds no checkpoints; name one with --reward-model FOLDER"
        )
    held: list[int] = []
    for checkpoint in reversed(found):
        state = _scorer(checkpoint)
        held.append(int(state["version"]))
        if model == LATEST or held[-1] == int(model):
            return checkpoint, state
    raise UnreplayableError(
        f"no weights of reward model v{model}: the checkpoints of {run.name} hold {', '.join(f'v{v}' for v in held)}"
    )


def _scorer(checkpoint: Path) -> Mapping[str, Any]:
    state = load_state(checkpoint)["learner"]["scorer"]
    if state is None:
        raise UnreplayableError(f"{checkpoint}: the run has no reward model (reward.model=none)")
    return state


def _intrinsic(trace: Trace, config: Config, scorer: Mapping[str, Any]) -> NDArray[np.float32]:
    """r_int of each step's caption: [T]; 0 where nothing was said, and everywhere before the first version."""
    if not int(scorer["version"]):
        return np.zeros(len(trace.steps), np.float32)
    from reward_server.models.base import build_reward_model

    model = build_reward_model(config.reward.model, config.model_settings())
    model.load_state_dict(scorer["model"])
    ids = sorted(trace.captions)
    scores = dict(zip(ids, model.score([trace.captions[name] for name in ids]).tolist(), strict=True)) if ids else {}
    return np.array([scores.get(step.caption_id, 0.0) for step in trace.steps], np.float32)


def _components(trace: Trace) -> NDArray[np.float32]:
    """What sources beside environment and reward model add to each step's reward: [T]."""
    row = {step.id: at for at, step in enumerate(trace.steps)}
    sums = np.zeros(len(row), np.float32)
    for event in trace.events:
        if isinstance(event, Reward) and event.part == COMPONENT and event.source not in _FUSED:
            for target in event.targets:
                if target in row:
                    sums[row[target]] += event.value / len(event.targets)
    return sums


def _compare(trace: Trace, version: int, scored: tuple[StepReward, ...]) -> tuple[int, int | None, Difference | None]:
    """Against the rewards that the trace holds of the same version of the model: raw ones, and what they add."""
    row = {step.id: at for at, step in enumerate(trace.steps)}
    compared = 0
    for event in trace.events:
        if not isinstance(event, Reward) or event.source != "reward_model" or event.version != version:
            continue
        if event.part not in (RAW, COMPONENT) or event.targets[0] not in row:
            continue
        step = scored[row[event.targets[0]]]
        value = step.r_int if event.part == RAW else step.intrinsic
        compared += 1
        if abs(value - event.value) > TOLERANCE * max(1.0, abs(event.value)):
            name = "r_int" if event.part == RAW else "intrinsic reward"
            return compared, step.step, Difference(name, f"{event.value:g}", f"{value:g}")
    return compared, None, None
