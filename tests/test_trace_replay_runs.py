"""What the actors of a run recorded comes out again in another process: networks and language models, in every world."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from orchestration.cli.main import run as yendor
from orchestration.traces.reader import read_trace, run_traces, trace_files
from orchestration.traces.schema import LlmCall
from orchestration.traces.validate import validate_file
from tests.language_agents_support import tiny_model
from tests.processes import Command
from tests.text_worlds_support import make_games
from tests.trace_replay_support import GAMES, HOUSES

NETWORK = ["actors.envs=8", "actors.rollout_length=16", "learner.batch_size=128", "train.env_steps=2560"]
LANGUAGE = [
    "agent.engine=transformers", "agent.answer=command", "agent.max_new_tokens=6", "agent.context=4096",
    "agent.history=window", "learner.algorithm=rloo", "agent.group_size=2", "language.batch_episodes=4",
    "language.learning_rate=0.001", "actors.envs=4", "train.env_steps=200", "env.options.max_episode_steps=8",
]  # fmt: skip
RAY = ["actors.count=2", "actors.cpus=0.5"]
RUNS: dict[str, Sequence[str]] = {
    "nethack/Score": [*RAY, *NETWORK, "env.options.max_episode_steps=50"],
    "minihack/KeyRoom-S5": ["runtime=serial", *NETWORK, "env.options.max_episode_steps=40"],
    "minihack/Room-Random-5x5": ["runtime=serial", *LANGUAGE],
    "textworld/w2-o3-q4": [*RAY, *LANGUAGE, "env.tasks=2", "env.options.split=test", f"env.options.cache_dir={GAMES}"],
    "alfworld/pick_and_place_simple": [
        "runtime=serial", *LANGUAGE, "env.tasks=4", "env.options.split=unseen", "env.options.games=1",
        f"env.options.cache_dir={HOUSES}",
    ],
}  # fmt: skip
"""World and settings. Actors are processes of their own in one world of each kind of agent."""
CASES = [pytest.param(world, marks=pytest.mark.long if RAY[0] in RUNS[world] else pytest.mark.slow) for world in RUNS]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


def replayed(run: Path) -> list[dict[str, Any]]:
    """What `yendor trace replay` would say of each trace of a run, found by another process."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.trace_replay_support", "replay", str(run)],
        check=True, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE,
    )  # fmt: skip
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("env_id", CASES)
def test_what_the_actors_of_a_run_recorded_matches_in_another_process(tmp_path: Path, model: Path, env_id: str) -> None:
    keys, spoken = list(RUNS[env_id]), set(LANGUAGE) <= set(RUNS[env_id])
    if spoken:
        keys.append(f"agent.model={model}")
    if env_id.startswith("textworld"):
        make_games("w2-o3-q4", [0, 1], split="test")
    run = tmp_path / "run"
    base = [f"run.dir={tmp_path}", "run.name=run", f"env.id={env_id}", "reward.model=none", "trace.rate=1", "--plain"]
    if "runtime=serial" in keys:
        assert yendor(["train", *base, *keys]) == 0
    else:
        with Command("train", *base, *keys) as command:
            assert command.wait(600) == 0, command.text()
    results = replayed(run)
    assert [result["line"] for result in results if result["outcome"] != "MATCH"] == []
    assert sum(result["finished"] for result in results) >= 20
    assert {
        str(path): faults for path in (*trace_files(run), *run_traces(run)) if (faults := validate_file(path))
    } == {}
    traces = [read_trace(path) for path in trace_files(run)]
    actors = {trace.header.episode_id[: len("actor-00")] for trace in traces}
    assert actors == ({"actor-00", "actor-01"} if set(RAY) <= set(keys) else {"actor-00"})
    calls = [isinstance(event, LlmCall) for trace in traces for event in trace.events]
    assert sum(calls) == (sum(len(trace.steps) for trace in traces) if spoken else 0)
