"""Runs seen from outside: how they stand, and asking one to end."""

import dataclasses
import signal
import time
from pathlib import Path

import psutil

from orchestration.configuration import read_config
from orchestration.errors import RunDirError, UsageError
from orchestration.rundir import RunDir, list_runs
from orchestration.scaling import ScaleWish
from orchestration.summary import LIVE, Status, Summary, read_summary

_SILENT_S = 900.0


def current_summary(run: RunDir) -> Summary:
    """How `run` stands. One that says that it goes while its process is gone has `Status.DIED`.

    A run on another machine is believed as long as it writes its summary: where it has written none for a quarter of an hour,
    its machine is taken for lost, and `error` says so.
    """
    summary = read_summary(run.summary)
    if summary is None:
        config = read_config(run.config)
        summary = Summary(run.name, config.env.id, runtime=config.runtime, target_env_steps=config.train.env_steps)
    trainer = run.trainer()
    if summary.status not in LIVE:
        return summary
    if trainer is None or trainer.is_here():
        gone = trainer is None or trainer.process() is None
        return dataclasses.replace(summary, status=Status.DIED) if gone else summary
    # One that goes on again still has the summary of the process before.
    silence = time.time() - max(summary.updated, trainer.created)
    patience = max(_SILENT_S, 3 * read_config(run.config).log.interval_s)
    # A run that begins may be making games and models for longer.
    if summary.status is not Status.RUNNING or silence < patience:
        return summary
    error = f"nothing was heard of {trainer.host} for {silence / 60:.0f} minutes; where it is lost, --resume goes on"
    return dataclasses.replace(summary, status=Status.DIED, error=error)


def current_summaries(root: Path) -> list[Summary]:
    """How all runs below `root` stand, the one updated last first."""
    return sorted((current_summary(run) for run in list_runs(root)), key=lambda summary: -summary.updated)


@dataclasses.dataclass(frozen=True, slots=True)
class Stopped:
    """What became of a request to stop."""

    run: str
    was_running: bool
    status: Status
    env_steps: int
    waited_s: float


def stop(run: RunDir, wait_s: float) -> Stopped:
    """Asks the process that trains in `run` to checkpoint and end, and waits for it.

    Raises `RunDirError` where it trains on another machine, may not be signalled, or has not ended after `wait_s`.
    """
    trainer = run.trainer()
    if trainer is not None and not trainer.is_here() and current_summary(run).status in LIVE:
        raise RunDirError(f"{run.name}: trains on {trainer.host}, not here; run `yendor stop {run.name}` there")
    process = trainer.process() if trainer is not None else None
    began = time.monotonic()
    if process is not None:
        try:
            process.send_signal(signal.SIGINT)
            process.wait(timeout=wait_s)
        except psutil.TimeoutExpired as error:
            raise RunDirError(
                f"{run.name}: process {process.pid} still runs after {wait_s:g} s; it ends at its next safe point, "
                "see `yendor status`"
            ) from error
        except psutil.AccessDenied as error:
            raise RunDirError(f"{run.name}: process {process.pid} belongs to somebody else") from error
    summary = current_summary(run)
    return Stopped(run.name, process is not None, summary.status, summary.env_steps, time.monotonic() - began)


@dataclasses.dataclass(frozen=True, slots=True)
class Scaled:
    """What became of a request for other actors."""

    run: str
    before: int
    actors: int
    """As the run counts them: those that wait for a processor included."""
    waited_s: float


def scale(run: RunDir, actors: int, wait_s: float) -> Scaled:
    """Wishes for `actors` rollout actors in a run that goes, and waits until it has them.

    Raises `UsageError` for a run that cannot be scaled, `RunDirError` where it does not go here or has not
    heard of it after `wait_s`.
    """
    config, trainer, before = read_config(run.config), run.trainer(), current_summary(run)
    if config.runtime == "serial":
        raise UsageError(f"{run.name}: runtime=serial has no actors to scale; train it with runtime=ray")
    if trainer is not None and not trainer.is_here() and before.status in LIVE:
        raise RunDirError(f"{run.name}: trains on {trainer.host}, not here; run `yendor scale` there")
    if before.status not in LIVE:
        raise RunDirError(f"{run.name}: does not run ({before.status}); actors.count={actors} is for when it does")
    began = time.monotonic()
    ScaleWish(run).make(actors)
    while (summary := current_summary(run)).actors != actors and summary.status in LIVE:
        if time.monotonic() - began > wait_s:
            raise RunDirError(f"{run.name}: has {summary.actors} actors after {wait_s:g} s, not {actors}; see its log")
        time.sleep(0.1)
    return Scaled(run.name, before.actors, summary.actors, time.monotonic() - began)
