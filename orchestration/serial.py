"""The serial runtime: the whole system in one process, one thing after the other.

Deterministic for a given seed (apart from what the clock shows), easy to step through, and the reference that the
distributed runtime is compared with. A run that was checkpointed and resumed equals one that was not.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from safetensors import SafetensorError

from orchestration.config import Config
from orchestration.configuration import compares_pairs, uses_judge
from orchestration.errors import first_line
from orchestration.parts import (
    LearnerPart,
    action_count,
    build_observer,
    build_reward_server,
    build_rollout,
)
from orchestration.session import Session
from reward_server.models.base import RewardModelVersion
from reward_server.server import RewardServer


class SerialRuntime:
    """Rollouts, learner and reward server as objects of this process."""

    def __init__(self, config: Config, session: Session, *, resumed: Mapping[str, Any] | None) -> None:
        self.config = config
        self.session = session
        torch.set_num_threads(config.learner.threads)
        self.learner = LearnerPart(config, action_count(config))
        self.rollouts = [
            build_rollout(config, index, observer=build_observer(config, session.rundir.traces, index))
            for index in range(config.actors.count)
        ]
        self.reward_server = reward_server_here(config, session)
        # One event loop for the whole run: engines keep connections and queues that belong to it.
        self._loop = asyncio.new_event_loop()
        self._checkpoint_at = time.monotonic() + config.checkpoint.interval_s
        if resumed is not None:
            self._load(resumed)
        session.actors = len(self.rollouts)
        for rollout in self.rollouts:
            session.record.spawned(rollout.name)

    def run(self) -> None:
        """Trains until the session is finished or somebody asked it to stop; always ends between two rounds."""
        weights = self.learner.weights()
        for rollout in self.rollouts:
            rollout.set_weights(weights, self.learner.learner.version)
        while not self.session.finished and not self.session.stop_requested:
            for rollout in self.rollouts:
                rollout.reward_model_version = self.session.reward_model_in_force
                self.session.record.called(rollout.name)
                trajectory, report = rollout.collect()
                self.session.rolled_out(report)
                result, new_weights = self.learner.feed(report.source, trajectory, report.new_captions, report.episodes)
                rollout.tell_again(result.unknown)
                self.session.learned(report, replace(result, waited_s=0.0), self.session.env_steps)
                if new_weights is not None:
                    for other in self.rollouts:
                        other.set_weights(new_weights, result.policy_version)
                if self.reward_server is not None:
                    judge(self.reward_server, report.new_captions, self.learner.adopt, self.session, self._loop)
            # One line a round, whatever the time: the lines are then the same for the same seed.
            self.session.report(due=True)
            if time.monotonic() >= self._checkpoint_at:
                self._checkpoint_at = time.monotonic() + self.config.checkpoint.interval_s
                try_checkpoint(self.checkpoint, self.session)

    def checkpoint(self) -> None:
        """Writes the whole state, the running games included."""
        state = {
            "runtime": "serial",
            "session": self.session.state_dict(),
            "rollouts": [rollout.state_dict() for rollout in self.rollouts],
            "reward_server": None if self.reward_server is None else self.reward_server.state_dict(),
        }
        self.session.checkpoint = self.learner.checkpoint(
            self.session.rundir.checkpoints,
            self.session.env_steps,
            state,
            self.session.config_yaml(),
            self.config.checkpoint.keep,
        )
        self._checkpoint_at = time.monotonic() + self.config.checkpoint.interval_s

    def _load(self, state: Mapping[str, Any]) -> None:
        self.learner.load_state_dict(state["learner"])
        if self.reward_server is not None and state["reward_server"] is not None:
            self.reward_server.load_state_dict(state["reward_server"])
        if state["runtime"] == "serial":
            for rollout, saved in zip(self.rollouts, state["rollouts"], strict=True):
                rollout.load_state_dict(saved)

    def close(self) -> None:
        """Ends everything that the run started."""
        for rollout in self.rollouts:
            rollout.close()
        if self.reward_server is not None:
            self.reward_server.stop()
            self._loop.run_until_complete(self.reward_server.close())
        self._loop.close()


def try_checkpoint(checkpoint: Callable[[], None], session: Session) -> None:
    """Writes one while a run goes on: where that cannot be done (a full disk) the next is tried when it is due."""
    try:
        checkpoint()
    except (OSError, RuntimeError, SafetensorError) as error:  # as torch and safetensors say it
        session.checkpoint_failed(first_line(error))
    else:
        session.checkpoint_written()


def reward_server_here(config: Config, session: Session) -> RewardServer | None:
    """The reward server with its judge in this process; None where the run has none."""
    if not uses_judge(config):
        return None
    from reward_server.judge import build_judge, build_pair_judge

    build = build_pair_judge if compares_pairs(config) else build_judge
    return build_reward_server(config, session.rundir, build(config.judge))


def judge(
    server: RewardServer,
    captions: Iterable[tuple[int, str]],
    adopt: Callable[[RewardModelVersion], None],
    session: Session,
    loop: asyncio.AbstractEventLoop,
) -> None:
    """Has new captions judged, to the end, and distilled; a new reward model goes to `adopt`."""
    server.submit(captions)
    began = time.perf_counter()
    version = loop.run_until_complete(server.step())
    session.waited("reward server", "annotate and distil", time.perf_counter() - began)
    if version is not None:
        adopt(version)
    session.judged(server.status())
