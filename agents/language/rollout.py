"""The rollout loop of language models: many episodes at once, each at its own pace.

An episode waits for the engine or for its world, never for another episode; the engine puts together what waits for it.
Worlds step in threads (`threads`), so that a slow one holds up nobody, but for those of its kind that share something with it
(`TextEnv.exclusive`); without threads they step where they are called,
and the order of everything is the same each time.
"""

import asyncio
import contextlib
import functools
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from agents.language.conversation import Budget, Conversation, Prompt
from agents.language.engines.base import Generation, Generator, Sampling
from agents.language.episode import Ids, LanguageEpisode, LanguageTurn
from agents.language.observer import LanguageObserver, LanguageStart, LanguageStep
from agents.language.parsing import parse
from agents.language.prompts import observation_message, opening, system_message
from agents.language.template import ChatTemplate
from agents.settings import AgentSettings
from agents.telling import CaptionTeller
from envs.captions import EMPTY_CAPTION_ID
from envs.registry import EnvironmentOptionError, EnvironmentUnavailableError
from envs.text import TextEnv

ATTEMPTS = 3
"""So often an episode is played before it is given up, where its world raises."""
FAILURES_IN_A_ROW = 12
"""So many worlds that raise, without an episode between them that ended, end the run: something is wrong with all."""

_NO_IDS: Ids = np.zeros(0, np.int32)
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class WorldFailure:
    """A world that raised; it was replaced."""

    episode_id: str
    error: str


@dataclass(frozen=True, slots=True, eq=False)
class GroupResult:
    """What came of one group of episodes: same task, same seed."""

    group: int
    episodes: tuple[LanguageEpisode, ...]
    """Those that ended, by member; fewer than asked for where worlds kept raising."""
    failures: tuple[WorldFailure, ...]
    new_captions: tuple[tuple[int, str], ...]
    """(id, text) of the captions to be told of: `agents.telling`."""
    wall_s: float
    trouble: tuple[str, ...] = ()
    """Why episodes could not be recorded, a line each; since the group before."""


@dataclass(frozen=True, slots=True)
class _Brought:
    """What a reset or step brought, as the conversation needs it."""

    observation: str
    reward: float
    terminated: bool
    truncated: bool
    info: dict[str, Any]
    screen: str
    seconds: float


_EXCLUSIVE: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
"""One lock for each name in `TextEnv.exclusive`."""


class _Hands:
    """Carries out what worlds do: in threads where there are any."""

    def __init__(self, threads: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(threads, f"{name}-worlds") if threads else None

    async def do(self, work: Callable[[], _T], exclusive: str | None = None) -> _T:
        """`work`, and nothing else of the same `exclusive` name meanwhile."""

        def alone() -> _T:
            with _EXCLUSIVE[exclusive] if exclusive else contextlib.nullcontext():
                return work()

        if self._pool is None:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._pool, alone)

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


@dataclass(slots=True)
class _InForce:
    """What changes while episodes are played."""

    reward_model_version: int | None = None


@dataclass(frozen=True, slots=True)
class _Setup:
    """What all episodes of a rollout have in common."""

    generator: Generator
    template: ChatTemplate
    settings: AgentSettings
    seed_of: Callable[[int], int]
    sampling_seed_of: Callable[[int, int, int], int] | None
    observer: LanguageObserver | None
    captions: CaptionTeller
    hands: _Hands
    in_force: _InForce


class LanguageRollout:
    """Plays episodes of one kind of world with one engine."""

    def __init__(
        self,
        make_env: Callable[[], TextEnv],
        generator: Generator,
        template: ChatTemplate,
        settings: AgentSettings,
        *,
        seed_of: Callable[[int], int],
        sampling_seed_of: Callable[[int, int, int], int] | None = None,
        episodes: int = 64,
        name: str = "actor-00",
        observer: LanguageObserver | None = None,
        threads: int = 0,
    ) -> None:
        """`seed_of(group)`: what the worlds of a group are reset with. `sampling_seed_of(group, member, turn)`: seeds an
        answer; None: the engine's own. `episodes` are played at once at most. `threads`: in which worlds step; 0: in none."""
        self.name = name
        self._make_env = make_env
        self._setup = _Setup(
            generator,
            template,
            settings,
            seed_of,
            sampling_seed_of,
            observer,
            CaptionTeller(),
            _Hands(threads, name),
            _InForce(),
        )
        self._idle: list[TextEnv] = []
        self._room = asyncio.Semaphore(episodes)
        self._failures_in_a_row = 0

    @property
    def generator(self) -> Generator:
        return self._setup.generator

    @property
    def reward_model_version(self) -> int | None:
        """Of the newest reward model that this rollout was told of; None where there is none. Traces tell of it."""
        return self._setup.in_force.reward_model_version

    @reward_model_version.setter
    def reward_model_version(self, version: int | None) -> None:
        self._setup.in_force.reward_model_version = version

    async def play_group(self, group: int) -> GroupResult:
        """Plays `group_size` episodes of one task, side by side. Raises what ends the run: a model that cannot act, a
        task that cannot be made, worlds that raise again and again."""
        began = time.perf_counter()
        failures: list[WorldFailure] = []
        members = [self._in_turn(group, member, failures) for member in range(self._setup.settings.group_size)]
        played = await asyncio.gather(*members)
        episodes = tuple(episode for episode in played if episode is not None)
        captions = self._setup.captions.take_new()
        observer = self._setup.observer
        trouble = () if observer is None else observer.take_trouble()
        return GroupResult(group, episodes, tuple(failures), captions, time.perf_counter() - began, trouble)

    async def _in_turn(self, group: int, member: int, failures: list[WorldFailure]) -> LanguageEpisode | None:
        async with self._room:
            return await self._play(group, member, failures)

    async def _play(self, group: int, member: int, failures: list[WorldFailure]) -> LanguageEpisode | None:
        for attempt in range(ATTEMPTS):
            episode_id = f"{self.name}-g{group:06d}-m{member:02d}" + (f"-try{attempt + 1}" if attempt else "")
            env = self._idle.pop() if self._idle else await self._setup.hands.do(self._make_env)
            try:
                episode = await _Play(self._setup, env, episode_id, group, member).run()
            except _WorldRaisedError as trouble:
                failures.append(WorldFailure(episode_id, str(trouble)))
                await self._bury(env, episode_id, trouble)
            except BaseException:
                await self._setup.hands.do(functools.partial(_close_quietly, env), env.exclusive)
                raise
            else:
                self._failures_in_a_row = 0
                self._idle.append(env)
                if self._setup.observer is not None:
                    self._setup.observer.finish(episode)
                return episode
        return None

    async def _bury(self, env: TextEnv, episode_id: str, trouble: "_WorldRaisedError") -> None:
        """Ends a world that raised. Raises that error where all of them do."""
        if self._setup.observer is not None:
            self._setup.observer.fail(episode_id, str(trouble))
        await self._setup.hands.do(functools.partial(_close_quietly, env), env.exclusive)
        self._failures_in_a_row += 1
        if self._failures_in_a_row >= FAILURES_IN_A_ROW:
            raise trouble.error from trouble

    def tell_again(self, ids: Iterable[int]) -> None:
        """Captions that the learner does not know: they are told of when they come again."""
        self._setup.captions.tell_again(ids)

    def state_dict(self) -> dict[str, Any]:
        """The captions that were told of."""
        return {"told": self._setup.captions.told}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._setup.captions.remember(
            state.get("told", ())
        )  # checkpoints of before have ids alone: all are told of again

    def close(self) -> None:
        """Gives up running episodes and closes the worlds."""
        if self._setup.observer is not None:
            self._setup.observer.close()
        self._setup.hands.close()
        for env in self._idle:
            env.close()
        self._idle = []


class _WorldRaisedError(Exception):
    """Carries what a world raised past what the engine may raise."""

    def __init__(self, error: Exception) -> None:
        super().__init__(f"{type(error).__name__}: {error}")
        self.error = error


class _Play:
    """One episode being played."""

    def __init__(self, setup: _Setup, env: TextEnv, episode_id: str, group: int, member: int) -> None:
        self._setup, self._settings = setup, setup.settings
        self._env = env
        self._id, self._group, self._member = episode_id, group, member
        budget = Budget(self._settings.context, self._settings.max_new_tokens, self._settings.history)
        system = system_message(self._settings.answer)
        self._talk = Conversation(setup.template, system, budget, self._settings.template)
        self._turns: list[LanguageTurn] = []
        self._counts: dict[int, int] = {}

    async def run(self) -> LanguageEpisode:
        began = time.perf_counter()
        seed = self._setup.seed_of(self._group)
        brought = await self._world(lambda: self._reset(seed))
        self._tell_start(brought)
        prompt: Prompt | None = self._talk.begin(opening(brought.info.get("objective", "")), self._message(brought))
        while prompt is not None:
            asked = time.perf_counter()
            generation = await self._setup.generator.generate(prompt.ids, self._sampling())
            prompt, brought = await self._turn(prompt, generation, time.perf_counter() - asked)
        cut = None if brought.terminated else "steps" if brought.truncated else "context"
        has_success = self._env.env_spec.has_success
        episode = LanguageEpisode(
            episode_id=self._id,
            env_id=self._env.env_spec.id,
            seed=seed,
            group=self._group,
            member=self._member,
            turns=tuple(self._turns),
            final_prompt=_NO_IDS if cut is None else self._last_words(brought),
            terminated=brought.terminated,
            truncated=cut is not None,
            cut=cut,
            success=brought.info.get("success", False) if has_success else None,
            metrics={name: float(value) for name, value in brought.info.get("metrics", {}).items()},
            temperature=self._settings.temperature,
            wall_s=time.perf_counter() - began,
        )
        return episode

    async def _turn(self, prompt: Prompt, generation: Generation, generate_s: float) -> tuple[Prompt | None, _Brought]:
        """Carries out an answer. The next prompt is None where the episode is over."""
        settings = self._settings
        text = self._setup.template.decode(generation.ids.tolist())
        answer = parse(text, settings.answer, complete=generation.stop == "stop")
        brought = await self._world(lambda: self._step(answer.command))
        caption = str(brought.info.get("caption", ""))
        grounded = bool(brought.info.get("grounded", True))
        number = self._setup.captions.number(caption)
        self._counts[number] = self._counts.get(number, 0) + 1
        turn = LanguageTurn(
            prompt=prompt.new,
            rewritten=prompt.rewritten,
            output=generation.ids,
            log_prob=generation.log_prob,
            version=generation.version,
            last_version=generation.last_version,
            stop=generation.stop,
            text=text,
            command=answer.command,
            failure=answer.failure,
            penalty=-self._penalty(answer.failure, grounded),
            reward=brought.reward,
            grounded=answer.failure is None and grounded,
            caption_id=number,
            caption_count=0 if number == EMPTY_CAPTION_ID else self._counts[number],
            generate_s=generate_s,
            env_s=brought.seconds,
        )
        self._turns.append(turn)
        self._talk.answered(generation.ids.tolist(), text)
        following: Prompt | None = None
        if not (brought.terminated or brought.truncated):
            following = self._talk.follow(self._message(brought, answer.failure))
        self._tell_step(turn, prompt, caption, brought, over=following is None)
        return following, brought

    def _penalty(self, failure: str | None, grounded: bool) -> float:
        """What an answer costs beyond what the world gives for it."""
        if failure is not None:
            return self._settings.failure_penalty
        return 0.0 if grounded else self._settings.ungrounded_penalty

    def _message(self, brought: _Brought, failure: str | None = None) -> str:
        listed: Sequence[str] | None = brought.info.get("admissible") if self._settings.admissible else None
        return observation_message(brought.observation, listed, failure)

    def _last_words(self, brought: _Brought) -> Ids:
        return self._talk.bootstrap(self._message(brought, self._turns[-1].failure), self._settings.context)

    def _sampling(self) -> Sampling:
        seed_of = self._setup.sampling_seed_of
        seed = None if seed_of is None else seed_of(self._group, self._member, len(self._turns))
        return Sampling(self._settings.max_new_tokens, self._settings.temperature, seed)

    def _reset(self, seed: int) -> _Brought:
        observation, info = self._env.reset(seed=seed)
        return _Brought(observation, 0.0, False, False, info, self._env.screen(), 0.0)

    def _step(self, command: str) -> _Brought:
        observation, reward, terminated, truncated, info = self._env.step(command)
        cut = bool(truncated) and not terminated
        return _Brought(observation, float(reward), bool(terminated), cut, info, self._env.screen(), 0.0)

    async def _world(self, act: Callable[[], _Brought]) -> _Brought:
        """What the world does. Raises `_WorldRaisedError`, but for a task that cannot be made at all."""
        began = time.perf_counter()
        try:
            brought = await self._setup.hands.do(act, self._env.exclusive)
        except (EnvironmentOptionError, EnvironmentUnavailableError):
            raise
        except Exception as error:
            raise _WorldRaisedError(error) from error
        return replace(brought, seconds=time.perf_counter() - began)

    def _tell_start(self, brought: _Brought) -> None:
        observer = self._setup.observer
        if observer is not None:
            spec = self._env.env_spec
            observer.start(
                LanguageStart(
                    episode_id=self._id,
                    env_id=spec.id,
                    env_options=spec.options,
                    seeds=self._env.seeds,
                    policy_version=self._setup.generator.version,
                    reward_model_version=self._setup.in_force.reward_model_version,
                    objective=brought.info.get("objective", ""),
                    observation=brought.observation,
                    screen=brought.screen,
                    caption=str(brought.info.get("caption", "")),
                )
            )

    def _tell_step(self, turn: LanguageTurn, prompt: Prompt, caption: str, brought: _Brought, *, over: bool) -> None:
        observer = self._setup.observer
        if observer is not None:
            sampling = self._sampling()
            observer.step(
                self._id,
                LanguageStep(
                    turn=turn,
                    reward_model_version=self._setup.in_force.reward_model_version,
                    prompt=prompt.ids,
                    caption=caption,
                    observation=brought.observation,
                    screen=brought.screen,
                    terminated=brought.terminated,
                    truncated=over and not brought.terminated,
                    # A world that was cut for want of context says nothing of success: it was not won.
                    success=brought.info.get("success", False if over and self._env.env_spec.has_success else None),
                    metrics=brought.info.get("metrics", {}),
                    sampling={"temperature": sampling.temperature, "max_tokens": sampling.max_tokens},
                ),
            )


def _close_quietly(env: TextEnv) -> None:
    """Closes a world that raised; what it raises now too is of no interest."""
    with contextlib.suppress(Exception):
        env.close()
