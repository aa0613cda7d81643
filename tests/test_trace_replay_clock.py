"""NetHack's one look at the wall clock: an episode that it decides is exact where the clock is pinned, and is not elsewhere."""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import gymnasium
import pytest

from agents.networks import NETWORKS
from envs import make, minihack, nle_env
from envs.clock import PINNED, pin_birth
from orchestration.traces.reader import Trace, read_trace
from orchestration.traces.replay import Outcome, replay_trace
from orchestration.traces.replay.policies import Choice
from orchestration.traces.replay.worlds import ArrayWorld, Seen
from orchestration.traces.validate import validate_file
from tests.trace_replay_support import record_world

STEPS = 26
FIRST = 1_700_000_000


@pytest.fixture(scope="module", autouse=True)
def anthole() -> Iterator[None]:
    """Registers the task as a user's own would be."""
    gymnasium.register(id="MiniHack-Anthole-v0", entry_point="tests.anthole:Anthole")
    minihack._registered.cache_clear()  # pyright: ignore[reportPrivateUsage]
    yield
    del gymnasium.registry["MiniHack-Anthole-v0"]
    minihack._registered.cache_clear()  # pyright: ignore[reportPrivateUsage]


def record(folder: Path, seed: int, name: str) -> Trace:
    """One episode of the walk to the ants."""
    from tests.anthole import WALK

    options = {"max_episode_steps": STEPS}
    world = ArrayWorld(make("minihack/Anthole", NETWORKS["fast"].view, **options))
    keys = {"l": "E", ",": "PICKUP", "P": "PUTON", "f": "FIRE", "r": "READ", "g": "RUSH", "2": "NUM_2", "0": "NUM_0"}
    keys |= {"\r": "MORE", "q": "QUAFF", "h": "W"}
    left = iter(WALK)

    def choose(seen: Seen) -> Choice:
        asked = "--More--" in seen.screen or seen.screen.startswith("Call ")
        key = keys["\r" if asked else next(left, ",")]
        return Choice(world.action_names.index(key), key, None, None)

    return read_trace(record_world(folder, world, "minihack/Anthole", options, seed, choose, name))


def ants(trace: Trace) -> set[str]:
    """Colours of the ants on the screen that shows most of them."""
    found: list[Counter[str]] = []
    for step in trace.steps:
        rows = list(zip(step.screen.split("\n"), step.colors.split("\n"), strict=True))[1:-2]
        cells = itertools.chain.from_iterable(zip(row, ink, strict=True) for row, ink in rows)
        found.append(Counter(ink for sign, ink in cells if sign == "a"))
    return {ink for ink, count in max(found, key=Counter.total).items() if count >= 4}


def born_at(monkeypatch: pytest.MonkeyPatch, second: int, *, pinned: bool) -> None:
    """Lets games begin at a `second` of the wall clock, as NetHack itself would note it; then they are `pinned`, or not."""

    def pin(library: str, seconds: int) -> bool:
        return pin_birth(library, second) and pinned and pin_birth(library, seconds)

    monkeypatch.setattr(nle_env, "pin_birth", pin)


@pytest.fixture(scope="module")
def hole(tmp_path_factory: pytest.TempPathFactory) -> int:
    """The first seed whose level 20 has an anthole."""
    from tests.anthole import FIRE, GIANT, SOLDIER

    folder = tmp_path_factory.mktemp("search")
    for seed in range(400):
        if ants(record(folder, seed, f"seed{seed}")) in ({FIRE}, {GIANT}, {SOLDIER}):
            return seed
    raise AssertionError("no anthole below 400 seeds")


def test_a_pinned_anthole_matches_whatever_the_clock_says(
    hole: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = record(tmp_path, hole, "pinned")
    assert trace.header.clock == f"pinned:{trace.header.seeds[PINNED]}" and validate_file(trace.path) == []
    for second in range(FIRST, FIRST + 3):
        born_at(monkeypatch, second, pinned=True)
        verdict = replay_trace(trace)
        assert verdict.line == f"MATCH ({STEPS} steps, clock: pinned)"


def test_an_anthole_without_the_pin_is_another_one_a_second_later(
    hole: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fault that pinning removes, provoked."""
    from tests.anthole import FIRE, GIANT, SOLDIER

    traces: list[Trace] = []
    for second in range(FIRST, FIRST + 3):
        born_at(monkeypatch, second, pinned=False)
        traces.append(record(tmp_path, hole, f"at{second}"))
    assert {trace.header.clock for trace in traces} == {"unpinned"}
    assert [len(ants(trace)) for trace in traces] == [1, 1, 1]
    assert set.union(*map(ants, traces)) == {FIRE, GIANT, SOLDIER}
    # The clock stands still now where the last was recorded.
    assert [replay_trace(trace).outcome for trace in traces] == [Outcome.DIVERGED, Outcome.DIVERGED, Outcome.MATCH]
    verdict = replay_trace(traces[0])
    assert verdict.clock == "wall" and verdict.divergence is not None
    assert verdict.notes == ("the game could read the time of day: antholes and shopkeepers' names may differ",)
    # The kinds are all an "a", and far from the agent: their colours alone tell.
    assert verdict.divergence.differences[0].key.startswith("colours line ")
    told = dataclasses.replace(traces[0], events=traces[2].events)
    assert replay_trace(told).outcome is Outcome.MATCH, "nothing but the events differs"
