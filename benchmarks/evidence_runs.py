"""Reward models side by side over seeds: runs, tables and plots that the evidence benchmarks share.

Runs go in the order seed, task, model, so that what is there after an interruption compares; a run that finished is not run
again. The JSON and a plot for each task are rewritten after each run.
"""

import argparse
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from benchmarks.plot import learning_curves
from benchmarks.runs import train

EXTRINSIC = "extrinsic"
"""The agent without intrinsic reward."""
MODELS = ("hash", "classification", "ranking", "counts", "rnd", "ellm")
# The bound on time is lifted: every run has the same number of steps however slow the machine is.
SHARED = ("train.max_wall_s=7200.0", "trace.rate=0")
CURVE_POINTS = 100
_BEGUN = 0.03
"""Share of the steps that plots leave out: the mean is of a handful of episodes, of those the short ones."""


@dataclass(frozen=True)
class Study:
    """What is compared."""

    stem: str
    """Of the names of its files."""
    preset: str
    tasks: Sequence[str]
    """Environment ids."""
    models: Sequence[str]
    """As `model_of` takes them; or of `variants`."""
    seeds: int
    steps: int
    """Environment steps of each run."""
    measure: str
    """`success` or `return`."""
    reward_free: bool = False
    more: Sequence[str] = ()
    """`MODEL:key=value`, for one model; `all:key=value`, for all."""
    variants: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])
    """What `yendor train` is given for each, where what is compared is not reward models."""


@dataclass(frozen=True)
class Result:
    """One finished run."""

    task: str
    model: str
    seed: int
    command: str
    env_steps: int
    wall_s: float
    success_last_tenth: float | None
    return_last_tenth: float | None
    labels: int
    accuracy: float | None
    """Of the reward model on labels that it was not trained on."""
    curve: list[tuple[float, float | None]]
    """The measure, of the last 100 episodes, against steps, thinned."""


def model_of(text: str) -> str:
    """`extrinsic`, a reward model, or a reward model and the number of labels that it may have: `classification@50`."""
    name, at, labels = text.partition("@")
    if name not in (EXTRINSIC, *MODELS) or (at and not (labels.isdecimal() and name != EXTRINSIC)):
        raise argparse.ArgumentTypeError(f"{text!r}: one of {', '.join((EXTRINSIC, *MODELS))}, or MODEL@LABELS")
    return text


def arguments_of(study: Study, model: str, task: str, seed: int) -> list[str]:
    """What `yendor train` is given for one run."""
    name, at, labels = model.partition("@")
    if model in study.variants:
        chosen = study.variants[model]
    else:
        chosen = ["reward.w_int=0"] if model == EXTRINSIC else [f"reward.model={name}"]
    return [
        study.preset, f"env.id={task}", f"run.seed={seed}", f"train.env_steps={study.steps}", *SHARED, *chosen,
        *([f"annotator.max_labels={labels}"] if at else []),
        *(["reward.w_ext=0"] if study.reward_free else []),
        *(key for name, _, key in (one.partition(":") for one in study.more) if name in (model, "all")),
    ]  # fmt: skip


def run_name(study: Study, task: str, model: str, seed: int) -> str:
    """Of a run, and of its file."""
    return f"{study.stem}-{task.partition('/')[2]}-{model.replace('@', '-labels=').replace('+', '-')}-{seed}"


def run(folder: Path, study: Study, model: str, task: str, seed: int) -> Result:
    """The result in the folder, or of a run made now."""
    name = run_name(study, task, model, seed)
    arguments = arguments_of(study, model, task, seed)
    kept = folder / f"{name}.json"
    if kept.is_file():
        saved: dict[str, Any] = json.loads(kept.read_text())
        if saved["command"] == " ".join(["yendor", "train", *arguments]):
            return Result(**{each.name: saved[each.name] for each in fields(Result)})
    measured = train(folder, name, *arguments, timeout_s=7500.0)
    summary = measured.summary
    lines = measured.lines
    thinned = [lines[i * len(lines) // CURVE_POINTS] for i in range(CURVE_POINTS)] if lines else []
    result = Result(
        task=task,
        model=model,
        seed=seed,
        command=measured.command,
        env_steps=summary["env_steps"],
        wall_s=summary["wall_s"],
        success_last_tenth=summary["success_last_tenth"],
        return_last_tenth=summary["return_last_tenth"],
        labels=summary["captions_labelled"],
        accuracy=summary["reward_model_accuracy"],
        curve=[(line["env_steps"], line["metrics"][f"episode/{study.measure}"]) for line in (*thinned, *lines[-1:])],
    )
    kept.write_text(json.dumps(asdict(result)))
    return result


def last(result: Result, measure: str) -> float | None:
    """The measure in the last tenth of the steps; None where no episode ended in it."""
    return result.return_last_tenth if measure == "return" else result.success_last_tenth


def table(results: Sequence[Result], measure: str) -> str:
    """The measure in the last tenth of the steps by task and model: each seed, and the mean."""
    rows = [
        f"| task | model | {measure} in the last tenth, each seed | mean | labels | wall, s |",
        "|---|---|---|---|---|---|",
    ]
    for task, model in dict.fromkeys((r.task, r.model) for r in results):
        same = [r for r in results if (r.task, r.model) == (task, model)]
        values = [last(r, measure) for r in same]
        known = [x for x in values if x is not None]
        each = ", ".join("none ended" if x is None else f"{x:.2f}" for x in values)
        mean = f"{statistics.mean(known):.2f}" if known else ""
        labels = ", ".join(str(r.labels) for r in same)
        wall = statistics.mean(r.wall_s for r in same)
        rows.append(f"| {task} | {model} | {each} | {mean} | {labels} | {wall:.0f} |")
    return "\n".join(rows)


def write(folder: Path, study: Study, results: Sequence[Result]) -> None:
    """The JSON of all results, and a plot for each task."""
    (folder / f"{study.stem}.json").write_text(json.dumps([asdict(r) for r in results], indent=1))
    for task in dict.fromkeys(r.task for r in results):
        kinds = {
            model: [
                [(x, y) for x, y in r.curve if x >= _BEGUN * study.steps]
                for r in results
                if (r.task, r.model) == (task, model)
            ]
            for model in dict.fromkeys(r.model for r in results if r.task == task)
        }
        highest = max((y or 0.0 for curves in kinds.values() for curve in curves for _, y in curve), default=1.0)
        title = f"{task}: {study.measure}, mean of the last 100 episodes"
        plot = learning_curves(kinds, title, top=1.0 if study.measure == "success" else _round_up(highest))
        (folder / f"{study.stem}-{task.partition('/')[2]}.svg").write_text(plot)


def _round_up(value: float) -> float:
    """The next number with one digit that is not 0; 1 for what is less."""
    if value <= 1.0:
        return 1.0
    unit = 10.0 ** math.floor(math.log10(value))
    return math.ceil(value / unit) * unit


def compare(folder: Path, study: Study) -> list[Result]:
    """Runs what is not there yet; prints each run's outcome, and a table at the end."""
    results: list[Result] = []
    for seed in range(study.seeds):
        for task in study.tasks:
            for model in study.models:
                results.append(run(folder, study, model, task, seed))
                print(f"{results[-1].command}: {last(results[-1], study.measure)} at the end", flush=True)
                write(folder, study, results)
    print(table(results, study.measure))
    return results
