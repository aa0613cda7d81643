"""Entry point of `yendor`. Invariant: whatever goes wrong is one line on standard error and an exit code.

Exit codes: 0 done; 1 failed; 2 usage or configuration error; 130 interrupted.
"""

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from orchestration.cli import annotate, config, diagnose, jobs, judge, play, report, runs, sft, trace, train
from orchestration.errors import UsageError, YendorError, first_line, is_ours, root_cause

INTERRUPTED = 130

app = typer.Typer(
    name="yendor",
    help="Trains agents in multi-turn worlds where reward is rare, with rewards that a language model gives.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
train.add_to(app)
sft.add_to(app)
play.add_to(app)
jobs.add_to(app)
runs.add_to(app)
report.add_to(app)
annotate.add_to(app)
app.add_typer(trace.app, name="trace")
app.add_typer(judge.app, name="judge")
app.add_typer(config.app, name="config")
diagnose.add_to(app)


def _show_version(value: bool) -> None:
    if value:
        from importlib import metadata

        typer.echo(f"yendor {metadata.version('yendor')}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error; may stand anywhere.")] = False,
) -> None:
    """Trains agents in multi-turn worlds where reward is rare, with rewards that a language model gives."""


def main() -> None:
    """Runs the command in `sys.argv` and ends the process."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Runs one command and returns its exit code. `--debug` anywhere lets errors through with their traceback."""
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        code = typer.main.get_command(app).main(arguments, prog_name="yendor", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except typer.TyperException as error:
        if not error.format_message():  # no_args_is_help: the help was the answer
            return 2
        return _say(UsageError(error.format_message().replace("\n", " ")))
    except Exception as error:
        if debug:
            raise
        return _say(error)


def _say(error: Exception) -> int:
    cause = root_cause(error)
    hint = "" if is_ours(cause) else " (--debug shows the traceback)"
    sys.stderr.write(f"yendor: error: {first_line(error)}{hint}\n")
    return cause.exit_code if isinstance(cause, YendorError) else 1


if __name__ == "__main__":
    main()
