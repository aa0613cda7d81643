"""What a text world is: text to read, a command to say, and which commands the world would have understood."""

import string
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym

from envs.base import StepInfo
from envs.captions import normalise
from envs.direct import check_seed

MAX_OBSERVATION = 2**16
MAX_COMMAND = 2**10
"""Most characters of an observation and of a command in the spaces that gymnasium is shown."""

_CHARACTERS = "".join(sorted(set(string.printable) - set("\t\r\x0b\x0c")))


class TextInfo(StepInfo, total=False):
    """The `info` of a text world's `reset` and `step`. `caption` and `grounded` as everywhere: here a command is
    grounded if it was among the admissible ones of the step before."""

    objective: str
    """What the episode asks for, in words; the same at every step."""
    admissible: tuple[str, ...]
    """The commands that the world would execute now, sorted; empty where it cannot say."""
    facts: tuple[str, ...]
    """What is true now, as sorted propositions (`at(P, kitchen)`); empty unless the environment was made with `facts`."""
    walkthrough: tuple[str, ...]
    """Only in `reset`: commands that win the episode from its start; empty where none is known."""
    score: float
    """Points so far (cumulative), where the game counts any."""


@dataclass(frozen=True, slots=True)
class TextEnvSpec:
    """What is fixed about a text world before it runs."""

    id: str
    max_episode_steps: int
    has_success: bool
    options: Mapping[str, Any] = field(default_factory=dict)


class AnyText(gym.spaces.Text):
    """Strings of any characters up to a length; samples are drawn from printable ASCII."""

    def __init__(self, max_length: int) -> None:
        super().__init__(max_length, min_length=0, charset=_CHARACTERS)

    def contains(self, x: Any) -> bool:
        return isinstance(x, str) and len(x) <= self.max_length


class TextEnv(gym.Env[str, str]):
    """One text world, gymnasium-shaped: an observation is the text that the world says, an action is a command.

    `reset(seed=s)` plays the episode that `s` names within the environment's split: the same seed and commands give the
    same texts, rewards and ends. Without a seed one is drawn from `np_random`. An unknown command is no error: the world
    says that it does not understand, and `grounded` is False.
    """

    metadata = {"render_modes": ["ansi"]}  # noqa: RUF012 - gymnasium's own way
    render_mode = "ansi"
    observation_space = AnyText(MAX_OBSERVATION)
    action_space = AnyText(MAX_COMMAND)

    env_spec: TextEnvSpec

    exclusive: str | None = None
    """Worlds of the same name must not act at the same time in several threads: they share what allows only one. None:
    those of this class share nothing."""

    @property
    def seeds(self) -> dict[str, str]:
        """The seeds of the episode that runs, as decimal strings; `game`, where one has a name, is that."""
        raise NotImplementedError

    def screen(self) -> str:
        """What a person would see now: the last text."""
        raise NotImplementedError

    def render(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.screen()

    def draw_seed(self, seed: int | None, options: Mapping[str, Any] | None) -> int:
        """What `reset` does with its arguments: the seed of the episode, given or drawn.

        Raises ValueError for a seed outside [0, 2^64) and for options, which are set when the environment is made.
        """
        if options:
            names = ", ".join(sorted(options))
            raise ValueError(f"{self.env_spec.id}: reset takes no options, but was given {names}")
        super().reset(seed=None if seed is None else check_seed(seed))
        return int(self.np_random.integers(2**63)) if seed is None else seed


class SimpleTextEnv(TextEnv):
    """A text world of one's own: derive from it, say `begin` and `respond`, and the rest is done here.

    Counted and checked here: seeds, the step limit, captions (the text itself), grounding (by the admissible commands)
    and what a step after the end or before the start does (RuntimeError).
    """

    def __init__(self, spec: TextEnvSpec) -> None:
        self.env_spec = spec
        self._seed = 0
        self._steps = 0
        self._running = False
        self._text = ""
        self._admissible: frozenset[str] = frozenset()

    @abstractmethod
    def begin(self, seed: int) -> str:
        """Starts the episode of `seed`, in [0, 2^64); returns the first text."""

    @abstractmethod
    def respond(self, command: str) -> tuple[str, float, bool | None]:
        """Carries out `command` (white space made single spaces, no control characters) as far as the world understands
        it; returns the text, the reward, and True (won), False (lost) or None (the episode goes on)."""

    def objective(self) -> str:
        """What the episode asks for, in words."""
        return ""

    def admissible(self) -> tuple[str, ...]:
        """The commands that the world would execute now; empty where it cannot say, and then all are grounded."""
        return ()

    def walkthrough(self) -> tuple[str, ...]:
        """Commands that win the episode from its start; empty where none is known."""
        return ()

    @property
    def seeds(self) -> dict[str, str]:
        return {"seed": str(self._seed)}

    def screen(self) -> str:
        return self._text

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, Any]:
        self._seed = self.draw_seed(seed, options)
        self._steps, self._running = 0, True
        self._text = self.begin(self._seed)
        return self._text, {**self._info(True), "walkthrough": self.walkthrough()}

    def step(self, action: str) -> tuple[str, float, bool, bool, Any]:
        if not self._running:
            raise RuntimeError(f"{self.env_spec.id}: the episode is over or has not begun; call reset first")
        command = normalise(action)
        grounded = not self._admissible or command in self._admissible
        self._text, reward, won = self.respond(command)
        self._steps += 1
        terminated = won is not None
        truncated = not terminated and self._steps >= self.env_spec.max_episode_steps
        self._running = not (terminated or truncated)
        info = self._info(grounded)
        if not self._running:
            info["success"] = bool(won) if self.env_spec.has_success else None
            info["metrics"] = {}
        return self._text, float(reward), terminated, truncated, info

    def _info(self, grounded: bool) -> TextInfo:
        admissible = tuple(sorted(self.admissible()))
        self._admissible = frozenset(admissible)
        return {
            "caption": normalise(self._text),
            "grounded": grounded,
            "objective": self.objective(),
            "admissible": admissible,
            "facts": (),
        }
