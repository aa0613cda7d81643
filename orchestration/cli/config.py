"""`yendor config`."""

from typing import Annotated

import typer

from orchestration.cli.train import Arguments, split_arguments

app = typer.Typer(help="The configuration of runs.", no_args_is_help=True)


@app.callback()
def root() -> None:
    """The configuration of runs."""


@app.command("show")
def show(
    arguments: Arguments = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print the resolved configuration, every key with what it means."""
    import dataclasses

    from orchestration.cli.output import console, print_json
    from orchestration.configuration import load_config
    from orchestration.configuration.explain import explained_yaml

    config = load_config(*split_arguments(arguments))
    if as_json:
        print_json(dataclasses.asdict(config))
    else:
        console().out(explained_yaml(config), highlight=False, end="")
