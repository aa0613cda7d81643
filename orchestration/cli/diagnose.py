"""`yendor doctor`."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from orchestration.doctor import Check


def add_to(app: typer.Typer) -> None:
    """Adds the commands of this module."""
    app.command("doctor")(doctor)


def doctor(
    root: Annotated[
        str | None,
        typer.Option("--dir", help="Where runs will lie (default: runs; on a cluster yendor-runs in the home folder)."),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option("--address", help="Look at a cluster: http://HEAD:8265, or what ray.init takes (ray://…, auto)."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what this machine, or each of a cluster, can run, and what is missing. Ends with 1 where training cannot run."""
    if address is not None:
        _doctor_of_cluster(address, root, as_json)
        return
    from rich.text import Text

    from orchestration.cli.output import console, print_json, table
    from orchestration.doctor import diagnose

    diagnosis = diagnose(Path(root or "runs"))
    if as_json:
        print_json({"healthy": diagnosis.healthy, "checks": diagnosis.checks, "presets": diagnosis.presets})
    else:
        out = console()
        out.print(_table(diagnosis.checks))
        out.print()
        presets = table(("preset", "runs here"), [])
        for name, obstacle in diagnosis.presets.items():
            presets.add_row(name, Text("yes", style="green") if obstacle is None else Text(obstacle, style="red"))
        out.print(presets)
    if not diagnosis.healthy:
        raise typer.Exit(1)


def _table(checks: "Iterable[Check]") -> "Table":
    from rich.text import Text

    from orchestration.cli.output import table

    styles = {"ok": "green", "note": "yellow", "missing": "red"}
    made = table(("", "", "found", "what to do"), [])
    for check in checks:
        word = Text(check.verdict.value, style=styles[check.verdict.value])
        made.add_row(word, check.name, Text(check.found), Text(check.remedy or ""))
    return made


def _doctor_of_cluster(address: str, root: str | None, as_json: bool) -> None:
    from orchestration.cli.output import console, print_json, table
    from orchestration.cluster_doctor import diagnose_cluster
    from orchestration.machine import gibibytes

    diagnosis = diagnose_cluster(address, root)
    if as_json:
        print_json({"healthy": diagnosis.healthy, "machines": diagnosis.machines, "checks": diagnosis.checks})
    else:
        out = console()
        columns = ("machine", "resources", "memory free", "object store", "temporary", "runs", "clock")
        rows = [
            (
                machine.name + (" head" if machine.head else ""),
                " ".join(
                    f"{name}:{amount:g}" for name, amount in machine.resources.items() if not name.endswith("memory")
                ),
                *(
                    "-" if size is None else gibibytes(int(size))
                    for size in (machine.memory_free, machine.object_store, machine.temp_free, machine.runs_free)
                ),
                "-" if machine.skew is None else f"{machine.skew:+.2f} s",
            )
            for machine in diagnosis.machines
        ]
        out.print(table(columns, rows, right=columns[2:]))
        out.print()
        out.print(_table(diagnosis.checks))
    if not diagnosis.healthy:
        raise typer.Exit(1)
