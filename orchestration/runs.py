"""Runs seen from outside: how they stand, and asking one to end."""

import dataclasses
import signal
import time
from pathlib import Path

import psutil

from orchestration.configuration import read_config
from orchestration.errors import RunDirError
from orchestration.rundir import RunDir, list_runs
from orchestration.summary import LIVE, Status, Summary, read_summary


def current_summary(run: RunDir) -> Summary:
    """How `run` stands. One that says that it goes while its process is gone has `Status.DIED`.

    A run on another machine is believed.
    """
    summary = read_summary(run.summary)
    if summary is None:
        config = read_config(run.config)
        summary = Summary(run.name, config.env.id, runtime=config.runtime, target_env_steps=config.train.env_steps)
    trainer = run.trainer()
    gone = trainer is None or (trainer.is_here() and trainer.process() is None)
    return dataclasses.replace(summary, status=Status.DIED) if summary.status in LIVE and gone else summary


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
