"""How quickly the index of a run answers: `yendor trace ls` of, by default, 100,000 traced episodes."""

import argparse
import json
import random
import resource
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.startup import seconds
from orchestration.traces.files import TraceFile
from orchestration.traces.index import FILE, Index, load_index, table_of, write_index
from orchestration.traces.schema import SCHEMA, SUFFIX, End, EnvReset, Header

WHERE, SORT = "success and length < 50", "return"
RUNNING = 64
"""Episodes that one actor plays at once."""
SHOWN = 100
"""Rows that the command's table has."""


@dataclass(frozen=True)
class Asked:
    """Seconds of each time."""

    episodes: int
    found: int
    """Episodes that the question fits."""
    index_bytes: int
    python_s: list[float]
    """A process of Python that does nothing."""
    help_s: list[float]
    """`yendor trace ls --help`: the same command without its work."""
    command_s: list[float]
    """`yendor trace ls DIR --where ... --sort ...`, from its start to its end."""
    command_cpu_s: list[float]
    """Seconds of a processor that it takes: what it would last on a machine that does nothing else."""
    running_s: list[float]
    """The same where the run goes on: one trace more has finished, and some are being written."""
    load_s: list[float]
    """In a process that runs: the index brought up to date with the folder, and read."""
    select_s: list[float]
    """The question, the order, and the rows that are shown."""


def main(folder: Path, *options: str) -> None:
    """Prints medians and spread and writes `trace_index.json`. `options` as on the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks trace_index", description=__doc__)
    parser.add_argument("--episodes", type=int, default=100_000, help="in the index (default 100,000)")
    parser.add_argument("--repeats", type=int, default=7, help="of everything (default 7)")
    given = parser.parse_args(options)
    traces = folder / "trace_index" / "traces"
    make_traces(traces, given.episodes)
    asked = ask(traces, given.episodes, given.repeats)
    (folder / "trace_index.json").write_text(json.dumps(asdict(asked), indent=2))
    print(f"{asked.episodes:,} episodes, index of {asked.index_bytes / 1e6:.1f} MB, {asked.found:,} found")
    print("| | median, s | lowest to highest |\n|---|---|---|")
    for name, times in (
        ("`python -c pass`", asked.python_s),
        ("`yendor trace ls --help`", asked.help_s),
        (f'`yendor trace ls RUN --where "{WHERE}" --sort {SORT}`', asked.command_s),
        ("of it: on a processor", asked.command_cpu_s),
        (f"the same while {RUNNING} episodes are written and one more has finished", asked.running_s),
        ("of it: the index read", asked.load_s),
        ("of it: question, order, rows", asked.select_s),
    ):
        print(f"| {name} | {statistics.median(times):.2f} | {min(times):.2f} to {max(times):.2f} |")


def ask(traces: Path, episodes: int, repeats: int) -> Asked:
    """Each in turn, so that what else the machine does falls on all of them. The caches are warm: a first time is not
    counted."""
    command = [sys.executable, "-m", "orchestration.cli.main", "trace", "ls"]
    question = [*command, str(traces), "--where", WHERE, "--sort", SORT]
    times: dict[str, list[float]] = {
        name: [] for name in ("python", "help", "command", "cpu", "running", "load", "select")
    }
    found = 0
    for number in range(repeats + 1):
        measured = {
            "python": seconds([sys.executable, "-c", "pass"]),
            "help": seconds([*command, "--help"]),
        }
        before = children_cpu_s()
        measured["command"] = seconds(question)
        measured["cpu"] = children_cpu_s() - before
        began = time.perf_counter()
        index = load_index(traces)
        measured["load"] = time.perf_counter() - began
        began = time.perf_counter()
        chosen = index.select(WHERE, SORT)
        index.rows(chosen[:SHOWN])
        measured["select"] = time.perf_counter() - began
        found = len(chosen)
        went_on = go_on(traces, number)
        measured["running"] = seconds(question)
        for path in went_on:
            path.unlink()
        load_index(traces)
        for name, each in measured.items() if number else ():
            times[name].append(each)
    size = (traces / FILE).stat().st_size
    return Asked(
        episodes, found, size, times["python"], times["help"], times["command"], times["cpu"], times["running"],
        times["load"], times["select"],
    )  # fmt: skip


def children_cpu_s() -> float:
    """Of all processes that this one has waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def go_on(traces: Path, number: int) -> list[Path]:
    """One more trace that has finished, and others that are being written."""
    paths: list[Path] = []
    for at in range(RUNNING + 1):
        name = f"actor-99-env{at:03d}-{number:06d}"
        header = Header(
            schema=SCHEMA, episode_id=name, run="nethack_score", env_id="nethack/Score", env_options={}, action_names=("north",),
            seeds={"core": "1"}, policy_version=0, versions={}, code_revision=None, clock="unpinned", recorded_at=1.7e9,
            count_exponent=None,
        )  # fmt: skip
        file = TraceFile(traces, name)
        file.write(header)
        file.write(
            EnvReset(id="e0", seq=0, t=0.0, agent="actor-99", parents=(), observation_hash="00", screen="@" * 1000)
        )
        if at:
            file.abandon()
            paths.append(file.final.with_name(f"{file.final.name}.part"))
            continue
        file.write(
            End(
                t=0.0, events=1, length=0, episode_return=0.0, terminated=True, truncated=False, success=False, metrics={},
                error=None,
            )
        )  # fmt: skip
        file.flush()
        file.complete()
        paths.append(file.final)
    return paths


def make_traces(traces: Path, episodes: int) -> None:
    """A folder with the names of traces and their index. What is in a trace is not read again once it is in the index, so
    the files are empty."""
    draw = random.Random(0)
    traces.mkdir(parents=True, exist_ok=True)
    rows = [episode(number, draw) for number in range(episodes)]
    for row in rows:
        (traces / row["file"]).touch()
    write_index(traces / FILE, Index(table_of(rows)))


def episode(number: int, draw: random.Random) -> dict[str, Any]:
    """The row of an episode, with all that those of a run in NetHack have."""
    success = draw.random() < 0.2
    name = f"actor-{number % 16:02d}-env{number // 16 % 64:03d}-{number // 1024:06d}"
    earned = draw.gauss(50.0, 30.0)
    return {
        "episode_id": name, "run": "nethack_score", "env_id": "nethack/Score", "recorded_at": 1.7e9 + number,
        "seconds": draw.expovariate(0.1), "complete": True, "length": draw.randrange(1, 500), "episode_return": earned,
        "success": success, "terminated": True, "truncated": False, "error": None, "kept": "rate",
        "policy_version": number // 100, "reward_model_version": number // 1000, "events": 1000, "forked_from": None,
        "bytes": draw.randrange(10_000, 50_000), "file": f"{name}{SUFFIX}", "component_environment": earned / 10,
        "component_reward_model": draw.random(), "metric_depth": float(draw.randrange(1, 9)),
        "metric_scout": draw.gauss(500, 100), "cost_wall_clock_s": draw.expovariate(0.1),
    }  # fmt: skip
