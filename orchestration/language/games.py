"""Games that a command is certain to play, generated before it begins: on all cores and with progress, where a world that
generates them one by one when they are first played would hold up everything that waits for it."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from orchestration.machine import available_cpus

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is, and how much there is."""


def make_games(world: str, options: Mapping[str, Any], seeds: Iterable[int], progress: Progress | None = None) -> None:
    """Generates those games that `world` with `options` plays when it is reset with `seeds` and that are not in the cache.

    Nothing for worlds that generate none. Raises what the world raises for a game that cannot be generated.
    """
    family, _, name = world.partition("/")
    workers = max(1, int(available_cpus()))

    def told(done: int, total: int) -> None:
        if progress is not None and total:
            progress(f"games of {world}", done, total)

    if family == "textworld":
        from envs import textworld

        if textworld.is_generated(world):
            textworld.prepare(world, seeds, workers, told, **options)
    elif family == "alfworld":
        from envs.alfworld import generate
        from envs.alfworld.ids import is_path

        if not is_path(name):
            generate.prepare(
                name,
                options.get("split", "train"),
                seeds,
                workers,
                games=options.get("games"),
                cache_dir=options.get("cache_dir"),
                progress=told,
            )
