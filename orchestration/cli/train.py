"""`yendor train` and `yendor eval`."""

import dataclasses
import os
import shlex
import signal
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestration.errors import ConfigError, UsageError, first_line

if TYPE_CHECKING:
    from orchestration.config import Config
    from orchestration.evaluate import Evaluation
    from orchestration.live import LiveView
    from orchestration.rundir import RunDir
    from orchestration.summary import Status, Summary

Arguments = Annotated[
    list[str] | None,
    typer.Argument(metavar="[PRESET] [KEY=VALUE]...", show_default=False, help="`yendor config show`."),
]


def add_to(app: typer.Typer) -> None:
    """Adds the commands of this module."""
    app.command("train")(train)
    app.command("eval")(evaluate)


def split_arguments(arguments: list[str] | None) -> tuple[str | None, list[str]]:
    """`[PRESET] [KEY=VALUE]...` as preset and overrides. Raises `UsageError` for a second preset."""
    words = arguments or []
    presets = [word for word in words if "=" not in word]
    if len(presets) > 1:
        raise UsageError(f"{presets[1]}: expected key=value (the preset is {presets[0]})")
    return (presets[0] if presets else None), [word for word in words if "=" in word]


def train(
    arguments: Arguments = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run from its newest checkpoint.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Start anew where a run exists (moved to RUN_DIR/.replaced).")
    ] = False,
    plain: Annotated[bool, typer.Option("--plain", help="Lines instead of the live view.")] = False,
) -> None:
    """Train an agent, here or on the Ray cluster that RAY_ADDRESS names."""
    if resume and overwrite:
        raise UsageError("--resume and --overwrite exclude each other")
    # A background job of a shell has SIGINT ignored, and SIGTERM would end the process without a checkpoint.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    preset, overrides = split_arguments(arguments)

    from orchestration.live import LiveView, final_summary
    from orchestration.preflight import preflight
    from orchestration.rundir import RunDir

    view = LiveView(plain=plain or None)

    def warn(message: str) -> None:
        view.event(message, warning=True)

    config = _config(preset, overrides, view, resume=resume)
    preflight(config, warn, fresh=not (resume or overwrite))
    path = Path(config.run.dir) / config.run.name
    with RunDir(path).open_for_training(config, resume=resume, overwrite=overwrite) as rundir:
        view.log_to(rundir.logs / "events.log")
        if overwrite and config.checkpoint.url is not None:
            from orchestration.offsite.resuming import make_vacant
            from orchestration.offsite.runs import open_offsite

            make_vacant(open_offsite(config.checkpoint.url, config.run.name))
        summary = _train(config, rundir, view, resume=resume)
    handle = config.run.name if config.run.dir == "runs" else str(path)
    again = _resume_command(preset, config)
    view.console.print(final_summary(summary, os.path.relpath(path), handle, again))
    if summary.status == "interrupted":
        raise typer.Exit(130)


def _config(preset: str | None, overrides: list[str], view: "LiveView", *, resume: bool) -> "Config":
    from orchestration.configuration import load_config, resume_config

    config = load_config(preset, overrides)
    path = Path(config.run.dir) / config.run.name / "config.yaml"
    if not resume:
        return config
    if not path.is_file():
        url = config.checkpoint.url
        if url is None:
            raise ConfigError(f"{path.parent}: no run to resume; leave out --resume to start one")
        from orchestration.offsite.resuming import fetch_config
        from orchestration.offsite.runs import open_offsite

        fetch_config(open_offsite(url, config.run.name), path.parent, view.event)
    # The run keeps what it was started with, whatever has become of the preset since.
    return resume_config(path, overrides)


def _resume_command(preset: str | None, config: "Config") -> str:
    words = ["yendor", "train", *([preset] if preset else [])]
    default = Path(preset).stem if preset else "train"
    if config.run.name != default:
        words.append(f"run.name={config.run.name}")
    if config.run.dir != "runs":
        words.append(f"run.dir={config.run.dir}")
    return shlex.join([*words, "--resume"])


def _train(config: "Config", rundir: "RunDir", view: "LiveView", *, resume: bool) -> "Summary":
    """Trains, and sees to it that `summary.json` says how it ended, whatever ended it."""
    from orchestration.summary import Status

    try:
        with view:
            from orchestration.train import train as run_training

            return run_training(config, rundir, resume=resume, view=view)
    except KeyboardInterrupt:
        return _ended(config, rundir, Status.INTERRUPTED, None)
    except Exception as error:
        report = rundir.logs / "error.txt"
        report.write_text("".join(traceback.format_exception(error)))
        _ended(config, rundir, Status.FAILED, first_line(error))
        raise


def _ended(config: "Config", rundir: "RunDir", status: "Status", error: str | None) -> "Summary":
    """The last summary, in which a run that says that it goes is made to say how it ended."""
    from orchestration.metrics import write_summary
    from orchestration.summary import LIVE, Summary, read_summary

    known = read_summary(rundir.summary) or Summary(rundir.name, config.env.id, runtime=config.runtime)
    if known.status not in LIVE:
        return known
    summary = dataclasses.replace(known, status=status, error=error, updated=time.time())
    write_summary(rundir.summary, summary, durable=True)
    return summary


def evaluate(
    target: Annotated[str, typer.Argument(metavar="RUN|CHECKPOINT", help="Name or folder of a run, or a checkpoint.")],
    episodes: Annotated[int, typer.Option(min=1, help="Episodes to play.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Seeds environments and actions.")] = 1,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Play in so many processes; default: one for each processor.")
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="Of a language model's world; default: the one that is held out. Of training's own, the games "
            "beyond env.tasks are played."
        ),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, help="Of a language model's sampling; default: as in training; 0: greedy.")
    ] = None,
    root: Annotated[Path, typer.Option("--dir", help="Where runs lie.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Play episodes with a trained policy, without learning, and report what they brought.

    Training never plays these episodes, whatever its seed; the same seed gives the same ones for any policy.
    """
    from orchestration.cli.output import console, print_json, progress_bars, table
    from orchestration.evaluate import evaluate as run_evaluation
    from orchestration.rundir import RunDir, find_run

    folder = Path(target)
    if not folder.is_dir() or RunDir(folder).is_run() or (root / target).is_dir():
        folder = find_run(target, root).path
    with progress_bars() as progress:
        result = run_evaluation(
            folder,
            episodes=episodes,
            seed=seed,
            processes=processes,
            split=split,
            temperature=temperature,
            progress=progress,
        )
    if as_json:
        print_json(result)
    else:
        console().print(table(("", ""), _evaluation_rows(result)), markup=False)


def _evaluation_rows(result: "Evaluation") -> list[tuple[str, str]]:
    success = "-"
    if result.success_rate is not None:
        success = f"{result.success_rate:.3f} (95 %: {result.success_low:.3f} to {result.success_high:.3f})"
    return [
        ("environment", result.env),
        ("checkpoint", result.checkpoint),
        ("episodes", f"{result.episodes:,} (seed {result.seed})"),
        ("success", success),
        ("return", f"{result.return_mean:,.3f} ± {result.return_interval:,.3f} (95 %)"),
        ("length", f"{result.length_mean:,.1f} steps"),
        *((name, f"{value:,.3f} ± {result.metric_intervals[name]:,.3f}") for name, value in result.metrics.items()),
    ]
