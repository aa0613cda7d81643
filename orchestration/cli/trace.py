"""`yendor trace`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestration.errors import TraceError

if TYPE_CHECKING:
    from orchestration.traces.reader import Outline

app = typer.Typer(help="Episodes that were recorded.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Root = Annotated[Path, typer.Option("--dir", help="Where runs lie.")]
File = Annotated[Path, typer.Argument(metavar="FILE", help="A trace (.jsonl.zst, or .part of one that was cut).")]


@app.callback()
def root() -> None:
    """Episodes that were recorded."""


@app.command("ls")
def ls(
    where: Annotated[str, typer.Argument(metavar="RUN|DIR", help="Name or folder of a run, or a folder of traces.")],
    root: Root = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """List the traces of a run."""
    from orchestration.cli.output import console, number, print_json, table
    from orchestration.traces.reader import read_outline

    outlines = [read_outline(path) for path in _files(where, root)]
    if as_json:
        print_json([_outline(outline) for outline in outlines])
        return
    rows = [
        (
            outline.header.episode_id,
            f"v{outline.header.policy_version}",
            f"{outline.end.length:,}" if outline.end else "-",
            number(outline.end.episode_return if outline.end else None),
            _ending(outline),
            f"{outline.bytes:,}",
        )
        for outline in outlines
    ]
    columns = ("episode", "policy", "steps", "return", "end", "bytes")
    console().print(table(columns, rows, right=("policy", "steps", "return", "bytes")))
    if outlines:
        console().print(f"\n{len(rows):,} in {outlines[0].path.parent}; `yendor trace show FILE` opens one")


def _files(where: str, root: Path) -> list[Path]:
    from orchestration.rundir import find_run
    from orchestration.traces.reader import trace_files

    folder = Path(where)
    return trace_files(folder if folder.is_dir() else find_run(where, root).traces)


def _ending(outline: "Outline") -> str:
    end = outline.end
    if end is None:
        return "unfinished"
    how = "error" if end.error else "terminated" if end.terminated else "truncated"
    return how if end.success is None else f"{how}, {'success' if end.success else 'no success'}"


def _outline(outline: "Outline") -> dict[str, object]:
    header, end = outline.header, outline.end
    return {
        "file": str(outline.path),
        "episode_id": header.episode_id,
        "env_id": header.env_id,
        "policy_version": header.policy_version,
        "complete": end is not None,
        "length": end.length if end else None,
        "episode_return": end.episode_return if end else None,
        "success": end.success if end else None,
        "error": end.error if end else None,
        "bytes": outline.bytes,
    }


@app.command("show")
def show(
    file: File,
    start: Annotated[int, typer.Option("--from", min=0, help="First step.")] = 0,
    limit: Annotated[int, typer.Option(min=1, help="Most steps.")] = 50,
    screens: Annotated[bool, typer.Option("--screens", help="Print the screen after each step.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the steps of a trace."""
    from orchestration.cli.output import console, fields, print_json, table
    from orchestration.traces.reader import read_trace

    trace = read_trace(file)
    steps = [step for step in trace.steps if step.step >= start][:limit]
    if as_json:
        print_json({"header": trace.header, "captions": trace.captions, "steps": steps, "end": trace.end})
        return
    out = console()
    header = [(name, str(value)) for name, value in fields(trace.header) if name != "action_names"]
    out.print(table(("", ""), header))
    out.print()
    columns = ("step", "t", "action", "reward", "value", "n", "caption")
    rows = [
        (
            str(step.step),
            f"{step.t:.3f}",
            step.action_name,
            f"{step.reward:g}" if step.reward else "",
            "-" if step.value is None else f"{step.value:.2f}",
            str(step.caption_count or ""),
            trace.captions.get(step.caption_id, ""),
        )
        for step in steps
    ]
    out.print(table(columns, rows, right=("step", "t", "reward", "value", "n")), markup=False)
    if screens:
        for step in steps:
            out.out(f"\n--- after step {step.step} ({step.action_name})\n{step.screen}", highlight=False)
    left = len(trace.steps) - len(steps) - sum(step.step < start for step in trace.steps)
    if left > 0:
        out.print(f"\n{left:,} more steps; --from {steps[-1].step + 1 if steps else start}")
    if trace.end is None:
        out.print(f"\nno end: {trace.cut or 'its writer was stopped'}")
    else:
        end = [(name, str(value)) for name, value in fields(trace.end)]
        out.print()
        out.print(table(("", ""), end), markup=False)


@app.command("validate")
def validate(
    where: Annotated[str, typer.Argument(metavar="RUN|DIR|FILE", help="A trace, or where traces lie.")],
    root: Root = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Check traces: whole, in order, with sums that fit. Ends with 1 where one is not valid.

    An episode that was not finished (.part) is valid as far as it goes.
    """
    from orchestration.cli.output import console, print_json
    from orchestration.traces.validate import validate_file

    files = [Path(where)] if Path(where).is_file() else _files(where, root)
    faults = {str(path): validate_file(path) for path in files}
    if as_json:
        print_json(faults)
    else:
        for path, found in faults.items():
            for fault in found:
                console().print(f"{path}: {fault}", markup=False, soft_wrap=True)
    bad = sum(bool(found) for found in faults.values())
    if bad:
        raise TraceError(f"{bad} of {len(files)} traces are not valid")
    if not as_json:
        unfinished = sum(path.suffix == ".part" for path in files)
        console().print(f"{len(files):,} traces, all valid" + (f" ({unfinished:,} unfinished)" if unfinished else ""))
