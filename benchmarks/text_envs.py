"""Text worlds: steps/s beside TextWorld's own gym environment, on the same games, commands and infos.

Both play the same random admissible commands, in turns, from fresh episodes of the same games. Ours always tells room,
inventory, admissible commands and grounding; stock is asked for the same.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

WORLDS = ("w2-o3-q4", "w4-o6-q8")
GAMES = 8
KINDS: Mapping[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "admissible": ({}, ()),
    "facts": ({"facts": True}, ("facts",)),
    "dense": ({"reward": "dense"}, ("intermediate_reward",)),
}
"""Our options, and what stock is asked for beyond `BASE`."""
BASE = ("description", "inventory", "admissible_commands", "won", "lost", "score", "objective", "max_score")


@dataclass(frozen=True)
class Rate:
    """One world and kind of infos."""

    world: str
    kind: str
    ours: tuple[float, ...]
    """Steps/s of each repeat, resets included."""
    stock: tuple[float, ...]
    ours_reset_ms: float
    stock_reset_ms: float

    @property
    def ratio(self) -> float:
        """Median of the ratios of neighbouring repeats."""
        return statistics.median(a / b for a, b in zip(self.ours, self.stock, strict=True))


Player = Callable[[random.Random], tuple[int, float, float]]
"""Plays one episode; returns its steps, the seconds of the reset and those of the rest."""


def main(folder: Path, *options: str) -> None:
    """Prints a table and writes `text_envs.json`. `options` as on the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks text_envs", description=__doc__)
    parser.add_argument("--episodes", type=int, default=24, help="of each repeat (default 24)")
    parser.add_argument("--repeats", type=int, default=5, help="of each system (default 5)")
    parser.add_argument("--steps", type=int, default=24, help="limit of an episode (default 24)")
    given = parser.parse_args(options)
    folder.mkdir(parents=True, exist_ok=True)
    rates = [
        measure(folder / "games", world, kind, given.episodes, given.repeats, given.steps)
        for world in WORLDS
        for kind in KINDS
    ]
    memory = {"growth_mb_of_500_resets": growth(folder / "games", 500)}
    print(table(rates))
    print(f"resident memory after 500 more resets over {GAMES} games: {memory['growth_mb_of_500_resets']:+.1f} MB")
    found = {"rates": [{**asdict(rate), "ratio": rate.ratio} for rate in rates], **memory}
    (folder / "text_envs.json").write_text(json.dumps(found, indent=2))


def measure(games: Path, world: str, kind: str, episodes: int, repeats: int, steps: int) -> Rate:
    """Plays `episodes` episodes with each system, `repeats` times in turn, after one of each to warm up."""
    ours, stock = our_player(games, world, kind, steps), stock_player(games, world, kind, steps)
    rates: dict[str, list[float]] = {"ours": [], "stock": []}
    resets: dict[str, list[float]] = {"ours": [], "stock": []}
    for repeat in range(repeats + 1):
        for name, player in (("ours", ours), ("stock", stock)):
            draw = random.Random(repeat)
            played = [player(draw) for _ in range(episodes if repeat else GAMES)]
            if repeat:
                seconds = sum(reset + rest for _, reset, rest in played)
                rates[name].append(sum(count for count, _, _ in played) / seconds)
                resets[name] += [reset for _, reset, _ in played]
    return Rate(
        world,
        kind,
        tuple(rates["ours"]),
        tuple(rates["stock"]),
        statistics.median(resets["ours"]) * 1e3,
        statistics.median(resets["stock"]) * 1e3,
    )


def our_player(games: Path, world: str, kind: str, steps: int) -> Player:
    """Plays the games of seeds 1 to `GAMES` in turn."""
    from envs.registry import make_text

    env = make_text(f"textworld/{world}", cache_dir=games, max_episode_steps=steps, **KINDS[kind][0])
    episode = 0

    def play(draw: random.Random) -> tuple[int, float, float]:
        nonlocal episode
        began = time.perf_counter()
        _, info = env.reset(seed=1 + episode % GAMES)
        reset = time.perf_counter()
        episode += 1
        for count in range(1, steps + 1):
            _, _, terminated, truncated, info = env.step(draw.choice(info["admissible"]))
            if terminated or truncated:
                return count, reset - began, time.perf_counter() - reset
        raise AssertionError("the limit ends every episode")

    return play


def stock_player(games: Path, world: str, kind: str, steps: int) -> Player:
    """As `our_player`, with textworld.gym; the games are played in its own shuffled order."""
    import textworld
    import textworld.gym

    from envs.textworld.games import Recipe, story_of
    from envs.textworld.tasks import parse

    task = parse(world)
    assert task is not None
    stories = [str(story_of(Recipe(task, seed), games)) for seed in range(1, GAMES + 1)]
    infos = textworld.EnvInfos(**dict.fromkeys((*BASE, *KINDS[kind][1]), True))
    env = textworld.gym.make(textworld.gym.register_games(stories, infos, max_episode_steps=steps))

    def play(draw: random.Random) -> tuple[int, float, float]:
        began = time.perf_counter()
        _, info = env.reset()
        reset = time.perf_counter()
        count, done = 0, False
        while not done:
            _, _, done, info = env.step(draw.choice(info["admissible_commands"]))
            count += 1
        return count, reset - began, time.perf_counter() - reset

    return play


def growth(games: Path, resets: int) -> float:
    """MB of resident memory that so many resets add, after as many to warm up."""
    from envs.registry import make_text

    env = make_text(f"textworld/{WORLDS[0]}", cache_dir=games)
    sizes: list[float] = []
    for _ in range(2):
        for count in range(resets):
            env.reset(seed=1 + count % GAMES)
            env.step("look")
        sizes.append(psutil.Process().memory_info().rss / 2**20)
    return sizes[1] - sizes[0]


def table(rates: Sequence[Rate]) -> str:
    """The rates as a Markdown table."""
    rows = [
        "| world, infos | ours, steps/s | stock, steps/s | ratio | reset, ms (ours, stock) |",
        "|---|---|---|---|---|",
    ]
    for rate in rates:
        ours, stock = statistics.median(rate.ours), statistics.median(rate.stock)
        resets = f"{rate.ours_reset_ms:.1f}, {rate.stock_reset_ms:.1f}"
        rows.append(f"| {rate.world}, {rate.kind} | {ours:,.0f} | {stock:,.0f} | {rate.ratio:.2f} | {resets} |")
    return "\n".join(rows)


if __name__ == "__main__":
    main(Path(tempfile.mkdtemp(prefix="yendor-text-envs-")))
