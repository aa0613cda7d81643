"""Decides which episodes of a rollout are recorded: an `EpisodeObserver` of the rollout loop. `writers` write them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from agents.observer import EpisodeFinish, EpisodeStart, EpisodeSteps, Recalled
from orchestration.traces.files import check_name
from orchestration.traces.room import Room
from orchestration.traces.schema import SUFFIX
from orchestration.traces.selection import Selection
from orchestration.traces.writers import TraceRun, Writers

__all__ = ["Again", "Keeper", "TraceRecorder", "TraceRun"]


@dataclass(frozen=True, slots=True)
class Again:
    """An episode that is to be played again and recorded then."""

    episode: Recalled
    finish: EpisodeFinish
    agent: str
    kept: str
    """`best`, `worst`, `failed`; or `rate`, `asked`, where it was recorded and got lost."""


class Keeper(Protocol):
    """Plays episodes again, aside."""

    def submit(self, again: Again) -> None: ...

    def take_trouble(self) -> tuple[str, ...]:
        """Why episodes could not be kept, a line each; since the last call."""
        ...

    def close(self) -> None:
        """Waits for what is left, for a bounded time."""
        ...


class TraceRecorder:
    """Records episodes of one rollout actor.

    Recorded are a share `rate` of the episodes and those whose id matches a pattern of `asked`. With a `keeper`, so are
    the best and the worst of this actor so far, and those whose environment raised: that they are is known when they
    have ended, and then they are played again, by the keeper.

    Where writers lose what they were told (their process died) the episodes that had finished are played again by the keeper,
    and so are those that run, when they have finished.

    An episode whose finished trace exists (the run was resumed and plays it again) is left alone.
    """

    def __init__(
        self,
        folder: Path,
        rate: float,
        run: TraceRun,
        writers: Writers,
        *,
        agent: str = "actor",
        asked: Sequence[str] = (),
        keeper: Keeper | None = None,
        room: Room | None = None,
    ) -> None:
        """`writers` write into `folder`; `agent` names the actor in what the keeper records. Nothing is recorded while
        `room` is short: what would have been is told as trouble."""
        self._folder = folder
        self._selection = Selection(run.seed, rate, asked)
        self._writers = writers
        self._agent = agent
        self._keeper = keeper
        self._room = room
        self._open: dict[int, str] = {}
        """Episodes that are recorded now, by environment."""
        self._lost: dict[int, str] = {}
        """Episodes that run and whose beginning was lost."""
        self._unsure: dict[str, Again] = {}
        """Episodes that finished and may still get lost."""
        self._trouble: list[str] = []
        self._before = frozenset(path.name for path in folder.glob(f"*{SUFFIX}"))
        """Finished traces that were there already. Asked once: a look at the disk for each episode costs more than its record."""

    def wants(self, episode_id: str) -> bool:
        """Whether the episode is to be recorded from its beginning."""
        check_name(episode_id)
        chosen = self._selection.chosen(episode_id) is not None and not self._was_there(episode_id)
        return chosen and self._has_room(episode_id)

    def _has_room(self, episode_id: str) -> bool:
        short = None if self._room is None else self._room.short()
        if short is not None:
            self._trouble.append(f"{episode_id}: {short}")
        return short is None

    def _exists(self, episode_id: str) -> bool:
        """Looks: the process of a run that was killed may have finished it meanwhile."""
        return (self._folder / f"{episode_id}{SUFFIX}").exists()

    def _was_there(self, episode_id: str) -> bool:
        return f"{episode_id}{SUFFIX}" in self._before

    def start(self, env_index: int, start: EpisodeStart) -> None:
        """Begins the trace of the episode that environment `env_index` plays."""
        self._open[env_index] = start.episode_id
        self._writers.start(env_index, start, self._selection.chosen(start.episode_id) or "rate")

    def steps(self, env_index: int, steps: EpisodeSteps) -> None:
        """Records the next steps of the episode that environment `env_index` plays."""
        episode_id = self._open.get(env_index)
        if episode_id is None:
            return
        if self._room is not None and (short := self._room.short()) is not None:
            del self._open[env_index]
            self._writers.give_up(env_index, f"{episode_id}: {short}")
            return
        self._writers.steps(env_index, steps)

    def finish(
        self, env_index: int, finish: EpisodeFinish, recall: Callable[[], Recalled | None] = lambda: None
    ) -> None:
        """Ends the trace: it gets its final name."""
        self._rank(finish)
        episode_id, lost = self._open.pop(env_index, None), self._lost.pop(env_index, None)
        if episode_id is not None:
            if self._writers.may_lose and (episode := recall()) is not None:
                self._unsure[episode_id] = self._again(env_index, episode, finish)
            self._writers.finish(env_index, finish)
        elif lost is not None:
            episode = recall()
            if episode is None or self._keeper is None:
                self._trouble.append(f"{lost}: lost with the process that wrote it")
            else:
                self._keeper.submit(self._again(env_index, episode, finish))

    def _again(self, env_index: int, episode: Recalled, finish: EpisodeFinish) -> Again:
        kept = self._selection.chosen(episode.episode_id) or "rate"
        return Again(episode, finish, f"{self._agent}/{env_index}", kept)

    def _look_for_lost(self) -> None:
        for episode_id in self._writers.take_settled():
            self._unsure.pop(episode_id, None)
        if not self._writers.take_lost():
            return
        self._lost |= self._open
        self._open.clear()
        for episode_id, again in self._unsure.items():
            if self._exists(episode_id):
                continue
            if self._keeper is None:
                self._trouble.append(f"{episode_id}: lost with the process that wrote it")
            else:
                self._keeper.submit(again)
        self._unsure.clear()

    def wants_back(self, episode_id: str, finish: EpisodeFinish) -> bool:
        """Whether an episode that was not followed is the best or the worst so far, or failed."""
        why = self._rank(finish)
        wanted = why is not None and self._keeper is not None and not self._was_there(episode_id)
        return wanted and not self._exists(episode_id) and self._has_room(episode_id)

    def _rank(self, finish: EpisodeFinish) -> str | None:
        """Counts an episode; says whether it is `best`, `worst` or `failed`."""
        return self._selection.failed() if finish.error is not None else self._selection.ended(finish.episode_return)

    def recall(self, env_index: int, episode: Recalled, finish: EpisodeFinish) -> None:
        """Has an episode played again and recorded, aside. What comes out differently is told in an `error` event."""
        assert self._keeper is not None
        kept = (
            "failed"
            if finish.error is not None
            else "best"
            if finish.episode_return >= self._selection.best
            else "worst"
        )
        self._keeper.submit(Again(episode, finish, f"{self._agent}/{env_index}", kept))

    def take_trouble(self) -> tuple[str, ...]:
        """Why episodes could not be recorded, a line each; since the last call."""
        written = self._writers.take_trouble()
        self._look_for_lost()
        own, self._trouble = self._trouble, []
        return (*own, *written, *(() if self._keeper is None else self._keeper.take_trouble()))

    def close(self) -> None:
        """Gives up the episodes that still run: what was recorded of them stays, as `.part`."""
        self._writers.close()
        self._look_for_lost()
        if self._keeper is not None:
            self._keeper.close()
