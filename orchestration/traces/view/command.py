"""What `yendor trace view` does, so that the command line has only to parse."""

import webbrowser
from collections.abc import Sequence
from pathlib import Path

from orchestration.cli.output import console
from orchestration.errors import TraceError, UsageError
from orchestration.rundir import find_run
from orchestration.traces.reader import run_traces, trace_files
from orchestration.traces.view.document import Divergence
from orchestration.traces.view.render import DEFAULT_LIMIT, Page, default_page, follow, render


def run_view(
    targets: Sequence[str],
    *,
    root: Path = Path("runs"),
    out: Path | None = None,
    following: bool = False,
    open_it: bool = False,
    limit: int | None = None,
    divergences: Sequence[Divergence] = (),
) -> Path:
    """Writes the page of runs, folders and files, says where it is and returns its path.

    A target is a file (a trace, or a `.json` in the survey's schema), a folder of traces, or the name or folder of a run
    below `root`. `out` is by default `trace.html` in the run, or beside the file. `following` takes one run or folder
    and goes on until the run ends or Ctrl-C. `open_it` shows the page in the user's browser. Raises `UsageError`,
    `RunDirError` or `TraceError`.
    """
    limit = limit or DEFAULT_LIMIT
    if not targets:
        raise UsageError("name a run, a folder of traces or a trace; `yendor runs` lists the runs")
    sources = [_source(target, root) for target in targets]
    page = out or default_page(sources[0])
    shown = False

    def tell(written: Page) -> None:
        nonlocal shown
        _print(written)
        if open_it and not shown:
            shown = webbrowser.open(written.path.resolve().as_uri())

    if following:
        if len(sources) != 1 or not sources[0].is_dir():
            raise UsageError("--follow takes one run or folder of traces")
        follow(sources[0], page, limit=limit, on_page=tell)
        return page
    tell(render(_files(sources), page, limit=limit, divergences=divergences))
    return page


def _source(target: str, root: Path) -> Path:
    path = Path(target)
    return path if path.exists() else find_run(target, root).path


def _files(sources: Sequence[Path]) -> list[Path]:
    files: list[Path] = []
    for source in sources:
        files += [*run_traces(source), *trace_files(source)] if source.is_dir() else [source]
    if not files:
        raise TraceError(f"{sources[0]}: no traces in it; `trace.rate` says how many episodes a run records")
    return files


def _print(page: Page) -> None:
    out = console()
    left_out = f", {page.left_out:,} older left out" if page.left_out else ""
    noun = "trace" if page.episodes == 1 else "traces"
    out.print(f"{page.path}: {page.episodes:,} {noun}{left_out}", markup=False, soft_wrap=True)
    for why in page.unreadable:
        out.print(f"left out: {why}", markup=False, soft_wrap=True)
