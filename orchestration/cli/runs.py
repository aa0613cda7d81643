"""`yendor runs`, `status`, `scale`, `stop`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestration.cli.jobs import Address

Root = Annotated[Path, typer.Option("--dir", help="Where runs lie.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Run = Annotated[str, typer.Argument(metavar="RUN", help="Name or folder of a run.")]


def add_to(app: typer.Typer) -> None:
    """Adds the commands of this module."""
    app.command("runs")(runs)
    app.command("status")(status)
    app.command("scale")(scale)
    app.command("stop")(stop)


def runs(root: Root = Path("runs"), as_json: AsJson = False) -> None:
    """List runs, the newest first."""
    from orchestration.cli.output import age, console, number, print_json, table
    from orchestration.runs import current_summaries

    summaries = current_summaries(root)
    if as_json:
        print_json(summaries)
        return
    if not summaries:
        console().print(f"no runs in {root}; `yendor train demo` starts one")
        return
    rows = [
        (
            summary.run,
            summary.env,
            summary.status.value,
            f"{summary.env_steps:,}",
            number(summary.success_rate),
            number(summary.return_mean),
            age(summary.updated),
        )
        for summary in summaries
    ]
    columns = ("run", "env", "status", "steps", "success", "return", "updated")
    console().print(table(columns, rows, right=("steps", "success", "return", "updated")))


def status(run: Run, address: Address = None, root: Root = Path("runs"), as_json: AsJson = False) -> None:
    """Show how a run stands, or a job on a cluster."""
    if address is not None:
        from orchestration.cli.jobs import show_job
        from orchestration.jobs.client import Jobs

        jobs = Jobs(address)
        show_job(jobs, jobs.find(run), as_json)
        return
    from orchestration.cli.output import console, fields, print_json, table
    from orchestration.rundir import find_run
    from orchestration.runs import current_summary

    found = find_run(run, root)
    summary = current_summary(found)
    if as_json:
        print_json(summary)
        return
    rows = [(name, _shown(name, value)) for name, value in fields(summary) if value not in (None, (), {})]
    console().print(table(("", ""), [*rows, ("folder", str(found.path))]))
    if summary.status == "died":
        why = "Its process is gone. " if summary.error is None else ""
        console().print(f"\n{why}`yendor train … --resume` goes on from the newest checkpoint.")


def _shown(name: str, value: Any) -> str:
    from orchestration.cli.output import age
    from orchestration.live import duration, measured, watch_line
    from orchestration.summary import RewardWatchReport

    if isinstance(value, RewardWatchReport):
        share = "-" if value.top_share is None else f"{value.top_share:.0%} of the intrinsic return from one caption"
        return watch_line(value) if value.flags else share
    if name == "episode_metrics":
        return measured(value)
    if name in ("started", "updated"):
        return f"{age(value)} ago" if value else "-"
    if name in ("wall_s", "eta_s"):
        return duration(value)
    if name in ("liked", "disliked"):
        return "\n".join(f"{score.probability:.2f}  {score.text}  ({score.count:,} times)" for score in value)
    if name == "standing_still":
        return "\n".join(f"{part}: for {age(since)}" for part, since in value.items())
    if name == "running_out":
        return "\n".join(f"{what}: {words}" for what, words in value.items())
    if isinstance(value, Mapping):
        return "\n".join(_wait(part, shares) for part, shares in value.items())  # pyright: ignore
    if isinstance(value, float):
        return f"{value:,.3f}".rstrip("0").rstrip(".")
    return f"{value:,}" if isinstance(value, int) else str(value)


def _wait(part: str, shares: Mapping[str, float]) -> str:
    return f"{part}: " + ", ".join(f"{what} {share:.0%}" for what, share in shares.items())


def scale(
    run: Run,
    actors: Annotated[int, typer.Option("--actors", min=1, help="Rollout actors that it shall have.")],
    address: Address = None,
    root: Root = Path("runs"),
    wait_s: Annotated[float, typer.Option("--wait", min=0, help="Seconds to wait until it has them.")] = 60.0,
    as_json: AsJson = False,
) -> None:
    """Give a run that goes more actors, or fewer; nothing of what they played is lost."""
    if address is not None:
        import sys

        from orchestration.jobs.client import Jobs
        from orchestration.jobs.submit import run_there

        jobs = Jobs(address)
        words = ["scale", "--actors", str(actors), "--wait", f"{wait_s:g}", *(["--json"] if as_json else [])]
        run_there(jobs, jobs.find(run), words, sys.stdout.write)
        return
    from orchestration.cli.output import console, print_json
    from orchestration.rundir import find_run
    from orchestration.runs import scale as scale_run

    scaled = scale_run(find_run(run, root), actors, wait_s)
    if as_json:
        print_json(scaled)
    else:
        console().print(f"{scaled.run}: {scaled.before} actors before, {scaled.actors} now")


def stop(
    run: Run,
    address: Address = None,
    root: Root = Path("runs"),
    wait_s: Annotated[float, typer.Option("--wait", min=0, help="Seconds to wait for its end.")] = 120.0,
    as_json: AsJson = False,
) -> None:
    """Ask a run, or a job on a cluster, to write a checkpoint and end, and wait for that."""
    if address is not None:
        from orchestration.cli.output import console, print_json
        from orchestration.jobs.client import Jobs

        job = Jobs(address).stop(run, wait_s)
        if as_json:
            print_json(job)
        else:
            console().print(f"{job.id}: {job.status}")
        return
    from orchestration.cli.output import console, print_json
    from orchestration.rundir import find_run
    from orchestration.runs import stop as stop_run

    stopped = stop_run(find_run(run, root), wait_s)
    if as_json:
        print_json(stopped)
    elif stopped.was_running:
        console().print(f"{stopped.run}: {stopped.status} at {stopped.env_steps:,} steps")
    else:
        console().print(f"{stopped.run}: does not run ({stopped.status})")
