"""Which reward model makes an agent succeed on sparse MiniHack tasks? All of them side by side, over seeds.

Runs go in the order seed, task, model, so that what is there after an interruption compares; a run that finished is not run
again. `evidence_minihack.json` and a plot for each task are rewritten after each run.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.plot import learning_curves
from benchmarks.runs import train

EXTRINSIC = "extrinsic"
"""The agent without intrinsic reward."""
MODELS = (EXTRINSIC, "hash", "classification", "ranking", "counts", "rnd", "ellm")
TASKS = ("minihack/KeyRoom-S5", "minihack/KeyRoom-Dark-S5")
PRESET = "demo"
# The bound on time is lifted: every run has the same number of steps however slow the machine is.
SHARED = ("train.max_wall_s=7200.0", "trace.rate=0")
CURVE_POINTS = 100


@dataclass(frozen=True)
class Result:
    """One finished run."""

    task: str
    model: str
    seed: int
    reward_free: bool
    command: str
    env_steps: int
    wall_s: float
    success_last_tenth: float | None
    return_last_tenth: float | None
    labels: int
    accuracy: float | None
    """Of the reward model on labels that it was not trained on."""
    curve: list[tuple[float, float | None]]
    """Success of the last 100 episodes against steps, thinned."""


def arguments_of(model: str, task: str, seed: int, steps: int, reward_free: bool, extra: Sequence[str]) -> list[str]:
    """What `yendor train` is given for one run."""
    chosen = ["reward.w_int=0"] if model == EXTRINSIC else [f"reward.model={model}"]
    free = ["reward.w_ext=0"] if reward_free else []
    return [
        PRESET, f"env.id={task}", f"run.seed={seed}", f"train.env_steps={steps}", *SHARED, *chosen, *free,
        *(key for name, _, key in (one.partition(":") for one in extra) if name in (model, "all")),
    ]  # fmt: skip


def run(folder: Path, name: str, model: str, task: str, seed: int, reward_free: bool, arguments: list[str]) -> Result:
    """The result in the folder, or of a run made now."""
    kept = folder / f"{name}.json"
    if kept.is_file():
        saved: dict[str, Any] = json.loads(kept.read_text())
        if saved["command"] == " ".join(["yendor", "train", *arguments]):
            return Result(**saved)
    measured = train(folder, name, *arguments, timeout_s=7500.0)
    summary = measured.summary
    lines = measured.lines
    thinned = [lines[i * len(lines) // CURVE_POINTS] for i in range(CURVE_POINTS)] if lines else []
    result = Result(
        task=task,
        model=model,
        seed=seed,
        reward_free=reward_free,
        command=measured.command,
        env_steps=summary["env_steps"],
        wall_s=summary["wall_s"],
        success_last_tenth=summary["success_last_tenth"],
        return_last_tenth=summary["return_last_tenth"],
        labels=summary["captions_labelled"],
        accuracy=summary["reward_model_accuracy"],
        curve=[(line["env_steps"], line["metrics"]["episode/success"]) for line in (*thinned, *lines[-1:])],
    )
    kept.write_text(json.dumps(asdict(result)))
    return result


def table(results: Sequence[Result]) -> str:
    """Success in the last tenth of the steps by task and model: each seed, and the mean."""
    rows = [
        "| task | model | success in the last tenth, each seed | mean | labels | wall, s |",
        "|---|---|---|---|---|---|",
    ]
    for task, model in dict.fromkeys((r.task, r.model) for r in results):
        same = [r for r in results if (r.task, r.model) == (task, model)]
        last = [r.success_last_tenth or 0.0 for r in same]
        each = ", ".join(f"{x:.2f}" for x in last)
        labels = ", ".join(str(r.labels) for r in same)
        wall = statistics.mean(r.wall_s for r in same)
        rows.append(f"| {task} | {model} | {each} | {statistics.mean(last):.2f} | {labels} | {wall:.0f} |")
    return "\n".join(rows)


def write(folder: Path, results: Sequence[Result], stem: str) -> None:
    """The JSON of all results, and a plot for each task."""
    (folder / f"{stem}.json").write_text(json.dumps([asdict(r) for r in results], indent=1))
    for task in dict.fromkeys(r.task for r in results):
        kinds = {
            model: [r.curve for r in results if (r.task, r.model) == (task, model)]
            for model in dict.fromkeys(r.model for r in results if r.task == task)
        }
        title = f"{task}: success, mean of the last 100 episodes"
        (folder / f"{stem}-{task.partition('/')[2]}.svg").write_text(learning_curves(kinds, title))


def main(folder: Path, *options: str) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks evidence_minihack", description=__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS[:-1])
    parser.add_argument("--tasks", nargs="+", default=TASKS, help="environment ids")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=700_000, help="environment steps of each run")
    parser.add_argument("--reward-free", action="store_true", help="w_ext=0: the intrinsic reward alone")
    parser.add_argument("--set", nargs="*", default=[], metavar="MODEL:key=value", help="`all:` for all models")
    chosen = parser.parse_args(options)
    models = [m for m in chosen.models if not (chosen.reward_free and m == EXTRINSIC)]
    stem = "evidence_minihack" + ("-reward_free" if chosen.reward_free else "")
    results: list[Result] = []
    for seed in range(chosen.seeds):
        for task in chosen.tasks:
            for model in models:
                name = f"{stem}-{task.partition('/')[2]}-{model}-{seed}"
                arguments = arguments_of(model, task, seed, chosen.steps, chosen.reward_free, chosen.set)
                results.append(run(folder, name, model, task, seed, chosen.reward_free, arguments))
                print(f"{results[-1].command}: {results[-1].success_last_tenth} at the end", flush=True)
                write(folder, results, stem)
    print(table(results))
