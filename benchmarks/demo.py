"""The demo with and without intrinsic reward, side by side: does the language model's reward make the difference?"""

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.plot import Curve, learning_curves
from benchmarks.runs import train

# The bound on time is lifted, so that every run has the same number of steps however slow the machine is.
KINDS = {
    "with the language model's reward": ["train.max_wall_s=3600.0"],
    "reward.w_int=0": ["reward.w_int=0", "train.max_wall_s=3600.0"],
}


@dataclass(frozen=True)
class Run:
    """One finished run."""

    command: str
    summary: dict[str, Any]
    curve: Curve


def read_run(folder: Path, command: str) -> Run:
    """What a finished run left in its folder."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    curve = [(line["env_steps"], line["metrics"]["episode/success"]) for line in lines]
    return Run(command, json.loads((folder / "summary.json").read_text()), curve)


def main(folder: Path, seeds: int = 3, *more: str) -> None:
    """Trains `seeds` runs of each kind, alternating, prints a table and draws `demo.svg`. `more`: keys for all runs."""
    found: dict[str, list[Run]] = {kind: [] for kind in KINDS}
    for seed in range(seeds):
        for number, (kind, extra) in enumerate(KINDS.items()):
            name = f"demo-{number}-{seed}"
            measured = train(folder, name, "demo", f"run.seed={seed}", *extra, *more)
            found[kind].append(read_run(folder / name, measured.command))
            print(f"{measured.command}: {measured.summary['success_last_tenth']} at the end", flush=True)
    print(table(found))
    (folder / "demo.svg").write_text(
        learning_curves(
            {k: [r.curve for r in runs] for k, runs in found.items()}, "success, mean of the last 100 episodes"
        )
    )


def table(found: dict[str, list[Run]]) -> str:
    """Success in the first and last tenth of the steps, by kind."""
    rows = [
        "| demo | first tenth, mean | last tenth, each seed | mean | wall, s | steps/s |",
        "|---|---|---|---|---|---|",
    ]
    for kind, runs in found.items():
        summaries = [run.summary for run in runs]
        last = [s["success_last_tenth"] or 0.0 for s in summaries]
        first = statistics.mean(s["success_first_tenth"] or 0.0 for s in summaries)
        wall = ", ".join(f"{s['wall_s']:.0f}" for s in summaries)
        rate = statistics.mean(s["env_steps"] / s["wall_s"] for s in summaries)
        each = ", ".join(f"{x:.2f}" for x in last)
        rows.append(f"| {kind} | {first:.2f} | {each} | {statistics.mean(last):.2f} | {wall} | {rate:,.0f} |")
    return "\n".join(rows)
