"""Training, whatever the runtime: build it, run it, checkpoint it, say how it ended."""

import signal
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any

from orchestration.config import Config
from orchestration.errors import first_line
from orchestration.live import LiveView
from orchestration.rundir import RunDir
from orchestration.summary import Status, Summary

if TYPE_CHECKING:
    from orchestration.session import Session


def train(config: Config, rundir: RunDir, *, resume: bool, view: LiveView) -> Summary:
    """Runs `config` in an open run directory and returns its last summary.

    Ctrl-C (SIGINT, SIGTERM) ends it after a checkpoint with KeyboardInterrupt; a second one at once. Any other error
    is written into the summary and raised.
    """
    if config.runtime == "serial":
        return _train(config, rundir, resume=resume, view=view)
    from orchestration.cluster import connect, disconnect

    connect(config)
    try:
        return _train(config, rundir, resume=resume, view=view)
    finally:
        disconnect()


def _train(config: Config, rundir: RunDir, *, resume: bool, view: LiveView) -> Summary:
    from orchestration.session import Session

    state = _newest_state(config, rundir, view) if resume else None
    session = Session(config, rundir, view, resumed=None if state is None else state["session"])
    previous = {s: signal.signal(s, _stopper(session)) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        try:
            _run(session, state)
        except Exception:
            session.finish_uploads()
            raise
        session.finish_uploads()
    except KeyboardInterrupt:
        session.end(Status.INTERRUPTED)
        raise
    except BaseException as error:
        session.end(Status.FAILED, first_line(error))
        raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if session.stop_requested:
        session.end(Status.INTERRUPTED)
        raise KeyboardInterrupt
    return session.end(Status.DONE)


def _run(session: "Session", state: dict[str, Any] | None) -> None:
    """Builds the runtime, trains, writes the last checkpoint, and ends what was started whatever happens."""
    runtime = _runtime_of(session.config)(session.config, session, resumed=state)
    try:
        runtime.run()
        runtime.checkpoint()
    finally:
        runtime.close()


def _runtime_of(config: Config) -> type[Any]:
    """The class whose objects run `config`; loads nothing that others need."""
    if config.agent.model is not None:
        if config.runtime == "serial":
            from orchestration.language.serial import LanguageSerialRuntime

            return LanguageSerialRuntime
        from orchestration.language.ray_runtime import LanguageRayRuntime

        return LanguageRayRuntime
    if config.runtime == "serial":
        from orchestration.serial import SerialRuntime

        return SerialRuntime
    from orchestration.ray_runtime import RayRuntime

    return RayRuntime


def _newest_state(config: Config, rundir: RunDir, view: LiveView) -> dict[str, Any]:
    """The state to resume from, and under `checkpoint` the folder that it is from. Damaged ones are told of and put aside;
    what is newer at `checkpoint.url` is fetched first.

    Raises CheckpointError where there is none that is whole, and OffsiteError where it cannot be known what is at the URL.
    """
    from learner.checkpoint import CheckpointError, load_state, newest_sound_checkpoint

    if config.checkpoint.url is not None:
        from orchestration.offsite.resuming import catch_up
        from orchestration.offsite.runs import open_offsite

        catch_up(open_offsite(config.checkpoint.url, rundir.name), rundir, view.event)
    newest = newest_sound_checkpoint(rundir.checkpoints, lambda told: view.event(told, warning=True))
    if newest is None:
        raise CheckpointError(f"{rundir.path} has no checkpoint to resume from; start it again with --overwrite")
    return {**load_state(newest), "checkpoint": str(newest)}


def _stopper(session: "Session") -> Callable[[int, FrameType | None], None]:
    """Asks the loop to stop where it is whole; asked again, stops at once."""

    def stop(number: int, frame: FrameType | None) -> None:
        if session.stop_requested:
            raise KeyboardInterrupt
        session.stop_requested = True
        session.view.event("stopping after a checkpoint; Ctrl-C again stops at once")

    return stop
