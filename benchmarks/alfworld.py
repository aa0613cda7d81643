"""Steps and resets a second of ALFWorld, against its stock environment: same games, same commands, same texts.

Both play one after the other in every round, and take turns at going first, so that whatever else the machine does
meets both. What they say is compared, and a difference ends the benchmark.
"""

import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from envs.alfworld.data import read_game
from envs.alfworld.env import AlfworldEnv
from envs.alfworld.generate import GAME_FILE, prepare
from envs.alfworld.ids import TASK_TYPES
from envs.registry import make_text

FIGURES = ("steps_per_second", "reset_s")


def stock_env() -> Any:
    """ALFWorld's own environment of one game, as its `AlfredTWEnv` builds it (without shuffled numbers)."""
    import textworld
    from alfworld.agents.environment.alfred_tw_env import AlfredDemangler, AlfredInfos
    from textworld.envs.pddl import PddlEnv

    infos = textworld.EnvInfos(won=True, admissible_commands=True, extras=["gamefile"])
    return AlfredInfos(AlfredDemangler(PddlEnv(infos), shuffle=False))


def main(folder: Path, steps: int = 30, rounds: int = 3) -> None:
    """Plays one game of each task type in each round, `steps` commands each; prints a table; writes `alfworld.json`."""
    cache = folder / "alfworld-cache"
    prepare("all", "train", range(len(TASK_TYPES)), workers=2, cache_dir=cache)
    stock, ours = stock_env(), make_text("alfworld/all", cache_dir=str(cache), max_episode_steps=steps + 1)
    measured: dict[str, dict[str, list[float]]] = {side: {name: [] for name in FIGURES} for side in ("stock", "yendor")}
    for turn in range(rounds):
        for seed, task in enumerate(TASK_TYPES):
            _, info = ours.reset(seed=seed)
            assert isinstance(ours, AlfworldEnv) and ours.folder is not None
            game = ours.folder
            commands = _commands(game, info, random.Random(f"{turn} {task}"), steps, ours)
            sides: list[tuple[str, Callable[[], list[str]], Callable[[str], str]]] = [
                ("stock", lambda game=game: _reset_stock(stock, game), lambda command: stock.step(command)[0].feedback),
                ("yendor", lambda seed=seed: [ours.reset(seed=seed)[0]], lambda command: ours.step(command)[0]),
            ]
            said = dict(_play(*side, commands, measured) for side in (sides if turn % 2 == 0 else sides[::-1]))
            assert said["stock"] == said["yendor"], f"{task}: the two say different things"
            print(f"round {turn + 1} of {rounds}, {task}", flush=True)
    ours.close()
    report = {side: {name: _spread(values) for name, values in of.items()} for side, of in measured.items()}
    ratios = [b / a for a, b in zip(*(measured[side]["steps_per_second"] for side in measured), strict=True)]
    report["ratio"] = {"steps_per_second": _spread(ratios)}
    setting = {"steps_per_game": steps, "games_per_round": len(TASK_TYPES), "rounds": rounds}
    (folder / "alfworld.json").write_text(json.dumps({"setting": setting, **report}, indent=2))
    print("\n| | steps/s, median (min–max) | reset, s |\n|---|---|---|")
    for side in ("stock", "yendor"):
        print(f"| {side} | {_shown(report[side]['steps_per_second'])} | {_shown(report[side]['reset_s'])} |")
    print(f"| ratio | {_shown(report['ratio']['steps_per_second'])} | |")


def _commands(game: Path, info: Any, rng: random.Random, steps: int, env: Any) -> list[str]:
    """Random admissible commands that do not end the game, found by playing."""
    walkthrough = read_game(game)[0]["walkthrough"]
    commands: list[str] = []
    while len(commands) < steps:
        choices = [command for command in info["admissible"] if command != walkthrough[-1]]
        commands.append(rng.choice(choices))
        _, _, won, _, info = env.step(commands[-1])
        assert not won
    return commands


def _reset_stock(stock: Any, game: Path) -> list[str]:
    stock.load(str(game / GAME_FILE))
    return [stock.reset().feedback]


def _play(
    side: str,
    reset: Callable[[], list[str]],
    say: Callable[[str], str],
    commands: list[str],
    measured: dict[str, dict[str, list[float]]],
) -> tuple[str, list[str]]:
    began = time.perf_counter()
    said = reset()
    ready = time.perf_counter()
    said += [say(command) for command in commands]
    measured[side]["reset_s"].append(ready - began)
    measured[side]["steps_per_second"].append(len(commands) / (time.perf_counter() - ready))
    return side, said


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "n": len(values)}


def _shown(spread: dict[str, float]) -> str:
    return f"{spread['median']:,.3g} ({spread['min']:,.3g}–{spread['max']:,.3g})"
