"""Records episodes of language models: what the model read and said, token by token, and what the world made of it.

Each turn is an `llm_call` (all token ids of its prompt and answer, log-probabilities, sampling, version of the weights,
latency) and the `env_step` that its command brought. Which episodes: as `TraceRecorder` does it, but what nobody follows
is kept in memory until it is known how the episode ended, as playing it again would not draw the same words.
"""

import contextlib
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

from agents.language.engines.base import Generation
from agents.language.episode import LanguageEpisode
from agents.language.observer import LanguageStart, LanguageStep
from envs.captions import EMPTY_CAPTION_ID, caption_id
from orchestration.errors import TraceError
from orchestration.traces.clocks import WallClock
from orchestration.traces.episode import observation_hash
from orchestration.traces.files import TraceFile
from orchestration.traces.replay.worlds import text_observation
from orchestration.traces.room import Room
from orchestration.traces.schema import (
    FORMAT,
    POLICY,
    REWARD_MODEL,
    RUN_SEED,
    SCHEMA,
    SUFFIX,
    Caption,
    End,
    EnvReset,
    EnvStep,
    Error,
    Header,
    Record,
    Reward,
    Stop,
    WeightsUpdate,
    clean,
)
from orchestration.traces.selection import Selection
from orchestration.traces.spoken import Spoken
from orchestration.traces.versions import clock_text, native_versions
from orchestration.traces.writers import TraceRun

_OWN_CUTS = ("context", "aborted")
"""Why an episode was cut, where the world would have gone on."""


class LanguageRecorder:
    """A `LanguageObserver`. `rate`: share of the episodes that are recorded from their beginning; `asked`: patterns of ids
    of others."""

    def __init__(
        self,
        folder: Path,
        rate: float,
        run: TraceRun,
        *,
        agent: str = "actor",
        asked: Sequence[str] = (),
        clock: Callable[[], float] = time.monotonic,
        room: Room | None = None,
    ) -> None:
        """Nothing is written while `room` is short: what would have been is told as trouble."""
        self._folder, self._run = folder, run
        self._room = room
        self._selection = Selection(run.seed, rate, asked)
        self._agent, self._clock = agent, clock
        self._open: dict[str, _Recording] = {}
        self._trouble: list[str] = []

    def start(self, start: LanguageStart) -> None:
        name = start.episode_id
        if (self._folder / f"{name}{SUFFIX}").exists():
            return  # the run was resumed and plays it again: a finished trace is never written again
        with self._giving_up(name):
            if self._selection.chosen(name) is not None:
                self._check_room(name)
            self._open[name] = _Recording(
                self._folder, self._run, start, agent=self._agent, kept=self._selection.chosen(name), clock=self._clock
            )

    @contextlib.contextmanager
    def _giving_up(self, episode_id: str) -> Generator[None]:
        """An episode whose file cannot be written is given up; the rollout goes on."""
        try:
            yield
        except TraceError as error:
            self._trouble.append(str(error))
            recording = self._open.pop(episode_id, None)
            if recording is not None:
                recording.drop()

    def take_trouble(self) -> tuple[str, ...]:
        trouble, self._trouble = tuple(self._trouble), []
        return trouble

    def step(self, episode_id: str, step: LanguageStep) -> None:
        recording = self._open.get(episode_id)
        if recording is not None:
            with self._giving_up(episode_id):
                if recording.kept is not None:
                    self._check_room(episode_id)
                recording.step(step)

    def _check_room(self, episode_id: str) -> None:
        """Raises `TraceError` where checkpoints and labels need what room there is."""
        if self._room is not None and (short := self._room.short()) is not None:
            raise TraceError(f"{episode_id}: {short}")

    def finish(self, episode: LanguageEpisode) -> None:
        stopped = episode.cut if episode.cut in _OWN_CUTS else None
        self._finish(episode.episode_id, self._selection.ended(episode.episode_return), stopped=stopped)

    def fail(self, episode_id: str, error: str) -> None:
        self._finish(episode_id, self._selection.failed(), error=error)

    def _finish(
        self, episode_id: str, kept: str | None, *, error: str | None = None, stopped: str | None = None
    ) -> None:
        """`kept`: why it is, where nobody asked for it."""
        recording = self._open.get(episode_id)  # none: given up, or the world raised before it had begun
        if recording is None:
            return
        why = recording.kept or (kept if self._selection.rate else None)
        if why is not None:
            with self._giving_up(episode_id):
                self._check_room(episode_id)
                recording.finish(why, error, stopped)
        self._open.pop(episode_id, None)

    def close(self) -> None:
        while self._open:
            name, recording = next(iter(self._open.items()))
            with self._giving_up(name):
                recording.abandon()
            self._open.pop(name, None)


class _Recording:
    """One running episode: in its file, or in memory."""

    def __init__(
        self,
        folder: Path,
        run: TraceRun,
        start: LanguageStart,
        *,
        agent: str,
        kept: str | None,
        clock: Callable[[], float],
    ) -> None:
        self.kept = kept
        self._agent, self._clock = agent, clock
        self._began, self._wall = clock(), WallClock()
        self._model = run.policy or ""
        self._version = start.policy_version
        self._reward_model_version = start.reward_model_version
        self._seq, self._steps = 0, 0
        self._tokens = 0
        self._return = 0.0
        self._captions: set[int] = set()
        self._texts: set[str] = set()
        self._end: LanguageStep | None = None
        self._folder, self._name = folder, start.episode_id
        self._file: TraceFile | None = self._open_file() if kept else None
        self._kept_back: list[Record] = []
        self._write(_header(run, start, self._wall.recorded_at))
        caption = self._caption(start.caption)
        reset = EnvReset(
            **self._event(()),
            observation_hash=observation_hash(text_observation(start.observation)),
            screen=clean(start.screen),
            caption_id=caption,
        )
        self._last = reset.id
        self._write(reset)
        if self._file is not None:
            self._file.flush()

    def step(self, step: LanguageStep) -> None:
        """A turn: the call of the model, and the world's step."""
        turn, spoken = step.turn, _spoken(step)
        if step.reward_model_version != self._reward_model_version and step.reward_model_version is not None:
            self._update(self._reward_model_version or 0, step.reward_model_version, REWARD_MODEL)
            self._reward_model_version = step.reward_model_version
        if turn.version != self._version:
            self._update(self._version, turn.version, POLICY)
            self._version = turn.version
        call = self._call(spoken)
        done = EnvStep(
            **self._event((self._last, call)),
            duration=round(turn.env_s, 4),
            step=self._steps,
            action=-1,
            action_name=clean(turn.command),
            log_prob=spoken.log_prob,
            value=None,
            reward=turn.reward,
            caption_id=self._caption(step.caption),
            caption_count=turn.caption_count,
            grounded=turn.grounded,
            policy_version=turn.version,
            observation_hash=observation_hash(text_observation(step.observation)),
            screen=clean(step.screen),
        )
        self._last, self._end = done.id, step
        self._write(done)
        self._steps += 1
        self._return += turn.reward
        if turn.reward != 0:
            paid = Reward(
                **self._event((done.id,)),
                family="outcome",
                value=turn.reward,
                source="environment",
                version=None,
                targets=(done.id,),
            )
            self._write(paid)
        if turn.penalty != 0:
            fined = Reward(
                **self._event((done.id,)),
                family="process",
                value=turn.penalty,
                source=FORMAT,
                version=None,
                targets=(done.id,),
            )
            self._write(fined)

    def _update(self, before: int, now: int, what: str) -> None:
        update = WeightsUpdate(**self._event((self._last,)), from_version=before, to_version=now, what=what)
        self._last = update.id
        self._write(update)

    def _call(self, spoken: Spoken) -> str:
        """The id of the call's event."""
        text = spoken.text
        if text.ref not in self._texts:
            self._texts.add(text.ref)
            self._write(text)
        version = spoken.answer.version
        call = spoken.call(self._event((self._last,)), model=self._model, version=version, step=self._steps)
        self._tokens += call.prompt_tokens + call.output_tokens
        self._write(call)
        return call.id

    def finish(self, kept: str, error: str | None = None, stopped: str | None = None) -> None:
        """Ends the trace, which gets its final name. `stopped`: why its agent did, where the world would have gone on."""
        if stopped is not None:
            self._write(Stop(**self._event((self._last,)), target=self._agent, reason=stopped))
        if error is not None:
            self._write(Error(**self._event((self._last,)), message=clean(error), source="environment", fatal=True))
        end, elapsed = self._end, self._elapsed()
        self._write(
            End(
                t=elapsed,
                events=self._seq,
                length=self._steps,
                episode_return=self._return,
                terminated=error is None and end is not None and end.terminated,
                truncated=error is None and end is not None and end.truncated,
                success=None if end is None or error is not None else end.success,
                metrics={} if end is None else {name: float(value) for name, value in end.metrics.items()},
                error=None if error is None else clean(error),
                kept=kept,
                costs=self._costs(elapsed),
            )
        )
        self._file = self._file or self._open_file()
        for record in self._kept_back:
            self._file.write(record)
        self._file.flush()
        self._file.complete()

    def _costs(self, elapsed: float) -> dict[str, float]:
        costs: dict[str, float] = {"wall_clock_s": elapsed}
        if self._steps:
            costs |= {"tokens": self._tokens, "llm_calls": self._steps}
        return costs

    def abandon(self) -> None:
        """Leaves what was recorded as `.part`."""
        if self._file is not None:
            self._file.abandon()

    def drop(self) -> None:
        """Leaves what was written as `.part`, and what was not."""
        if self._file is not None:
            self._file.drop()

    def _open_file(self) -> TraceFile:
        return TraceFile(self._folder, self._name, clock=self._clock)

    def _write(self, record: Record) -> None:
        if self._file is None:
            self._kept_back.append(record)
        else:
            self._file.write(record)

    def _caption(self, caption: str) -> str:
        """The id of a caption, whose text is written when it first comes."""
        number = caption_id(caption)
        if number != EMPTY_CAPTION_ID and number not in self._captions:
            self._captions.add(number)
            self._write(Caption(caption_id=str(number), text=clean(caption)))
        return str(number)

    def _event(self, parents: tuple[str, ...]) -> dict[str, Any]:
        seq = self._seq
        self._seq += 1
        where = {"id": f"e{seq}", "seq": seq, "agent": self._agent, "parents": parents}
        return {**where, "t": self._elapsed(), "skew": self._wall.skew()}

    def _elapsed(self) -> float:
        return round(self._clock() - self._began, 4)


def _spoken(step: LanguageStep) -> Spoken:
    turn = step.turn
    answer = Generation(turn.output, turn.log_prob, turn.version, turn.last_version, turn.stop)
    return Spoken(step.prompt, answer, turn.text, turn.failure, turn.generate_s, step.sampling)


def _header(run: TraceRun, start: LanguageStart, recorded_at: float) -> Header:
    return Header(
        schema=SCHEMA,
        episode_id=start.episode_id,
        run=run.run,
        env_id=start.env_id,
        env_options=dict(start.env_options),
        action_names=(),
        seeds={**start.seeds, RUN_SEED: str(run.seed)},
        policy_version=start.policy_version,
        versions=run.versions,
        code_revision=run.code_revision,
        clock=clock_text(start.seeds),
        recorded_at=recorded_at,
        count_exponent=run.count_exponent,
        reward_model_version=start.reward_model_version,
        policy=run.policy,
        natives=native_versions(),
    )
