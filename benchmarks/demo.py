"""The demo with and without intrinsic reward, side by side: does the language model's reward make the difference?"""

import json
import statistics
from pathlib import Path

from benchmarks.runs import train


def main(folder: Path, seeds: int = 3, steps: int | None = None) -> None:
    """Trains `seeds` runs of each kind, alternating, and prints a table; curves go to `demo.json`."""
    budget = [] if steps is None else [f"train.env_steps={steps}"]
    kinds = {"with LLM reward": [], "reward.w_int=0": ["reward.w_int=0"]}
    found: dict[str, list[dict[str, object]]] = {kind: [] for kind in kinds}
    for seed in range(seeds):
        for kind, extra in kinds.items():
            name = f"demo-{'w' if not extra else 'wo'}-{seed}"
            run = train(folder, name, "demo", f"run.seed={seed}", *budget, *extra)
            curve = [(line["env_steps"], line["metrics"]["episode/success"]) for line in run.lines]
            found[kind].append({"command": run.command, "summary": run.summary, "curve": curve, "peak_mb": run.peak_mb})
            print(f"{run.command}: success in the last tenth {run.summary['success_last_tenth']}", flush=True)
    (folder / "demo.json").write_text(json.dumps(found))
    print("\n| demo | success in the first tenth | in the last tenth (each seed) | mean | wall s | steps/s |")
    print("|---|---|---|---|---|---|")
    for kind, runs in found.items():
        summaries = [run["summary"] for run in runs]
        last = [s["success_last_tenth"] for s in summaries]  # type: ignore[index]
        first = [s["success_first_tenth"] or 0.0 for s in summaries]  # type: ignore[index]
        wall = [s["wall_s"] for s in summaries]  # type: ignore[index]
        rate = [s["env_steps"] / s["wall_s"] for s in summaries]  # type: ignore[index]
        print(
            f"| {kind} | {statistics.mean(first):.2f} | {', '.join(f'{x:.2f}' for x in last)} | "
            f"{statistics.mean(last):.2f} | {statistics.mean(wall):.0f} | {statistics.mean(rate):,.0f} |"
        )
