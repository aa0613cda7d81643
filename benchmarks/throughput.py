"""Steps a second, waits, bytes and memory of training: the demo and `nethack/Score` with both networks."""

import json
from pathlib import Path

from benchmarks.runs import Measured, train

CASES = {
    "demo": ["demo"],
    "nethack/Score, fast": ["nethack_score", "agent.network=fast", "learner.batch_size=2048"],
    "nethack/Score, oni": ["nethack_score", "agent.network=oni", "learner.batch_size=2048"],
}


def main(folder: Path, seconds: float = 75.0) -> None:
    """Runs each case for `seconds` and prints a table; all figures go to `throughput.json`."""
    rows: dict[str, dict[str, object]] = {}
    for name, arguments in CASES.items():
        run = train(folder, name.replace("/", "-").replace(", ", "-"), *arguments, f"train.max_wall_s={seconds}")
        rows[name] = {"command": run.command, **_figures(run)}
        print(name, json.dumps(rows[name]), flush=True)
    (folder / "throughput.json").write_text(json.dumps(rows, indent=2))
    names = [k for k in next(iter(rows.values())) if k != "command"]
    print("\n| | " + " | ".join(rows) + " |\n|---|" + "---|" * len(rows))
    for figure in names:
        print(f"| {figure} | " + " | ".join(_shown(row[figure]) for row in rows.values()) + " |")
    for row in rows.values():
        print(row["command"])


def _figures(run: Measured) -> dict[str, float | None]:
    summary = run.summary
    return {
        "steps/s (median)": run.median("time", "steps_per_second"),
        "learner: training": run.share("learner/train"),
        "learner: waits": run.share("learner/wait"),
        "learner: rewards": run.share("learner/rewards"),
        "actor: environments": run.share("actor/env"),
        "actor: policy": run.share("actor/policy"),
        "actor: waits": run.share("actor/wait"),
        "policy lag (mean)": summary["policy_lag_mean"],
        "bytes a step on the wire": run.median("metrics", "rollout/bytes_per_step"),
        "captions": summary["captions_unique"],
        "labels": summary["captions_labelled"],
        "labels/s (best half minute)": max(line["time"].get("labels_per_second") or 0.0 for line in run.lines),
        "peak memory, MB, judge apart": run.peak_mb,
        "peak memory of the judge, MB": run.peak_judge_mb,
        "first step after, s": summary["first_step_s"],
    }


def _shown(value: object) -> str:
    return "-" if value is None else f"{value:,.3g}" if isinstance(value, float) and value < 10 else f"{value:,.0f}"
