"""The two kinds of world that an episode can have been played in, behind one interface: arrays and text."""

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from envs.base import View, YendorEnv
from envs.cache import is_cache
from envs.clock import PINNED
from envs.registry import make, make_text
from envs.text import TextEnv
from orchestration.errors import first_line
from orchestration.traces.cells import colors_of
from orchestration.traces.hashes import observation_hash
from orchestration.traces.reader import Trace
from orchestration.traces.replay.verdict import UnreplayableError
from orchestration.traces.schema import EnvReset, Header
from orchestration.traces.versions import WORLD_NATIVES, WORLD_PACKAGES, native_versions, package_versions

_READS_A_CLOCK = frozenset({"nethack", "minihack"})


@dataclass(frozen=True, slots=True)
class Seen:
    """What a reset or a step brought."""

    observation: Mapping[str, NDArray[Any]]
    """What the agent reads next; of a text world the bytes of its text (`text_observation`)."""
    screen: str
    caption: str
    grounded: bool = True
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False
    success: bool | None = None
    """Only at the end of an episode, as `metrics`."""
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])
    admissible: tuple[str, ...] = ()
    """Of a text world: the commands that it would execute now."""
    objective: str = ""
    """Of a text world, at the reset: what is to be done."""
    error: str | None = None
    """What the world raised instead of anything else here."""
    planes: NDArray[np.uint8] | None = None
    """Characters and colours of the terminal, [2, rows, columns], where the world has one."""

    @property
    def ended(self) -> bool:
        return self.terminated or self.truncated or self.error is not None

    @property
    def observation_hash(self) -> str:
        return observation_hash(self.observation)

    @property
    def text(self) -> str:
        """The observation of a text world."""
        return self.observation["text"].tobytes().decode("utf-8", "surrogatepass")

    @property
    def colors(self) -> str:
        """As `EnvStep.colors`."""
        return "" if self.planes is None else colors_of(self.planes)


def hash_like(recorded: str, observation: Mapping[str, NDArray[Any]]) -> str:
    """The hash of an observation, as long as the one that was recorded: older schemas kept more of its digits."""
    size = len(recorded) // 2
    own = observation_hash(observation)
    if len(recorded) == len(own) or not 1 <= size <= hashlib.blake2b.MAX_DIGEST_SIZE:
        return own
    digest = hashlib.blake2b(digest_size=size)
    for name in sorted(observation):
        array = observation[name]
        digest.update(f"{name}:{array.dtype.str}:{array.shape};".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


class World(Protocol):
    """A world that an episode is played in again."""

    @property
    def action_names(self) -> tuple[str, ...]:
        """Empty where actions are commands in words."""
        ...

    @property
    def seeds(self) -> Mapping[str, str]: ...

    def reset(self, seed: int) -> Seen: ...

    def step(self, action: int, name: str) -> Seen:
        """Carries out an action: by its index, or by its name where actions are commands in words."""
        ...

    def close(self) -> None: ...


class ArrayWorld:
    """A world that networks play."""

    def __init__(self, env: YendorEnv) -> None:
        self._env = env

    @property
    def action_names(self) -> tuple[str, ...]:
        return self._env.env_spec.action_names

    @property
    def seeds(self) -> Mapping[str, str]:
        return self._env.seeds

    def reset(self, seed: int) -> Seen:
        observation, info = self._env.reset(seed=seed)
        return Seen(observation, self._env.screen(), info.get("caption", ""), planes=self._planes())

    def step(self, action: int, name: str) -> Seen:
        del name
        observation, reward, terminated, truncated, info = self._env.step(action)
        seen = _seen(observation, self._env.screen(), float(reward), bool(terminated), bool(truncated), info)
        return dataclasses.replace(seen, planes=self._planes())

    def _planes(self) -> NDArray[np.uint8] | None:
        terminal = self._env.terminal()
        return None if terminal is None else terminal.planes()

    def close(self) -> None:
        self._env.close()


class WordWorld:
    """A world that language models play."""

    action_names: tuple[str, ...] = ()

    def __init__(self, env: TextEnv) -> None:
        self._env = env

    @property
    def seeds(self) -> Mapping[str, str]:
        return self._env.seeds

    def reset(self, seed: int) -> Seen:
        text, info = self._env.reset(seed=seed)
        return Seen(
            text_observation(text),
            self._env.screen(),
            info.get("caption", ""),
            admissible=tuple(info.get("admissible", ())),
            objective=str(info.get("objective", "")),
        )

    def step(self, action: int, name: str) -> Seen:
        del action
        text, reward, terminated, truncated, info = self._env.step(name)
        screen = self._env.screen()
        return _seen(text_observation(text), screen, float(reward), bool(terminated), bool(truncated), info)

    def close(self) -> None:
        self._env.close()


def _seen(
    observation: Mapping[str, NDArray[Any]],
    screen: str,
    reward: float,
    terminated: bool,
    truncated: bool,
    info: dict[str, Any],
) -> Seen:
    return Seen(
        observation,
        screen,
        info.get("caption", ""),
        bool(info.get("grounded", True)),
        reward,
        terminated,
        truncated,
        info.get("success"),
        info.get("metrics", {}),
        tuple(info.get("admissible", ())),
    )


def text_observation(text: str) -> dict[str, NDArray[Any]]:
    """A text as the observation whose hash a trace keeps: one array `text` of the bytes of its UTF-8."""
    return {"text": np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)}


def reset_of(trace: Trace) -> EnvReset:
    """How the episode began. Raises `UnreplayableError` where the file was cut before."""
    reset = next((event for event in trace.events if isinstance(event, EnvReset)), None)
    if reset is None:
        raise UnreplayableError("nothing of the episode is in it, not even its reset")
    return reset


def seed_of(header: Header) -> int:
    """The seed that the episode is started with. Raises `UnreplayableError` where the header has none."""
    text = header.seeds.get("seed", "")
    if not text.isdecimal():
        raise UnreplayableError(f"its header has no seed to reset with, only {', '.join(header.seeds) or 'none'}")
    return int(text)


def view_of(header: Header) -> View | None:
    """What the policy asked its environment to show it; None where the header does not tell."""
    try:
        return None if header.view is None else View(**header.view)
    except TypeError as error:
        raise UnreplayableError(f"its view is none that this version knows: {error}") from error


def clock_of(header: Header) -> str:
    """`pinned`, `wall` or `none`: see `Verdict.clock`."""
    if header.env_id.partition("/")[0] not in _READS_A_CLOCK:
        return "none"
    return "pinned" if PINNED in header.seeds else "wall"


def other_versions(header: Header) -> list[str]:
    """How what decides about this world differs from what it was recorded with, one line for each package or library."""
    prefix = header.env_id.partition("/")[0]
    packages, natives = package_versions(), native_versions()
    recorded = {name: header.versions.get(name) for name in WORLD_PACKAGES.get(prefix, ())}
    lines = [
        f"recorded with {name} {version}, here is {packages.get(name) or 'none'}"
        for name, version in recorded.items()
        if version is not None and version != packages.get(name)
    ]
    if lines:
        return lines
    # A library of another version is another file anyway.
    return [
        f"{name} was another build in the recording ({header.natives[name]}, here {natives.get(name)})"
        for name in WORLD_NATIVES.get(prefix, ())
        if header.natives.get(name) not in (None, natives.get(name))
    ]


def open_world(header: Header, first_hash: str | None = None, view: View | None = None) -> World:
    """The world of the episode.

    What a network was shown depends on its view: `view`, or that of the header; the headers of older schemas do not tell
    it, and then it is the one whose first observation has the hash `first_hash`, or else the default. Raises
    `UnreplayableError`.
    """
    _check_packages(header)
    try:
        if not header.action_names:
            return WordWorld(make_text(header.env_id, **_options(header)))
        view = view or view_of(header)
        if view is not None or first_hash is None:
            return ArrayWorld(make(header.env_id, view, **header.env_options))
        return _as_shown(header, first_hash)
    except UnreplayableError:
        raise
    except Exception as error:  # whatever keeps a world from being made, it cannot be played
        raise UnreplayableError(f"the environment cannot be made here: {first_line(error)}") from error


def _options(header: Header) -> dict[str, Any]:
    """The options of the recording, but for a folder of games that is none here: a trace does not say where files are
    written. Games are the same wherever they are kept."""
    options = dict(header.env_options)
    folder = options.get("cache_dir")
    if folder is not None and not (isinstance(folder, str) and is_cache(Path(folder).expanduser())):
        del options["cache_dir"]
    return options


def _check_packages(header: Header) -> None:
    recorded = {name: header.versions.get(name) for name in WORLD_PACKAGES.get(header.env_id.partition("/")[0], ())}
    missing = [f"{name}=={version}" for name, version in recorded.items() if version and not find_spec(name)]
    if missing:
        raise UnreplayableError(f"not installed here: {', '.join(missing)}")


def _as_shown(header: Header, first_hash: str) -> World:
    """The world in the view in which its first observation has the hash `first_hash`; else in the likeliest."""
    from agents.networks import NETWORKS  # loads torch

    views = [View()]
    for name, network in NETWORKS.items():
        views.insert(0 if name == header.policy else len(views), network.view)
    seed = seed_of(header)
    for view in dict.fromkeys(views):
        world = ArrayWorld(make(header.env_id, view, **header.env_options))
        if hash_like(first_hash, world.reset(seed).observation) == first_hash:
            return world
        world.close()
    return ArrayWorld(make(header.env_id, views[0], **header.env_options))
