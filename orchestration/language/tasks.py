"""Which world and which seed each group of episodes plays: a mix of worlds, a curriculum of worlds, a pool of seeds.

A pure function of the group's number, the same in both runtimes and after a resume.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from envs.registry import make_text
from envs.text import TextEnv
from orchestration.config import Config
from orchestration.language.games import GameMaker, Progress, is_made, make_games
from orchestration.seeds import derive_seed, training_seed

_SEEDS = 2**56
"""Seeds of each world; the bits above say which world it is."""


class Tasks:
    """The tasks of a run."""

    def __init__(self, config: Config, options_of: Callable[[str], Mapping[str, Any]] | None = None) -> None:
        """`options_of`: a world's options, where they are not `env.options`."""
        self._env, self._seed = config.env, config.run.seed
        self._options_of = options_of
        self._group_size = config.agent.group_size
        self.worlds = tuple(dict.fromkeys([*config.env.curriculum, *(config.env.mix or {config.env.id: 1.0})]))
        """All worlds that are played, each once."""

    def options_of(self, world: str) -> Mapping[str, Any]:
        """What `make_env` makes it with."""
        return self._env.options if self._options_of is None else self._options_of(world)

    def world_of(self, group: int) -> str:
        """The world that group number `group` plays."""
        episode = group * self._group_size
        for world, until in zip(self._env.curriculum, itertools.accumulate(self._env.curriculum.values()), strict=True):
            if episode < until:
                return world
        return draw(self._env.mix, derive_seed(self._seed, "world", group)) if self._env.mix else self._env.id

    def seed_of(self, group: int) -> int:
        """What the environment of `make_env` is reset with for that group."""
        count = self._env.tasks
        if count is None:
            task = training_seed(self._seed, "task", group)
        else:  # all of them in an order of this pass's own before any comes again
            again, place = divmod(group, count)
            task = permuted(place, count, derive_seed(self._seed, "pass", again))
        return self.seed_in(self.world_of(group), task)

    def seed_in(self, world: str, task: int) -> int:
        """What the environment of `make_env` is reset with to play task `task`, in [0, 2^56), of a world."""
        return self.worlds.index(world) * _SEEDS + task % _SEEDS

    def make_games(self, seeds: Iterable[int], progress: Progress | None = None) -> None:
        """Generates the games that the environment of `make_env` plays when it is reset with `seeds`."""
        of_world: dict[int, dict[int, None]] = {}
        for seed in seeds:
            number, task = divmod(seed, _SEEDS)
            of_world.setdefault(number, {})[task] = None
        for number, wanted in of_world.items():
            world = self.worlds[number]
            make_games(world, self.options_of(world), wanted, progress)

    def missing(self, groups: Iterable[int]) -> list[int]:
        """Seeds of those groups whose games were not generated yet, each once."""
        seeds = dict.fromkeys(map(self.seed_of, groups))
        return [seed for seed in seeds if not is_made(*self._world_and_task(seed))]

    async def make_game(self, seed: int, maker: GameMaker) -> None:
        """Has the game generated, if need be, that the environment of `make_env` plays when it is reset with `seed`."""
        await maker.make(*self._world_and_task(seed))

    def _world_and_task(self, seed: int) -> tuple[str, Mapping[str, Any], int]:
        """World, its options, and what it is reset with."""
        number, task = divmod(seed, _SEEDS)
        world = self.worlds[number]
        return world, self.options_of(world), task

    def make_env(self) -> TextEnv:
        """An environment that plays any of the worlds, told which by the seed."""
        worlds = [make_text(world, **self.options_of(world)) for world in self.worlds]
        return worlds[0] if len(worlds) == 1 else _Worlds(worlds)


def games_of(world: str, options: Mapping[str, Any]) -> int | None:
    """How many games there are of it, from where seeds begin anew; None where there is no end, or it is not known."""
    family, _, name = world.partition("/")
    if family == "textworld" and options.get("split") is not None:
        from envs.textworld import SPLITS

        return len(SPLITS[options["split"]])
    if family == "alfworld":
        from envs.alfworld.generate import GAMES
        from envs.alfworld.ids import is_path, tasks_of

        if not is_path(name):
            return options.get("games", GAMES[options.get("split", "train")]) * len(tasks_of(name))
    return None


def permuted(place: int, count: int, seed: int) -> int:
    """Where a permutation of `range(count)` drawn from `seed` takes `place`, without the others being computed: a Feistel
    network of four rounds, walked along its cycle until it is below `count` (Black and Rogaway 2002, "Ciphers with Arbitrary
    Finite Domains")."""
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = place >> half, place & mask
        for turn in range(4):
            left, right = right, left ^ (derive_seed(seed, turn, right) & mask)
        place = left << half | right
        if place < count:
            return place


def draw(shares: Mapping[str, float], seed: int) -> str:
    """One of the names, as often as its share says; `seed` in [0, 2^63)."""
    point = seed / 2**63 * sum(shares.values())
    for name, until in zip(shares, itertools.accumulate(shares.values()), strict=True):
        if point < until:
            return name
    return list(shares)[-1]


def split_by_share(shares: Mapping[str, float], count: int) -> dict[str, int]:
    """`count` things split by the shares, the largest remainders first; they add up to `count`."""
    total = sum(shares.values())
    exact = {name: count * share / total for name, share in shares.items()}
    parts = {name: int(x) for name, x in exact.items()}
    by_remainder = sorted(shares, key=lambda name: parts[name] - exact[name])
    for name in by_remainder[: count - sum(parts.values())]:
        parts[name] += 1
    return parts


class _Worlds(TextEnv):
    """Several worlds as one: the seed of an episode says which plays it."""

    def __init__(self, worlds: list[TextEnv]) -> None:
        self._worlds = worlds
        self.exclusive = next((world.exclusive for world in worlds if world.exclusive), None)
        self._now = worlds[0]
        self.env_spec = self._now.env_spec

    @property
    def seeds(self) -> dict[str, str]:
        return self._now.seeds

    def screen(self) -> str:
        return self._now.screen()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, Any]:
        world, task = divmod(self.draw_seed(seed, options) % (_SEEDS * len(self._worlds)), _SEEDS)
        self._now = self._worlds[world]
        self.env_spec = self._now.env_spec
        return self._now.reset(seed=task)

    def step(self, action: str) -> tuple[str, float, bool, bool, Any]:
        observation, reward, terminated, truncated, info = self._now.step(action)
        return observation, float(reward), terminated, truncated, info

    def close(self) -> None:
        for world in self._worlds:
            world.close()
