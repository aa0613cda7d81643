"""`yendor trace`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestration.errors import TraceError

app = typer.Typer(help="Episodes that were recorded.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Root = Annotated[Path, typer.Option("--dir", help="Where runs lie.")]
File = Annotated[Path, typer.Argument(metavar="FILE", help="A trace (.jsonl.zst, or .part of one that was cut).")]


@app.callback()
def root() -> None:
    """Episodes that were recorded."""


@app.command("ls")
def ls(
    run: Annotated[str, typer.Argument(metavar="RUN|DIR", help="Name or folder of a run, or a folder of traces.")],
    root: Root = Path("runs"),
    where: Annotated[str | None, typer.Option("--where", help='Only these, such as "success and length < 50".')] = None,
    sort: Annotated[str | None, typer.Option("--sort", help="Column to sort by, such as return or -length.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Most rows that the table shows.")] = 100,
    as_json: AsJson = False,
) -> None:
    """List the traced episodes of a run: which, in what order.

    Columns are those of --json; return, policy and steps are short for episode_return, policy_version and length.
    """
    from orchestration.cli.output import console, number, print_json, table
    from orchestration.traces.index import load_index

    folder = _folder(run, root)
    index = load_index(folder)
    descending = sort is not None and sort.startswith("-")
    chosen = index.select(where, sort.removeprefix("-") if sort else None, descending=descending)
    if as_json:
        print_json([{**row, "file": str(folder / row["file"])} for row in index.rows(chosen)])
        return
    rows = [
        (
            row["episode_id"],
            f"v{row['policy_version']}",
            f"{row['length']:,}" if row["complete"] else "-",
            number(row["episode_return"]),
            _ending(row),
            row["kept"] or "-",
            f"{row['bytes']:,}",
        )
        for row in index.rows(chosen[:limit])
    ]
    columns = ("episode", "policy", "steps", "return", "end", "kept", "bytes")
    console().print(table(columns, rows, right=("policy", "steps", "return", "bytes"), whole=("episode",)))
    shown = f"{len(rows):,} of " if len(rows) < len(chosen) else ""
    console().print(f"\n{shown}{len(chosen):,} in {folder}; `yendor trace show FILE` opens one")


def _folder(run: str, root: Path) -> Path:
    folder = Path(run)
    if not folder.is_dir():
        from orchestration.rundir import find_run

        folder = find_run(run, root).traces
    return folder / "traces" if (folder / "traces").is_dir() else folder


def _files(run: str, root: Path) -> list[Path]:
    from orchestration.traces.reader import run_traces, trace_files

    folder = _folder(run, root)
    return [*trace_files(folder), *run_traces(folder)]


def _ending(row: Mapping[str, Any]) -> str:
    if not row["complete"]:
        return "unfinished"
    how = "error" if row["error"] else "terminated" if row["terminated"] else "truncated"
    return how if row["success"] is None else f"{how}, {'success' if row['success'] else 'no success'}"


@app.command("show")
def show(
    file: File,
    start: Annotated[int, typer.Option("--from", min=0, help="First step.")] = 0,
    limit: Annotated[int, typer.Option(min=1, help="Most steps.")] = 50,
    screens: Annotated[bool, typer.Option("--screens", help="Print the screen after each step.")] = False,
    credit: Annotated[bool, typer.Option("--credit", help="Show which step earned what, and why.")] = False,
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", help="With --credit: whose estimator; default: the run's newest.")
    ] = None,
    copy_to: Annotated[
        Path | None, typer.Option("--out", help="With --credit: folder for a copy with these rewards, to view.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the steps of a trace."""
    from orchestration.cli.output import console, fields, print_json, table
    from orchestration.errors import UsageError
    from orchestration.traces.reader import read_trace

    trace = read_trace(file)
    if credit:
        from orchestration.cli.credit import show_credit

        if screens:
            raise UsageError("--screens: has no effect with --credit")
        show_credit(trace, start, limit, checkpoint=checkpoint, out=copy_to, as_json=as_json)
        return
    for name, value in (("--checkpoint", checkpoint), ("--out", copy_to)):
        if value is not None:
            raise UsageError(f"{name}: has no effect without --credit")
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
        from orchestration.traces.complete import Late

        done = Late.beside(file.parent).complete(trace)
        components = done.why and f"not known: {done.why}"
        end = [(name, str(value)) for name, value in fields(trace.end) if name != "components"]
        end.append(("components", components or str((done.trace.end or trace.end).components)))
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


@app.command("cat")
def cat(file: File) -> None:
    """Print all records of a trace as JSON lines, complete: also what the file leaves out because it follows."""
    import sys

    from orchestration.traces.codec import encode
    from orchestration.traces.reader import read_lines, records_of

    for _, record in records_of(file, read_lines(file).lines):
        sys.stdout.buffer.write(encode(record))


@app.command("schema")
def schema() -> None:
    """Print the JSON Schema of a line of a trace; `docs/trace.schema.json` is what this prints."""
    import sys

    from orchestration.traces.json_schema import schema_text

    sys.stdout.write(schema_text())


@app.command("replay")
def replay(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Traces.")],
    start: Annotated[int | None, typer.Option("--from", min=0, help="The step to fork at.")] = None,
    fork: Annotated[bool, typer.Option("--fork", help="Go on from there with another policy.")] = False,
    policy: Annotated[
        str | None,
        typer.Option("--policy", help="Who goes on: a run, a checkpoint, a language model's folder, or random."),
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Of that policy's choices (0).")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the fork's trace; default: beside its parent.")
    ] = None,
    reward_model: Annotated[
        str | None, typer.Option("--reward-model", help="Compute the rewards again under this version or checkpoint.")
    ] = None,
    force_tokens: Annotated[
        bool,
        typer.Option("--force-tokens", help="Score the stored tokens of language models again under stored weights."),
    ] = False,
    weights: Annotated[
        Path | None, typer.Option("--weights", help="Folder of those weights; default: the one that the trace names.")
    ] = None,
    tolerance: Annotated[
        float | None, typer.Option("--tolerance", help="So much log-probabilities may differ, in nats (0.1).")
    ] = None,
    page: Annotated[
        Path | None, typer.Option("--view", help="Write a page of the traces that marks where they diverged.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Execute episodes again from their seeds and compare everything. Exit code: 0 all match, 1 diverged, 3 cannot be."""
    from orchestration.traces.replay.command import run_replay

    raise typer.Exit(
        run_replay(
            files, start=start, fork=fork, policy=policy, seed=seed, out=out, reward_model=reward_model,
            force_tokens=force_tokens, weights=weights, tolerance=tolerance, page=page, as_json=as_json,
        )
    )  # fmt: skip


@app.command("view")
def view(
    targets: Annotated[list[str], typer.Argument(metavar="RUN|DIR|FILE...", help="What to show.")],
    root: Root = Path("runs"),
    out: Annotated[Path | None, typer.Option("--out", help="The page; default: trace.html in the run.")] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Show episodes as they finish.")] = False,
    open_it: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="At most so many traces, the newest (200).")
    ] = None,
) -> None:
    """Write traces as one HTML page that opens from disk: screens, rewards, the judge's answers."""
    from orchestration.traces.view.command import run_view

    run_view(targets, root=root, out=out, following=follow, open_it=open_it, limit=limit)


@app.command("export")
def export(
    where: Annotated[str, typer.Argument(metavar="RUN|DIR|FILE", help="What to export.")],
    form: Annotated[
        str, typer.Option("--format", help="survey, perfetto, chrome, otel, asciicast, parquet or datasets.")
    ],
    out: Annotated[Path, typer.Option("--out", help="File or folder to write.")],
    root: Root = Path("runs"),
    pace: Annotated[
        float | None, typer.Option("--pace", help="asciicast: frames a second; default: as it was.")
    ] = None,
) -> None:
    """Write traces in another form."""
    from orchestration.cli.output import console
    from orchestration.traces.export import export as write

    paths = [Path(where)] if Path(where).is_file() else _files(where, root)
    done = write(paths, form, out, pace=pace)
    console().print(f"{done.out}: {done.episodes:,} traces as {done.format}", markup=False, soft_wrap=True)
    for line in done.unfinished:
        console().print(f"unfinished: {line}", markup=False, soft_wrap=True)


@app.command("import")
def import_(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="A trace in the survey's schema (JSON).")],
    out: Annotated[Path, typer.Option("--out", help="The trace to write (.jsonl.zst).")],
) -> None:
    """Read a trace of the orchestration-trace survey, to view it."""
    from orchestration.traces.export import import_survey

    import_survey(source, out)
