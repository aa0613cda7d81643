"""`yendor doctor`."""

from pathlib import Path
from typing import Annotated

import typer


def add_to(app: typer.Typer) -> None:
    """Adds the commands of this module."""
    app.command("doctor")(doctor)


def doctor(
    root: Annotated[Path, typer.Option("--dir", help="Where runs will lie.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what this machine can run, and what is missing. Ends with 1 where training cannot run."""
    from rich.text import Text

    from orchestration.cli.output import console, print_json, table
    from orchestration.doctor import diagnose

    diagnosis = diagnose(root)
    if as_json:
        print_json({"healthy": diagnosis.healthy, "checks": diagnosis.checks, "presets": diagnosis.presets})
    else:
        out = console()
        styles = {"ok": "green", "note": "yellow", "missing": "red"}
        checks = table(("", "", "found", "what to do"), [])
        for check in diagnosis.checks:
            word = Text(check.verdict.value, style=styles[check.verdict.value])
            checks.add_row(word, check.name, Text(check.found), Text(check.remedy or ""))
        out.print(checks)
        out.print()
        presets = table(("preset", "runs here"), [])
        for name, obstacle in diagnosis.presets.items():
            presets.add_row(name, Text("yes", style="green") if obstacle is None else Text(obstacle, style="red"))
        out.print(presets)
    if not diagnosis.healthy:
        raise typer.Exit(1)
