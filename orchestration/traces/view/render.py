"""Writes the page, whole or not at all."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestration.errors import TraceError
from orchestration.files import write_atomically
from orchestration.rundir import RunDir
from orchestration.runs import current_summary
from orchestration.summary import LIVE
from orchestration.traces.complete import Late
from orchestration.traces.reader import Trace, read_trace, run_traces, trace_files
from orchestration.traces.schema import End
from orchestration.traces.view.document import Divergence, episode_document
from orchestration.traces.view.page import build_page, pack
from orchestration.traces.view.plain import plain

DEFAULT_LIMIT = 200
"""Episodes in one page, so that it stays a file that a browser opens at once."""

_LOOK_INTERVAL_S = 1.0
_RELOAD_INTERVAL_S = 5.0


@dataclass(frozen=True, slots=True)
class Page:
    """What was written."""

    path: Path
    episodes: int
    unreadable: tuple[str, ...]
    """Why, one line for each file that could not be read; the page says it too."""
    left_out: int
    """Older traces that are not in the page."""
    bytes: int


@dataclass(frozen=True, slots=True)
class _Entry:
    """An episode in the page: what the list says of it, and its packed tree."""

    row: dict[str, Any]
    block: str
    complaint: str | None
    """Why what belongs to it could not be read."""


class _Entries:
    """Packs traces, and each only once while its file does not change."""

    def __init__(self, divergences: Sequence[Divergence] = ()) -> None:
        self._divergences = divergences
        self._known: dict[Path, tuple[tuple[int, int], _Entry]] = {}

    def of(self, path: Path) -> _Entry:
        """Raises `TraceError` for a file that is no trace."""
        try:
            stat = path.stat()
        except OSError as error:
            raise TraceError(f"{path}: cannot be read: {error.strerror}") from error
        stamp = (stat.st_mtime_ns, stat.st_size)
        known = self._known.get(path)
        if known is None or known[0] != stamp:
            self._known[path] = known = (stamp, _load(path, self._divergences))
        return known[1]


def default_page(source: Path) -> Path:
    """Where the page of a run or trace goes: `trace.html` in a folder, beside a file `EPISODE.html`."""
    if source.is_dir():
        return source / "trace.html"
    return source.with_name(source.name.split(".jsonl")[0] + ".html")


def render(
    paths: Sequence[Path],
    out: Path,
    *,
    title: str | None = None,
    divergences: Sequence[Divergence] = (),
    limit: int = DEFAULT_LIMIT,
) -> Page:
    """Writes one HTML file of the traces `paths` to `out`, atomically; a `.json` is one in the survey's schema.

    Where a trace lies in a run, the page also has what the run said of it later (see `orchestration.traces.complete`).
    Of more than `limit` traces the newest are taken. A trace that cannot be read is told of in the page; raises
    `TraceError` where none can, where there is none, and where `out` cannot be written.
    """
    if not paths:
        raise TraceError("no traces to view; `yendor trace ls RUN` lists those of a run, `trace.rate` says how many")
    taken, left_out = _newest(paths, limit)
    entries, unreadable = _read(_Entries(divergences), taken)
    if not entries:
        raise TraceError(unreadable[0])
    return _write(out, title or _title(entries), entries, unreadable, left_out)


def render_traces(
    traces: Iterable[Trace], out: Path, *, title: str | None = None, divergences: Sequence[Divergence] = ()
) -> Page:
    """Writes one HTML file of traces in memory (imported ones, for example). Raises `TraceError` where there is none."""
    entries = [_entry(trace, divergences) for trace in traces]
    if not entries:
        raise TraceError("no traces to view")
    return _write(out, title or _title(entries), entries, (), 0)


def follow(
    run: Path,
    out: Path,
    *,
    limit: int = DEFAULT_LIMIT,
    look_s: float = _LOOK_INTERVAL_S,
    reload_s: float = _RELOAD_INTERVAL_S,
    on_page: Callable[[Page], None] = lambda _: None,
    going: Callable[[], bool] | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Page:
    """Rewrites `out` whenever an episode of `run` (a run's folder, or one of traces) finishes; ends with the run.

    The page loads itself again every `reload_s` seconds and keeps its place; the last one that is written no longer
    does. `on_page` is told of each. `going` says whether more may come: by default whether the run is live, for ever
    for a folder that is no run; then Ctrl-C ends it. Unfinished episodes are left out. What the judge says of an
    episode after it was put into the page is in the last one.
    """
    if not run.is_dir():
        raise TraceError(f"{run}: no such folder; a run or a folder of traces can be followed")
    more = going or (lambda: _is_live(run))
    entries, seen = _Entries(), list[Path]()

    def write(taken: Sequence[Path], left_out: int, *, last: bool) -> Page:
        found, unreadable = _read(_Entries() if last else entries, taken)
        page = _write(out, run.resolve().name, found, unreadable, left_out, None if last else reload_s)
        on_page(page)
        return page

    try:
        write(*_newest(seen, limit), last=False)
        # Asked before the files are listed: what the run finishes last is then in the last page.
        while more():
            taken, left_out = _newest(_finished(run), limit)
            if taken != seen:
                seen = taken
                write(taken, left_out, last=False)
            sleep(look_s)
    except KeyboardInterrupt:
        write(*_newest(_finished(run), limit), last=True)
        raise
    return write(*_newest(_finished(run), limit), last=True)


def _finished(run: Path) -> list[Path]:
    return [path for path in (*run_traces(run), *trace_files(run)) if path.suffix != ".part"]


def _is_live(run: Path) -> bool:
    folder = RunDir(run)
    return not folder.is_run() or current_summary(folder).status in LIVE


def _load(path: Path, divergences: Sequence[Divergence]) -> _Entry:
    if path.suffix == ".json":
        from orchestration.traces.export.importing import read_survey

        return _entry(read_survey(path), divergences)
    trace, complaint, untold = read_trace(path), None, None
    try:
        done = Late.beside(path.parent).complete(trace)
        trace, untold = done.trace, done.why
    except TraceError as error:
        # An episode is worth seeing without what came late.
        complaint = str(error)
    return _entry(trace, divergences, complaint, untold)


def _newest(paths: Sequence[Path], limit: int) -> tuple[list[Path], int]:
    """At most `limit` of the paths, in their order, and how many were left out."""
    if len(paths) <= limit:
        return list(paths), 0
    kept = set(sorted(paths, key=lambda path: path.stat().st_mtime_ns, reverse=True)[:limit])
    return [path for path in paths if path in kept], len(paths) - len(kept)


def _read(entries: _Entries, paths: Iterable[Path]) -> tuple[list[_Entry], tuple[str, ...]]:
    found: list[_Entry] = []
    unreadable: list[str] = []
    for path in paths:
        try:
            entry = entries.of(path)
        except TraceError as error:
            unreadable.append(str(error))
        else:
            found.append(entry)
            unreadable += [] if entry.complaint is None else [entry.complaint]
    return found, tuple(dict.fromkeys(unreadable))


def _entry(
    trace: Trace, divergences: Sequence[Divergence], complaint: str | None = None, untold: str | None = None
) -> _Entry:
    """`complaint`: why it is not complete; `untold`: why its rewards' components are not."""
    tree = episode_document(trace, divergences, untold)
    header, end = trace.header, trace.end
    row = {
        "episode": header.episode_id,
        "run": header.run,
        "env": header.env_id,
        "scope": header.scope,
        "policy": header.policy_version,
        "frames": len(tree["frames"]),
        "return": end.episode_return if end else None,
        "success": end.success if end else None,
        "error": end.error if end else None,
        "ending": _ending(end),
        "divergences": len(tree["divergences"]),
    }
    return _Entry(plain(row), pack(tree), complaint)


def _ending(end: End | None) -> str:
    if end is None:
        return "unfinished"
    return "error" if end.error else "terminated" if end.terminated else "truncated" if end.truncated else "ended"


def _title(entries: Sequence[_Entry]) -> str:
    runs = sorted({str(entry.row["run"]) for entry in entries})
    return entries[0].row["episode"] if len(entries) == 1 else ", ".join(runs)


def _write(
    out: Path,
    title: str,
    entries: Sequence[_Entry],
    unreadable: tuple[str, ...],
    left_out: int,
    reload_s: float | None = None,
) -> Page:
    index = {
        "title": title,
        "episodes": [entry.row for entry in entries],
        "unreadable": unreadable,
        "left_out": left_out,
        "reload_s": reload_s,
    }
    data = build_page(index, [entry.block for entry in entries])
    try:
        write_atomically(out, data, durable=False)
    except OSError as error:
        raise TraceError(f"{out}: cannot be written: {error.strerror}") from error
    return Page(out, len(entries), unreadable, left_out, len(data))
