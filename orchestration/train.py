"""Training, whatever the runtime: build it, run it, checkpoint it, say how it ended."""

import signal
from types import FrameType

from learner.checkpoint import CheckpointError, latest_checkpoint, load_state
from orchestration.config import Config
from orchestration.errors import first_line
from orchestration.live import LiveView
from orchestration.rundir import RunDir
from orchestration.session import Session
from orchestration.summary import Status, Summary


def train(config: Config, rundir: RunDir, *, resume: bool, view: LiveView) -> Summary:
    """Runs `config` in an open run directory and returns its last summary.

    Ctrl-C (SIGINT, SIGTERM) ends it after a checkpoint with KeyboardInterrupt; a second one at once. Any other error
    is written into the summary and raised.
    """
    state = None
    if resume:
        newest = latest_checkpoint(rundir.checkpoints)
        if newest is None:
            raise CheckpointError(f"{rundir.path} has no checkpoint to resume from; start it again with --overwrite")
        state = load_state(newest)
    session = Session(config, rundir, view, resumed=None if state is None else state["session"])
    previous = {s: signal.signal(s, _stopper(session)) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        if config.runtime == "serial":
            from orchestration.serial import SerialRuntime as Runtime
        else:
            from orchestration.ray_runtime import RayRuntime as Runtime
        runtime = Runtime(config, session, resumed=state)
        try:
            runtime.run()
            runtime.checkpoint()
        finally:
            runtime.close()
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


def _stopper(session: Session):
    """Asks the loop to stop where it is whole; asked again, stops at once."""

    def stop(number: int, frame: FrameType | None) -> None:
        if session.stop_requested:
            raise KeyboardInterrupt
        session.stop_requested = True
        session.view.event("stopping after a checkpoint; Ctrl-C again stops at once")

    return stop
