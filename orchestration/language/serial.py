"""The serial runtime of language models: play the episodes of an update, learn from them, take the new weights.

With the `transformers` engine deterministic for a given seed; a run that was checkpointed and resumed equals one that
was not. No episode is ever older than the weights that learn from it.
"""

import asyncio
import math
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from agents.language.rollout import GroupResult
from orchestration.config import Config
from orchestration.language.games import GameMaker
from orchestration.language.models import acting_model, tell_of_missing, told_by
from orchestration.language.parts import (
    LanguageLearnerPart,
    build_generator,
    build_language_observer,
    build_language_rollout,
    build_template,
)
from orchestration.language.report import report_of
from orchestration.language.tasks import Tasks
from orchestration.machine import available_cpus
from orchestration.serial import judge, reward_server_here, try_checkpoint
from orchestration.session import Session


class LanguageSerialRuntime:
    """Rollout, engine, learner and reward server as objects of this process."""

    def __init__(self, config: Config, session: Session, *, resumed: Mapping[str, Any] | None) -> None:
        self.config, self.session = config, session
        torch.set_num_threads(config.learner.threads)
        # One event loop for the whole run: engines keep connections and queues that belong to it.
        self._loop = asyncio.new_event_loop()
        model = acting_model(config, told_by(self.session.view))
        self.learner = LanguageLearnerPart(config, session.rundir.path, model)
        self.reward_server = reward_server_here(config, session)
        self._began = False
        self._tasks, self._games = Tasks(config), GameMaker(available_cpus())
        self._group = 0
        if resumed is not None:
            self._load_learner(resumed)
        version, weights = self.learner.publish()
        template = build_template(model)
        self.rollout = build_language_rollout(
            config,
            build_generator(config, str(weights), template, 0, version),
            template,
            observer=build_language_observer(config, session.rundir.traces),
            threads=False,
        )
        # Before anything is asked of it: the first batch is then made up as any other.
        self._loop.run_until_complete(self.rollout.generator.start())
        if resumed is not None and resumed["runtime"] == "serial":
            self.rollout.load_state_dict(resumed["rollout"])
        self._checkpoint_at = time.monotonic() + config.checkpoint.interval_s
        session.actors = 1
        session.record.spawned(self.rollout.name)

    def run(self) -> None:
        """Trains until the session is finished or somebody asked it to stop; always ends between two updates."""
        groups = math.ceil(self.config.language.batch_episodes / self.config.agent.group_size)
        while not self.session.finished and not self.session.stop_requested:
            began = time.perf_counter()
            results = self._loop.run_until_complete(self._play(groups))
            seconds = (time.perf_counter() - began) / groups
            for result in results:
                self._learn(result, seconds)
            self.session.report(due=True)
            if time.monotonic() >= self._checkpoint_at:
                self._checkpoint_at = time.monotonic() + self.config.checkpoint.interval_s
                try_checkpoint(self.checkpoint, self.session)

    async def _play(self, groups: int) -> list[GroupResult]:
        first, self._group = self._group, self._group + groups
        await self._make_games(range(first, first + groups))
        self.rollout.reward_model_version = self.session.reward_model_in_force
        for group in range(first, first + groups):
            self.session.record.called(self.rollout.name, group)
        return list(await asyncio.gather(*(self.rollout.play_group(g) for g in range(first, first + groups))))

    async def _make_games(self, groups: Iterable[int]) -> None:
        """All before the first is played, so that episodes meet in the engine as where nothing is missing."""
        missing = self._tasks.missing(groups)
        if not self._began:
            self._began = True
            tell_of_missing(len(missing), self.session.view)
        await asyncio.gather(*(self._tasks.make_game(seed, self._games) for seed in missing))

    def _learn(self, result: GroupResult, seconds: float) -> None:
        """Hands on the episodes of a group; where they fill a batch, the engine gets the new weights."""
        report = report_of(self.rollout.name, result, self.rollout.generator.version, seconds)
        self.session.rolled_out(report, result.group)
        told = self.learner.feed(result.episodes, result.new_captions)
        self.rollout.tell_again(told.unknown)
        self.session.learned(report, replace(told, waited_s=0.0), self.session.env_steps)
        if told.updates:
            version, folder = self.learner.publish()
            self._loop.run_until_complete(self.rollout.generator.update(folder, version))
        if self.reward_server is not None:
            judge(self.reward_server, report.new_captions, self.learner.adopt, self.session, self._loop)

    def checkpoint(self) -> None:
        """Writes the whole state. No episode runs between two updates."""
        state = {
            "runtime": "serial",
            "session": self.session.state_dict(),
            "group": self._group,
            "rollout": self.rollout.state_dict(),
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

    def _load_learner(self, state: Mapping[str, Any]) -> None:
        self.learner.restore(Path(state["checkpoint"]), state)
        self._group = int(state["group"])
        if self.reward_server is not None and state["reward_server"] is not None:
            self.reward_server.load_state_dict(state["reward_server"])

    def close(self) -> None:
        """Ends everything that the run started."""
        self._loop.run_until_complete(_end_tasks())
        self._games.close()
        self.rollout.close()
        self._loop.run_until_complete(self.rollout.generator.close())
        if self.reward_server is not None:
            self.reward_server.stop()
            self._loop.run_until_complete(self.reward_server.close())
        self._loop.close()
        shutil.rmtree(self.session.rundir.weights, ignore_errors=True)


async def _end_tasks() -> None:
    """Ends the episodes that still run, after an error in one of them."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
