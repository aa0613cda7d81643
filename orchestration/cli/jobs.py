"""`yendor submit` and `yendor logs`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestration.errors import UsageError

if TYPE_CHECKING:
    from orchestration.jobs.client import Job, Jobs

Address = Annotated[
    str | None,
    typer.Option("--address", help="The job server of a cluster, such as http://head:8265; RUN is a job there."),
]
Arguments = Annotated[
    list[str] | None,
    typer.Argument(metavar="[PRESET] [KEY=VALUE]...", show_default=False, help="`yendor config show`."),
]


def add_to(app: typer.Typer) -> None:
    """Adds the commands of this module."""
    app.command("submit")(submit)
    app.command("logs")(logs)


def submit(
    arguments: Arguments = None,
    address: Annotated[
        str | None, typer.Option("--address", envvar="RAY_API_SERVER_ADDRESS", help="Such as http://head:8265.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Show what it writes until it ends.")] = False,
    install: Annotated[
        str, typer.Option("--install", help="What the cluster installs first: none (its image has all), cpu or gpu.")
    ] = "none",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run run.name=… on the cluster.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start anew where that run exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Train on a Ray cluster: pack the project, submit it as a job, and tell how to look at it."""
    from orchestration.cli.output import console, print_json
    from orchestration.cli.train import split_arguments
    from orchestration.configuration import load_config
    from orchestration.jobs.client import Jobs
    from orchestration.jobs.submit import submit as submit_job

    if address is None:
        raise UsageError("--address: where is the cluster? Give http://HEAD:8265, or set RAY_API_SERVER_ADDRESS")
    if resume and overwrite:
        raise UsageError("--resume and --overwrite exclude each other")
    if follow and as_json:
        raise UsageError("--follow and --json exclude each other")
    preset, overrides = split_arguments(arguments)
    config = load_config(preset, overrides)
    jobs = Jobs(address)
    done = submit_job(jobs, config, preset, overrides, resume=resume, overwrite=overwrite, install=install)
    if as_json:
        print_json(
            {**{name: getattr(done, name) for name in ("job", "run", "folder", "command")}, "bytes": done.package.bytes}
        )
        return
    out = console()
    out.print(
        f"{done.job}: submitted ({done.package}); its run lies in {done.folder}/{done.run} on the head", soft_wrap=True
    )
    for command in ("status", "logs --follow", "scale --actors N", "stop"):
        name, _, rest = command.partition(" ")
        out.print(f"  yendor {name} {done.job} {rest}{' ' if rest else ''}--address {address}", soft_wrap=True)
    if follow:
        raise typer.Exit(follow_job(jobs, done.job))


def follow_job(jobs: "Jobs", job: str) -> int:
    """Shows what a job writes until it ends; the exit code that goes with its end."""
    from orchestration.jobs.client import JobStatus

    try:
        ended = jobs.follow(job, _write, lambda message: print(f"yendor: {message}", file=sys.stderr))  # noqa: T201
    except KeyboardInterrupt:
        sys.stderr.write(f"\n{job} goes on; `yendor stop {job} --address {jobs.address}` ends it\n")
        return 130
    if ended.status is not JobStatus.SUCCEEDED:
        sys.stderr.write(f"yendor: {job} {ended.status}: {ended.message}\n")
    return {JobStatus.SUCCEEDED: 0, JobStatus.STOPPED: 130}.get(ended.status, ended.exit_code or 1)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def logs(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Name or folder of a run, or a job.")],
    address: Address = None,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until it ends; jobs only.")] = False,
    root: Annotated[Path, typer.Option("--dir", help="Where runs lie.")] = Path("runs"),
) -> None:
    """Show what a run has told of, or what a job has written."""
    from orchestration.jobs.client import Jobs
    from orchestration.rundir import find_run

    if address is not None:
        jobs = Jobs(address)
        if follow:
            raise typer.Exit(follow_job(jobs, run))
        _write(jobs.logs(run))
        return
    if follow:
        raise UsageError("--follow is for jobs (--address); `tail -F` follows the log of a run here")
    path = find_run(run, root).logs / "events.log"
    if not path.is_file():
        raise UsageError(f"{path}: not there; the run has told of nothing yet")
    _write(path.read_text("utf-8", "replace"))


def show_job(jobs: "Jobs", job: "Job", as_json: bool) -> None:
    """How a job stands, and where it runs, its run."""
    import dataclasses

    from orchestration.cli.output import age, console, print_json, table
    from orchestration.jobs.client import JobStatus
    from orchestration.jobs.submit import run_there

    if as_json:
        print_json(dataclasses.asdict(job))
        return
    rows = [("job", job.id), ("status", str(job.status)), ("message", job.message), ("command", job.command)]
    rows += [(name, f"{age(at)} ago") for name, at in (("started", job.started), ("ended", job.ended)) if at]
    console().print(table(("", ""), rows), markup=False)
    if job.status is JobStatus.RUNNING and job.run is not None:
        run_there(jobs, job, ["status"], _write)
