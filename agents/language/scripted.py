"""Episodes that a script plays, with the very prompts and token layout of those that a model plays: demonstrations, and
random play. The rollout loop is the models' own; only the engine is replaced by the script."""

import asyncio
import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from agents.language.engines.base import Generation, Sampling
from agents.language.episode import Ids, LanguageEpisode
from agents.language.errors import LanguageModelError
from agents.language.parsing import parse, write
from agents.language.rollout import LanguageRollout
from agents.language.template import ChatTemplate
from agents.settings import AgentSettings
from envs.text import TextEnv, TextInfo


@dataclass(frozen=True, slots=True)
class Said:
    """An answer that was given before."""

    command: str
    thought: str = ""
    output: tuple[int, ...] = ()
    """As it was sampled, token by token, the end of the turn included. Said again where the tokenizer that says it reads the
    same command in it; otherwise it is written anew."""


Script = Callable[[TextInfo], str | Said | None]
"""The next command or answer, given the `info` of the reset or step before; None: it knows none."""


class WalkthroughScript:
    """The commands that the world says win the episode; or commands or answers given for it."""

    def __init__(self, commands: Sequence[str | Said] | None = None) -> None:
        self._given = commands
        self._left: deque[str | Said] | None = None

    def __call__(self, info: TextInfo) -> str | Said | None:
        if self._left is None:
            self._left = deque(info.get("walkthrough", ()) if self._given is None else self._given)
        return self._left.popleft() if self._left else None


class RandomScript:
    """One of the admissible commands, each as likely."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def __call__(self, info: TextInfo) -> str | None:
        admissible = info.get("admissible", ())
        return self._random.choice(admissible) if admissible else None


def play_scripts(
    make_env: Callable[[], TextEnv],
    template: ChatTemplate,
    settings: AgentSettings,
    scripts: Iterable[tuple[int, Script]],
    progress: Callable[[int], None] | None = None,
) -> list[LanguageEpisode]:
    """Plays one episode for each (seed, script), as far as the script knows commands; log-probabilities are 0.

    `progress` is called with the number of episodes played. Raises `LanguageModelError` where a prompt does not fit, and
    what the world raises when it is made or reset.
    """
    settings = replace(settings, group_size=1, temperature=1.0)
    episodes: list[LanguageEpisode] = []
    env = _Watched(make_env())
    try:
        for number, (seed, script) in enumerate(scripts, start=1):
            env.script = script
            rollout = LanguageRollout(
                lambda: env, _ScriptedGenerator(env, template, settings.answer), template, settings,
                seed_of=lambda _, seed=seed: seed, name=f"script-{number:06d}",
            )  # fmt: skip
            result = asyncio.run(rollout.play_group(number))
            if result.failures:
                raise LanguageModelError(f"{env.env_spec.id}, seed {seed}: {result.failures[0].error}")
            episodes += result.episodes
            if progress is not None:
                progress(number)
    finally:
        env.close()
    return episodes


class _Watched(TextEnv):
    """A world whose script sees what it says. An episode whose script knows no more ends as if it had been cut."""

    def __init__(self, env: TextEnv) -> None:
        self._env = env
        self.env_spec = env.env_spec
        self.script: Script = WalkthroughScript(())
        self.said: Said | None = None
        """What the script says next."""

    @property
    def seeds(self) -> dict[str, str]:
        return self._env.seeds

    def screen(self) -> str:
        return self._env.screen()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, Any]:
        observation, info = self._env.reset(seed=seed, options=options)
        self.said = self._next(info)
        if self.said is None:
            raise LanguageModelError(f"{self.env_spec.id}, seed {seed}: no walkthrough is known of this episode")
        return observation, info

    def step(self, action: str) -> tuple[str, float, bool, bool, Any]:
        observation, reward, terminated, truncated, info = self._env.step(action)
        self.said = None if terminated or truncated else self._next(info)
        over = self.said is None and not terminated
        return observation, float(reward), terminated, truncated or over, info

    def _next(self, info: Any) -> Said | None:
        said = self.script(cast(TextInfo, info))
        return Said(said) if isinstance(said, str) else said

    def close(self) -> None:
        self._env.close()


class _ScriptedGenerator:
    """Says what the script says, in the form that answers have."""

    version = 0

    def __init__(self, env: _Watched, template: ChatTemplate, answer: str) -> None:
        self._env, self._template, self._answer = env, template, answer

    async def start(self) -> None: ...

    async def generate(self, prompt: Ids, sampling: Sampling) -> Generation:
        del prompt
        said = self._env.said
        assert said is not None  # the world would have ended
        ids = np.array(self._ids(said), np.int32)
        if len(ids) > sampling.max_tokens:
            raise LanguageModelError(
                f"the answer {said.command!r} has {len(ids)} tokens, more than agent.max_new_tokens="
                f"{sampling.max_tokens}"
            )
        return Generation(ids, np.zeros(len(ids), np.float32), 0, 0, "stop")

    def _ids(self, said: Said) -> Sequence[int]:
        if said.output and said.output[-1] in self._template.stop_ids:
            read = parse(self._template.decode(said.output), self._answer)
            if read.failure is None and (read.command, read.thought) == (said.command, said.thought):
                return said.output
        return self._template.answer(write(said.command, self._answer, said.thought))

    async def update(self, folder: Any, version: int) -> None:
        raise LanguageModelError("a script has no weights")

    async def close(self) -> None: ...
