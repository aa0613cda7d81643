"""Which turn of a recorded episode earned what, and why: credit computed again with the estimator of a checkpoint.

A trace holds hashes of observations, not what the policy's core made of them. So the episode is played again from its seeds
and actions (level L2), the checkpoint's policy reads it, and its progress estimator and credit method pay each turn. Of a
language model it holds the tokens, which are read as they are (`spoken_credit`).
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents.networks import NETWORKS, build_policy
from agents.networks.base import RecurrentPolicy
from learner.checkpoint import latest_checkpoint, load_policy, load_state
from learner.credit.attribution import Attribution, CreditMethod, Floats, whole
from learner.credit.online import OnlineCredit, turn_features
from learner.credit.outcomes import EpisodeOutcome, outcome_of
from learner.fusion import fuse
from orchestration.config import Config
from orchestration.configuration import attributes_credit, learns_intrinsic
from orchestration.configuration.loader import read_config
from orchestration.errors import TraceError, UsageError
from orchestration.parts import build_credit
from orchestration.traces.files import TraceFile
from orchestration.traces.reader import Trace, read_lines, records_of
from orchestration.traces.replay.play import follow
from orchestration.traces.replay.rewards import rescore
from orchestration.traces.replay.worlds import Seen, open_world, reset_of
from orchestration.traces.schema import COMPONENT, RAW, TOTAL, End, Header, LlmCall, Reward

_CHUNK = 256
"""Steps that the policy reads at once."""
_SOURCES = {"extrinsic": "environment", "intrinsic": "reward_model", "progress": "progress", "grounding": "grounding"}
"""Component of an attribution: its source in a trace."""
_FAMILY = {"environment": "outcome", "reward_model": "verifier", "progress": "process", "grounding": "tool"}


@dataclass(frozen=True, slots=True)
class TurnCredit:
    """What one turn was paid; the four components sum to `total`."""

    step: int
    action: str
    contribution: float
    """ĉ, guards applied, before its weight."""
    deviation: float
    """Of the estimator's heads."""
    extrinsic: float
    intrinsic: float
    progress: float
    grounding: float
    total: float
    why: str


@dataclass(frozen=True, slots=True)
class EpisodeCredit:
    """An episode with its attribution."""

    episode_id: str
    method: str
    checkpoint: str
    policy_version: int
    """Of the weights that read it here; those that played it may be others."""
    progress_version: int
    """Of the estimator; 0: it had not learnt yet, or there is none."""
    outcome: float | None
    """R; None for an episode that did not end."""
    contributions: float
    """Σ ĉ, to be compared with R."""
    turns: tuple[TurnCredit, ...]

    def sums(self) -> dict[str, float]:
        """Over the episode, by component."""
        names = (*_SOURCES, "total")
        return {name: float(sum(getattr(turn, name) for turn in self.turns)) for name in names}


def credit_of(trace: Trace, checkpoint: Path | None = None) -> EpisodeCredit:
    """Attributes the episode of `trace` under a checkpoint of its run, the newest by default.

    Raises UsageError where there is none or its run attributes no credit, UnreplayableError where the world cannot be
    played here, TraceError where it comes out differently.
    """
    folder = _checkpoint(trace, checkpoint)
    config = read_config(folder / "config.yaml")
    if not attributes_credit(config):
        raise UsageError(
            f"--credit: {folder} is of a run that attributes no credit (credit.method={config.credit.method}, "
            f"reward.w_prog={config.reward.w_prog:g}); train with credit.method=spa reward.w_prog=1, say"
        )
    if not trace.steps:
        raise TraceError(f"{trace.path}: has no step to attribute")
    read = _read_by_model(trace, config, folder) if config.agent.model else _read_by_network(trace, config, folder)
    extrinsic, intrinsic = _rewards(trace, config, folder)
    outcome = _outcome(trace, config)
    terminated = trace.end is not None and (trace.end.terminated or not read.bootstraps)
    turns = replace(
        whole(
            lengths=[len(trace.steps)],
            extrinsic=extrinsic,
            intrinsic=intrinsic,
            progress=read.contribution,
            grounded=np.array([step.grounded for step in trace.steps]),
            terminated=np.array([terminated]),
            outcome=np.array([np.nan if outcome is None else outcome]),
        ),
        ended=np.array([trace.end is not None]),
    )
    paid = read.method.attribute(turns)
    return EpisodeCredit(
        episode_id=trace.header.episode_id,
        method=config.credit.method,
        checkpoint=str(folder),
        policy_version=read.policy_version,
        progress_version=read.progress_version,
        outcome=outcome,
        contributions=float(read.contribution.sum()),
        turns=_turns(trace, paid, read.contribution, read.deviation),
    )


def _checkpoint(trace: Trace, checkpoint: Path | None) -> Path:
    if checkpoint is not None:
        if not (checkpoint / "manifest.json").is_file():
            raise UsageError(f"--checkpoint {checkpoint}: is no checkpoint (it has no manifest.json)")
        return checkpoint
    run = trace.path.resolve().parent.parent
    newest = latest_checkpoint(run / "checkpoints")
    if newest is None:
        raise UsageError(f"--credit: {run} holds no checkpoint with an estimator; name one with --checkpoint FOLDER")
    return newest


@dataclass(frozen=True, slots=True)
class _Read:
    """What a checkpoint makes of an episode of T turns."""

    method: CreditMethod
    contribution: Floats
    """[T], ĉ."""
    deviation: Floats
    """[T]"""
    policy_version: int
    progress_version: int
    bootstraps: bool
    """Whether the return counts the value of the state in which an episode was cut."""


def _read_by_network(trace: Trace, config: Config, folder: Path) -> _Read:
    policy, credit, version = _parts(trace, config, folder)
    contribution, deviation = _contributions(trace, config, policy, credit)
    known = 0 if credit.estimator is None else credit.estimator.version
    return _Read(credit.method, contribution, deviation, version, known, True)


def _read_by_model(trace: Trace, config: Config, folder: Path) -> _Read:
    from orchestration.traces.spoken_credit import LanguageReader

    reader = LanguageReader(config, folder, load_state(folder))
    contribution, deviation = reader.contributions(trace)
    return _Read(reader.method, contribution, deviation, reader.version, reader.progress_version, reader.bootstraps)


def _parts(trace: Trace, config: Config, folder: Path) -> tuple[RecurrentPolicy, OnlineCredit, int]:
    """Policy and credit of a checkpoint, and the policy's version."""
    actions = len(trace.header.action_names)
    weights = load_policy(folder)
    known = int(weights["actor.weight"].shape[0])
    if known != actions:
        raise UsageError(
            f"--credit: the checkpoint {folder} plays {config.env.id} with {known} actions, "
            f"{trace.header.env_id} has {actions}"
        )
    policy = build_policy(config.agent.network, actions)
    policy.load_state_dict(weights)
    state = load_state(folder)["learner"]["learner"]
    credit = build_credit(replace(config, learner=replace(config.learner, device="cpu")), policy.state_size, actions)
    if state["credit"] is not None:
        credit.load_state_dict(state["credit"])
    return policy.eval(), credit, int(state["version"])


def _contributions(
    trace: Trace, config: Config, policy: RecurrentPolicy, credit: OnlineCredit
) -> tuple[Floats, Floats]:
    """ĉ and deviation [T] of the episode's turns."""
    count = len(trace.steps)
    if credit.estimator is None:
        return np.zeros(count), np.zeros(count)
    seen = _play(trace, config)
    action = torch.tensor([step.action for step in trace.steps])
    features = turn_features(_states(policy, seen[:count]), action, len(trace.header.action_names))
    # As the estimator read it while it learned.
    return credit.estimator.contributions(features)


def _play(trace: Trace, config: Config) -> list[Seen]:
    """What the reset and each step showed to the network."""
    view = NETWORKS[config.agent.network].view
    world = open_world(trace.header, reset_of(trace).observation_hash, view)
    seen: list[Seen] = []
    try:
        divergence = follow(trace, world, watch=seen.append, observations=trace.header.policy == config.agent.network)
    finally:
        world.close()
    if divergence is not None:
        first = divergence.differences[0]
        raise TraceError(
            f"{trace.path}: played again it differs at step {divergence.step} ({first.key}), so its turns cannot be read; "
            "yendor trace replay says more"
        )
    return seen


@torch.inference_mode()
def _states(policy: RecurrentPolicy, seen: list[Seen]) -> Tensor:
    """[T, H]: the core's state after each observation."""
    state, found = policy.initial_state(1), list[Tensor]()
    for first in range(0, len(seen), _CHUNK):
        part = seen[first : first + _CHUNK]
        observation = {
            name: torch.from_numpy(np.stack([each.observation[name] for each in part]))[:, None]
            for name in part[0].observation
        }
        start = torch.zeros(len(part), 1, dtype=torch.bool)
        start[0] = first == 0
        output = policy(observation, start, state)
        state = output.state[-1]
        found.append(output.state[:, 0])
    return torch.cat(found)


def _rewards(trace: Trace, config: Config, folder: Path) -> tuple[Floats, Floats]:
    """Extrinsic and intrinsic reward [T] as they add to the fused one, the latter under the checkpoint's reward model."""
    if learns_intrinsic(config):
        steps = rescore(trace, str(folder)).steps
        return np.array([step.extrinsic for step in steps]), np.array([step.intrinsic for step in steps])
    reward = np.array([step.reward for step in trace.steps], np.float32)
    fused = fuse(reward, np.zeros_like(reward), np.zeros(len(reward), np.int32), config.reward)
    return fused.extrinsic.astype(np.float64), fused.intrinsic.astype(np.float64)


def _outcome(trace: Trace, config: Config) -> float | None:
    end = trace.end
    if end is None or end.error is not None:
        return None
    return outcome_of(EpisodeOutcome(end.length - 1, 0, end.success, end.episode_return), config.credit)


def _turns(trace: Trace, paid: Attribution, contribution: Floats, deviation: Floats) -> tuple[TurnCredit, ...]:
    return tuple(
        TurnCredit(
            step=step.step,
            action=step.action_name,
            contribution=float(contribution[at]),
            deviation=float(deviation[at]),
            extrinsic=float(paid.extrinsic[at]),
            intrinsic=float(paid.intrinsic[at]),
            progress=float(paid.progress[at]),
            grounding=float(paid.grounding[at]),
            total=float(paid.total[at]),
            why=_why(trace, at),
        )
        for at, step in enumerate(trace.steps)
    )


def _why(trace: Trace, at: int) -> str:
    """What happened at a step, as far as it explains its credit."""
    step, end = trace.steps[at], trace.end
    unread = (e for e in trace.events if isinstance(e, LlmCall) and e.step == step.step and "failure" in e.sampling)
    parts = [
        *(f"the answer could not be read: {event.sampling['failure']}" for event in unread),
        "" if step.grounded else "not carried out",
        trace.captions.get(step.caption_id, ""),
        f"the environment paid {step.reward:g}" if step.reward else "",
    ]
    if end is not None and at == len(trace.steps) - 1:
        how = "" if end.success is None else ": success" if end.success else ": no success"
        parts.append(f"{'the end' if end.terminated else 'cut off'}{how}")
    return "; ".join(part for part in parts if part)


def write_credited(trace: Trace, credit: EpisodeCredit, folder: Path) -> Path:
    """Writes `EPISODE-credit` to `folder`: the trace with the attribution as reward events, for the page and the exports.

    Raises TraceError for a trace that was cut or has components already.
    """
    if trace.end is None:
        raise TraceError(f"{trace.path}: was cut, and rewards of an episode that did not end are not written")
    if any(isinstance(event, Reward) and event.part != RAW for event in trace.events):
        raise TraceError(f"{trace.path}: says already what each step was paid")
    name = f"{trace.header.episode_id}-credit"
    file = TraceFile(folder, name)
    seq = trace.end.events
    sums: dict[str, float] = {}
    for _, record in records_of(trace.path, read_lines(trace.path).lines):
        if isinstance(record, Header):
            file.write(replace(record, episode_id=name))
        elif isinstance(record, End):
            for step, turn in zip(trace.steps, credit.turns, strict=True):
                for reward in _events(seq, record.t, step.agent, step.id, turn, credit.progress_version):
                    file.write(reward)
                    seq += 1
                    if reward.part == COMPONENT:
                        sums[reward.source] = sums.get(reward.source, 0.0) + reward.value
            file.write(replace(record, events=seq, components=sums, kept="asked"))
        else:
            file.write(record)
    file.flush()
    file.complete()
    return file.final


def _events(seq: int, t: float, agent: str, target: str, turn: TurnCredit, version: int) -> list[Reward]:
    """ĉ as it is, every component that is not 0, and their sum."""
    said: list[dict[str, Any]] = []
    if version:
        said.append({"source": "progress", "family": "process", "value": turn.contribution, "version": version})
    for name, source in _SOURCES.items():
        value = getattr(turn, name)
        if value:
            known = version if source == "progress" else None
            family = _FAMILY[source]
            said.append({"source": source, "family": family, "value": value, "version": known, "part": COMPONENT})
    if turn.total:
        said.append({"source": "fusion", "family": "hybrid", "value": turn.total, "version": None, "part": TOTAL})
    common = {"t": t, "agent": agent, "parents": (target,), "targets": (target,)}
    return [Reward(id=f"e{seq + at}", seq=seq + at, **common, **each) for at, each in enumerate(said)]
