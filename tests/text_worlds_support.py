"""What the tests of the text worlds share: a folder of games, filled once and kept between runs."""

from pathlib import Path
from typing import Any

from envs.registry import make_text
from envs.textworld import prepare

GAMES = Path(__file__).resolve().parent.parent / ".cache" / "test-games"


def game(name: str = "w2-o3-q4", **options: Any) -> Any:
    """`textworld/<name>` with its games in the tests' own folder."""
    return make_text(f"textworld/{name}", cache_dir=GAMES, **options)


def win(env: Any, seed: int) -> tuple[list[Any], Any]:
    """Plays the walkthrough; all (observation, reward, ends, info), and the info of the reset."""
    _, first = env.reset(seed=seed)
    return [env.step(command) for command in first["walkthrough"]], first


def make_games(name: str, seeds: list[int], **options: Any) -> int:
    return prepare(f"textworld/{name}", seeds, cache_dir=GAMES, **options)
