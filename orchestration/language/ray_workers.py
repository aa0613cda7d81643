"""The parts of a language model's run as Ray actors: thin hosts. What they host runs, and is tested, without Ray."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agents.report import RolloutReport
from orchestration.config import Config
from orchestration.language.games import GameMaker
from orchestration.language.tasks import Tasks
from orchestration.learner_worker import LearnerHost, ending_with_the_group
from orchestration.machine import available_cpus
from orchestration.part_log import log_to
from orchestration.results import FeedResult, Floor, TakenOver, actor_name
from orchestration.rundir import RunDir

if TYPE_CHECKING:
    from agents.language.rollout import GroupResult, LanguageRollout
    from reward_server.distiller import RewardModelVersion

# As in `orchestration.ray_workers`: what loads torch is imported where it runs.


@dataclass(frozen=True, slots=True)
class LanguageFeed:
    """What came of one group at the learner."""

    result: FeedResult
    weights: Path | None
    """Where the new weights are; None where there are none."""
    waiting: tuple[int, ...]
    """Groups that wait for a full batch."""


class LanguageRolloutWorker:
    """Hosts one engine and the episodes that it plays; an asyncio actor, so that any number of groups run at once."""

    def __init__(self, config: Config, rundir: Path, index: int, incarnation: int, model: str) -> None:
        """`model`: where the tokenizer comes from."""
        log_to(RunDir(rundir).logs, actor_name(index))
        self._config, self._rundir, self._model = config, RunDir(rundir), model
        self._index, self._incarnation = index, incarnation
        self._loaded: LanguageRollout | None = None
        self._tasks = Tasks(config)
        # Actors that share a machine share its processors.
        self._games = GameMaker(max(1, available_cpus() // config.actors.count))
        self._begun = asyncio.Event()
        self._running = 0
        self._told_at = time.perf_counter()
        self._busy_s = 0.0

    async def ready(self) -> None:
        """Answers when there is a process: it may have waited for a machine."""

    async def start(self, weights: Path | str, version: int) -> int:
        """Loads the model; the version of its weights. `weights`: a folder or Hugging Face id, whose version is `version`."""
        import torch

        from orchestration.language.parts import (
            build_generator,
            build_language_observer,
            build_language_rollout,
            build_template,
        )

        torch.set_num_threads(1)
        template, index, incarnation = build_template(self._model), self._index, self._incarnation
        self._loaded = build_language_rollout(
            self._config,
            build_generator(self._config, str(weights), template, index, version),
            template,
            index=index,
            incarnation=incarnation,
            observer=build_language_observer(self._config, self._rundir.traces, index, incarnation),
            threads=True,
        )
        await self._rollout.generator.start()
        self._told_at = time.perf_counter()
        self._begun.set()
        return version

    @property
    def _rollout(self) -> "LanguageRollout":
        assert self._loaded is not None  # what comes before waits for it
        return self._loaded

    async def play(self, group: int, reward_model_version: int | None) -> "tuple[GroupResult, RolloutReport]":
        """Plays a group; the version is that of the newest reward model. Its report has the time since the one before, if
        anything was played meanwhile."""
        from orchestration.language.report import report_of

        await self._begun.wait()
        self._rollout.reward_model_version = reward_model_version
        if self._running == 0:
            self._told_at = time.perf_counter()
        self._running += 1
        try:
            await self._tasks.make_game(self._tasks.seed_of(group), self._games)
            result = await self._rollout.play_group(group)
        finally:
            self._running -= 1
        now = time.perf_counter()
        seconds, self._told_at = now - self._told_at, now
        return result, report_of(self._rollout.name, result, self._rollout.generator.version, seconds)

    async def take_weights(self, folder: Path, version: int) -> float:
        """Gives the engine new weights while it runs; the seconds that it took."""
        began = time.perf_counter()
        await self._rollout.generator.update(folder, version)
        return time.perf_counter() - began

    async def tell_again(self, captions: Sequence[int]) -> None:
        """Ids that the learner does not know."""
        self._rollout.tell_again(captions)

    async def close(self) -> None:
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        self._games.close()
        if self._loaded is not None:
            self._loaded.close()
            await self._loaded.generator.close()


class LanguageLearnerWorker(LearnerHost):
    """Hosts the learner."""

    def __init__(
        self, config: Config, rundir: Path, model: str, state: Mapping[str, Any] | None, takes_over: bool = False
    ) -> None:
        """`takes_over`: another learner of the run died, and engines still read what that one published."""
        log_to(RunDir(rundir).logs, "learner")
        super().__init__(config)
        import torch

        from orchestration.language.parts import LanguageLearnerPart

        torch.set_num_threads(config.learner.threads)
        self._part = LanguageLearnerPart(config, rundir, model, takes_over=takes_over)
        self._root = RunDir(rundir).checkpoints
        if state is not None:
            self._part.restore(Path(state["checkpoint"]), state)

    def begin(self) -> tuple[int, Path]:
        """Version and folder of the weights to begin with."""
        return self._part.publish()

    def take_over(
        self,
        floor: Floor,
        captions: Sequence[tuple[int, str]],
        reward_model: "RewardModelVersion | None",
        needed: int,
    ) -> tuple[TakenOver, Path]:
        """As `LearnerWorker.take_over`, with the folder of the weights; those from version `needed` on stay on disk."""
        taken = self._part.take_over(self._root, floor, captions)
        if reward_model is not None:
            self._part.adopt(reward_model)
        return taken, self._part.publish(needed)[1]

    def feed(self, result: "GroupResult", needed: int) -> LanguageFeed:
        """Learns from a group; weights from version `needed` on stay on disk, for an engine still reads them."""
        with ending_with_the_group():
            fed = self._part.feed(result.episodes, result.new_captions)
        weights = self._part.publish(needed)[1] if fed.updates else None
        return LanguageFeed(fed, weights, self._part.learner.waiting_groups)
