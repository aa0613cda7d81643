"""`yendor play`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from orchestration.config import Config
    from orchestration.language.play import Played


def add_to(app: typer.Typer) -> None:
    """Adds the command of this module."""
    app.command("play")(play)


def play(
    env: Annotated[str, typer.Argument(metavar="ENV", help="Such as textworld/w2-o3-q4, alfworld/all, nethack/Score.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", show_default=False, help="Such as env.options.split=test."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="A model plays while you watch: `small`, a run, a checkpoint, a folder, a Hugging Face id."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Which episode.")] = 0,
    step: Annotated[bool, typer.Option("--step", help="Wait for Enter after each turn of the model.")] = False,
    root: Annotated[Path, typer.Option("--dir", help="Where runs lie.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print how it ended as JSON, and nothing else.")] = False,
) -> None:
    """Play a world as text, yourself or by a language model that you watch."""
    import io

    from rich.console import Console

    from orchestration.cli.output import console, print_json
    from orchestration.errors import UsageError

    if model is None and (step or as_json):
        raise UsageError("--step and --json are for a model that plays; name one with --model")
    if step and as_json:
        raise UsageError("--step and --json exclude each other")
    config = _config(env, model, overrides or [], root)
    from orchestration.language.play import play_model, play_person

    screen = Console(file=io.StringIO()) if as_json else console()
    if model is None:
        played = play_person(config, seed, screen)
    else:
        played = play_model(config, seed, screen, (lambda: input("Enter goes on ")) if step else None)
    if as_json:
        print_json(played)
    else:
        screen.print(_ending(played), markup=False)


def _config(env: str, model: str | None, overrides: list[str], root: Path) -> "Config":
    """The defaults with `env`, or with the answers, context and so on of the run that the model is of."""
    import dataclasses

    from orchestration.configuration import load_config, read_config

    given = [f"env.id={env}", f"agent.model={model or 'person'}", "learner.algorithm=ppo", "reward.w_int=0"]
    config = load_config(None, [*given, f"run.dir={root}", *overrides])
    run = None if model is None else _config_of(Path(model), root / model)
    if run is not None:
        names = {override.partition("=")[0].removeprefix("agent.") for override in overrides}
        learnt = dataclasses.asdict(read_config(run).agent)
        kept = {name: value for name, value in learnt.items() if name not in names and name != "model"}
        config = dataclasses.replace(config, agent=dataclasses.replace(config.agent, **kept))
    # One episode needs no engine that takes half a minute to start.
    if not any(override.startswith("agent.engine=") for override in overrides):
        config = dataclasses.replace(config, agent=dataclasses.replace(config.agent, engine="transformers"))
    return config


def _config_of(*folders: Path) -> Path | None:
    """The `config.yaml` of the first of the folders that is a run or a checkpoint."""
    for folder in folders:
        if (folder / "config.yaml").is_file():
            return folder / "config.yaml"
    return None


def _ending(played: "Played") -> str:
    how = "left" if played.left else {True: "won", False: "not won", None: "over"}[played.success]
    return f"{how} after {played.steps} steps, return {played.episode_return:g}"
