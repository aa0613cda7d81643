"""Playing in the terminal: a person at the keyboard, or a model while the person watches."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from agents.language.engines import Generator
from agents.language.episode import LanguageEpisode
from agents.language.observer import LanguageStart, LanguageStep
from agents.language.parsing import parse
from agents.language.rollout import LanguageRollout
from agents.language.template import ChatTemplate
from envs.registry import make_text
from envs.text import TextEnv
from orchestration.config import Config
from orchestration.language.models import acting_model
from orchestration.seeds import derive_seed

HELP = "? lists what can be done here, a number takes one of these; quit (or Ctrl-D) leaves"


@dataclass(frozen=True, slots=True)
class Played:
    """How a game ended."""

    env: str
    seed: int
    steps: int
    episode_return: float
    success: bool | None
    commands: tuple[str, ...]
    left: bool
    """The person left before the end."""


def play_person(config: Config, seed: int, console: Console, read: Callable[[str], str] = input) -> Played:
    """A person plays one episode; `read` asks for a line and raises EOFError where there is none."""
    env = make_text(config.env.id, **config.env.options)
    try:
        return _Person(env, config.env.id, seed, console, read).play()
    finally:
        env.close()


class _Person:
    def __init__(self, env: TextEnv, env_id: str, seed: int, console: Console, read: Callable[[str], str]) -> None:
        self._env, self._id, self._seed = env, env_id, seed
        self._console, self._read = console, read
        self._commands: list[str] = []

    def play(self) -> Played:
        text, info = self._env.reset(seed=self._seed)
        _show_start(self._console, self._id, self._seed, str(info.get("objective", "")), text)
        self._console.print(HELP, style="dim", markup=False)
        total, ended = 0.0, False
        while not ended:
            command = self._ask(tuple(info.get("admissible", ())))
            if command is None:
                return Played(self._id, self._seed, len(self._commands), total, None, tuple(self._commands), True)
            text, reward, terminated, truncated, info = self._env.step(command)
            self._commands.append(command)
            total, ended = total + float(reward), bool(terminated or truncated)
            _show_answer(self._console, text, float(reward), bool(info.get("grounded", True)))
        success = info.get("success")
        return Played(self._id, self._seed, len(self._commands), total, success, tuple(self._commands), False)

    def _ask(self, admissible: tuple[str, ...]) -> str | None:
        """The next command; None where the person leaves."""
        while True:
            try:
                line = self._read(f"{len(self._commands) + 1}> ").strip()
            except EOFError:
                return None
            if line in ("quit", "exit"):
                return None
            if line == "?":
                listed = [f"{number:3} {command}" for number, command in enumerate(admissible, start=1)]
                self._console.print("\n".join(listed) or "this world does not say", markup=False, highlight=False)
            elif line.isdecimal() and 1 <= int(line) <= len(admissible):
                return admissible[int(line) - 1]
            elif line:
                return line


def play_model(config: Config, seed: int, console: Console, pause: Callable[[], Any] | None = None) -> Played:
    """A model plays one episode, told as it goes; `pause` is called after each turn."""
    from orchestration.language.parts import build_generator, build_template

    config = replace(config, runtime="serial", agent=replace(config.agent, group_size=1))
    model = acting_model(config)
    template = build_template(model)
    generator = build_generator(config, model, template, 0, 0)
    episode = asyncio.run(
        _play_model(config, seed, template, generator, console, _Teller(console, config, seed, pause))
    )
    return Played(
        episode.env_id,
        seed,
        episode.length,
        episode.episode_return,
        episode.success,
        tuple(turn.command for turn in episode.turns),
        False,
    )


async def _play_model(
    config: Config, seed: int, template: ChatTemplate, generator: Generator, console: Console, teller: "_Teller"
) -> LanguageEpisode:
    rollout = LanguageRollout(
        lambda: make_text(config.env.id, **config.env.options),
        generator,
        template,
        config.agent,
        seed_of=lambda _: seed,
        sampling_seed_of=lambda group, _, turn: derive_seed(seed, "play", group, turn),
        name="play",
        observer=teller,
    )
    try:
        with console.status(f"loading {config.agent.model} …"):
            await generator.start()
        result = await rollout.play_group(0)
    finally:
        rollout.close()
        await generator.close()
    if not result.episodes:
        raise RuntimeError(f"{config.env.id} raised {result.failures[-1].error}")
    return result.episodes[0]


class _Teller:
    """A `LanguageObserver` that prints."""

    def __init__(self, console: Console, config: Config, seed: int, pause: Callable[[], Any] | None) -> None:
        self._console, self._config, self._seed, self._pause = console, config, seed, pause

    def start(self, start: LanguageStart) -> None:
        _show_start(self._console, start.env_id, self._seed, start.objective, start.observation)

    def step(self, episode_id: str, step: LanguageStep) -> None:
        turn = step.turn
        answer = parse(turn.text, self._config.agent.answer, complete=turn.stop == "stop")
        if answer.thought:
            self._console.print(Text(answer.thought, style="italic dim"))
        if turn.failure is None:
            self._console.print(Text(f"> {turn.command}", style="bold green"))
        else:
            self._console.print(Text(f"{turn.text!r} could not be read: {turn.failure}", style="red"))
        speed = f"{len(turn.output)} tokens in {turn.generate_s:.2f} s"
        self._console.print(Text(speed, style="dim"))
        _show_answer(self._console, step.observation, turn.reward, turn.grounded)
        if self._pause is not None and not (step.terminated or step.truncated):
            self._pause()

    def finish(self, episode: LanguageEpisode) -> None: ...

    def fail(self, episode_id: str, error: str) -> None:
        self._console.print(Text(f"the world raised {error}", style="red"))

    def take_trouble(self) -> tuple[str, ...]:
        return ()

    def close(self) -> None: ...


def _show_start(console: Console, env_id: str, seed: int, objective: str, observation: str) -> None:
    console.print(Panel(Text(objective or "-"), title=f"{env_id} · seed {seed}", title_align="left"))
    console.print(Text(f"{observation}\n"))


def _show_answer(console: Console, observation: str, reward: float, grounded: bool) -> None:
    if not grounded:
        console.print(Text("not understood", style="yellow"))
    console.print(Text(f"{observation}\n"))
    if reward:
        console.print(Text(f"reward {reward:+g}", style="bold"))
