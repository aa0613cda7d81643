"""Replays and forks in a process of its own, so that nothing that this one did or loaded has a say in what comes out."""

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

from orchestration.errors import TraceError
from orchestration.traces.reader import read_trace
from orchestration.traces.replay.play import replay_trace, unreadable
from orchestration.traces.replay.verdict import Forked, Outcome, UnreplayableError, Verdict
from orchestration.traces.replay.worlds import clock_of
from orchestration.traces.schema import Header

T = TypeVar("T")


def replay(path: Path) -> Verdict:
    """Plays the episode in the trace file `path` again, in a fresh process, and compares.

    A file that is no trace, and a game that takes its process with it, are UNREPLAYABLE; nothing is raised for either.
    """
    try:
        header = read_trace(path).header
    except TraceError as error:
        return unreadable(str(path), error)
    try:
        return _aside(f"replay of {header.episode_id}", _replay, path)
    except UnreplayableError as error:
        return _unreplayable(path, header, error)


def fork_aside(path: Path, at: int, policy: str, *, seed: int = 0, folder: Path | None = None) -> Forked:
    """`fork` of the trace file `path`, in a fresh process. Raises what that raises, and `TraceError` for a file that is no
    trace; a game that takes its process with it is UNREPLAYABLE."""
    header = read_trace(path).header
    try:
        return _aside(f"fork of {header.episode_id}", _fork, path, at, policy, seed, folder)
    except UnreplayableError as error:
        return Forked(_unreplayable(path, header, error), at, policy, None)


def _replay(path: Path) -> Verdict:
    return replay_trace(read_trace(path))


def _fork(path: Path, at: int, policy: str, seed: int, folder: Path | None) -> Forked:
    from orchestration.traces.replay.fork import fork

    return fork(read_trace(path), at, policy, seed=seed, folder=folder)


def _unreplayable(path: Path, header: Header, why: UnreplayableError) -> Verdict:
    return Verdict(
        Outcome.UNREPLAYABLE, str(path), header.episode_id, header.env_id, 0, clock=clock_of(header), reason=str(why)
    )


def _aside(name: str, work: Callable[..., T], *arguments: Any) -> T:
    """What `work(*arguments)` returns or raises in a fresh process. Raises `UnreplayableError` where the process dies."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(work, arguments, theirs), name=name)
    process.start()
    theirs.close()
    try:
        answer: Any = ours.recv()
    except EOFError as error:
        process.join()
        code = process.exitcode or 0
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        raise UnreplayableError(f"the process that played it died ({how})") from error
    finally:
        ours.close()
        if process.is_alive():
            process.join(5.0)
        if process.is_alive():
            process.kill()
            process.join()
    if isinstance(answer, BaseException):
        raise answer
    return answer


def _answer(work: Callable[..., Any], arguments: tuple[Any, ...], answer: "Connection[Any, Any]") -> None:
    try:
        result = work(*arguments)
    except Exception as error:  # raised again by the process that asked
        result = error
    answer.send(result)
    answer.close()
