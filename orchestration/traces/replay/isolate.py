"""Replays in a process of its own, so that nothing that this one did or loaded has a say in what comes out."""

import multiprocessing
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from orchestration.errors import TraceError
from orchestration.traces.reader import read_trace
from orchestration.traces.replay.play import replay_trace, unreadable
from orchestration.traces.replay.verdict import Outcome, Verdict
from orchestration.traces.replay.worlds import clock_of


def replay(path: Path) -> Verdict:
    """Plays the episode in the trace file `path` again, in a fresh process, and compares.

    A file that is no trace, and a game that takes its process with it, are UNREPLAYABLE; nothing is raised for either.
    """
    try:
        header = read_trace(path).header
    except TraceError as error:
        return unreadable(str(path), error)
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_play, args=(str(path), theirs), name=f"replay of {header.episode_id}")
    process.start()
    theirs.close()
    try:
        answer: Any = ours.recv()
    except EOFError:
        process.join()
        code = process.exitcode or 0
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        reason = f"the process that played it died ({how})"
        return Verdict(
            Outcome.UNREPLAYABLE,
            str(path),
            header.episode_id,
            header.env_id,
            0,
            clock=clock_of(header),
            reason=reason,
        )
    finally:
        ours.close()
        if process.is_alive():
            process.join(5.0)
        if process.is_alive():
            process.kill()
            process.join()
    if isinstance(answer, BaseException):
        raise answer
    assert isinstance(answer, Verdict)
    return answer


def _play(path: str, answer: "Connection[Any, Any]") -> None:
    try:
        result: Verdict | Exception = replay_trace(read_trace(Path(path)))
    except Exception as error:  # raised again by the process that asked
        result = error
    answer.send(result)
    answer.close()
