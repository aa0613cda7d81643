"""Games that are certain to be played, generated before: on several cores, where a world that generates them one by one when
they are first played would hold up everything that waits for it."""

import asyncio
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

from orchestration.machine import available_cpus

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is, and how much there is."""


_LOG = logging.getLogger(__name__)
_LOOKED_AFTER_EVERY_S = 1.0
_IDLE_S = 60.0
"""After which processes that make games end: each takes 100 MB, and seconds to start."""


def make_games(
    world: str,
    options: Mapping[str, Any],
    seeds: Iterable[int],
    progress: Progress | None = None,
    workers: int | None = None,
) -> None:
    """Generates those games that `world` with `options` plays when it is reset with `seeds` and that are not in the cache, on
    `workers` cores (None: on all).

    Nothing for worlds that generate none. Raises what the world raises for a game that cannot be generated.
    """
    family, _, name = world.partition("/")
    workers = max(1, int(available_cpus())) if workers is None else workers

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


def is_made(world: str, options: Mapping[str, Any], seed: int) -> bool:
    """Whether there is nothing left to generate for `world` to be reset with `seed`."""
    family, _, name = world.partition("/")
    if family == "textworld":
        from envs import textworld

        return textworld.is_made(world, seed, **options)
    if family == "alfworld":
        from envs.alfworld import generate
        from envs.alfworld.ids import is_path

        split, games, cache = options.get("split", "train"), options.get("games"), options.get("cache_dir")
        return is_path(name) or generate.is_made(name, split, seed, games=games, cache_dir=cache)
    return True


class GameMaker:
    """Generates games without holding up the loop that plays others: in processes of its own, which end when they have had
    nothing to do for a while."""

    def __init__(self, workers: int) -> None:
        """`workers`: processes at once, at most."""
        self._workers = workers
        self._pool: ProcessPoolExecutor | None = None
        self._making: dict[tuple[str, int], asyncio.Future[None]] = {}
        self._end: asyncio.TimerHandle | None = None

    async def make(self, world: str, options: Mapping[str, Any], seed: int) -> None:
        """Returns when the game is there, which `world`, always with these options, plays when it is reset with `seed`.

        Raises nothing for a game that cannot be generated: the world does, when it is to play it.
        """
        key = (world, seed)
        making = self._making.get(key)
        try:
            if making is None:
                if is_made(world, options, seed):
                    return
                making = self._making[key] = self._submit(world, options, seed)
            await asyncio.shield(making)
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if making is None or not making.cancelled() or (caller is not None and caller.cancelling()):
                raise  # otherwise it is the game that was cancelled: the pool was closed before its turn came
        except Exception as error:
            if isinstance(error, BrokenExecutor):  # killed for want of memory, say: another pool is made for the next
                self.close()
            _LOG.warning("a game of %s is left to its world: %s: %s", world, type(error).__name__, error)
        finally:
            if making is not None and making.done() and self._making.get(key) is making:
                self._made(key)

    def _submit(self, world: str, options: Mapping[str, Any], seed: int) -> "asyncio.Future[None]":
        if self._end is not None:
            self._end.cancel()
            self._end = None
        if self._pool is None:
            # A forked child would inherit the locks of the threads of a process that has a model loaded.
            self._pool = ProcessPoolExecutor(self._workers, get_context("spawn"), _begin_child, (os.getpid(),))
        loop = asyncio.get_running_loop()
        return loop.run_in_executor(self._pool, make_games, world, dict(options), [seed], None, 1)

    def _made(self, key: tuple[str, int]) -> None:
        del self._making[key]
        if not self._making and self._pool is not None:
            self._end = asyncio.get_running_loop().call_later(_IDLE_S, self.close)

    def close(self) -> None:
        """Ends the processes, in the middle of a game where they are at one."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        processes = list((pool._processes or {}).values())  # pyright: ignore[reportPrivateUsage]
        pool.shutdown(wait=False, cancel_futures=True)
        if self._making:
            for process in processes:
                process.kill()


def _begin_child(parent: int) -> None:
    """Has this process end when its parent is gone, however that ended: nobody else would. Ctrl-C is the parent's alone, whose
    terminal it shares."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOKED_AFTER_EVERY_S)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=look, name="parent", daemon=True).start()
