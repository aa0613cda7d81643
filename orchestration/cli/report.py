"""`yendor report`."""

from pathlib import Path
from typing import Annotated

import typer


def add_to(app: typer.Typer) -> None:
    """Adds the commands of this module."""
    app.command("report")(report)


def report(
    names: Annotated[list[str], typer.Argument(metavar="RUN...", help="Names or folders of runs.")],
    out: Annotated[Path, typer.Option("--out", help="The page.")] = Path("report.html"),
    root: Annotated[Path, typer.Option("--dir", help="Where runs lie.")] = Path("runs"),
) -> None:
    """Write one HTML page about runs: curves, rewards, labels, judge, captions, speed.

    Runs that differ in nothing but their seed are shown as one line with a band; others are compared.
    """
    from orchestration.cli.output import console
    from orchestration.errors import YendorError
    from orchestration.files import write_atomically
    from orchestration.report.data import group, load
    from orchestration.report.page import render
    from orchestration.rundir import find_run

    runs = {found.path: found for found in (find_run(name, root) for name in names)}
    groups = group(load(run) for run in runs.values())
    page = render(groups).encode("utf-8", "replace")
    try:
        write_atomically(out, page)
    except OSError as error:
        raise YendorError(f"{out}: cannot be written: {error.strerror}") from error
    several = f", {len(groups)} configurations" if len(groups) > 1 else ""
    console().print(f"{len(runs)} run{'s' if len(runs) > 1 else ''}{several} → {out}", markup=False, soft_wrap=True)
