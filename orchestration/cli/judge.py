"""`yendor judge`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestration.cli.train import Arguments, split_arguments

if TYPE_CHECKING:
    from reward_server.settings import JudgeSettings
    from reward_server.types import Answer

app = typer.Typer(help="The language model that judges.", no_args_is_help=True)

_EXAMPLES = (
    "You kill the newt!",
    "You see here a key.",
    "It's a wall.",
    "You hear the footsteps of a guard on patrol.",
)


@app.callback()
def root() -> None:
    """The language model that judges."""


@app.command("build")
def build(
    cache_dir: Annotated[Path | None, typer.Option("--cache-dir", help="Default: that of the configuration.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of corpus and training.")] = 0,
    threads: Annotated[
        int, typer.Option(min=1, help="CPU threads of the training; more than are free make it slower.")
    ] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Make the embedded judge (once: it is kept), and say how far it agrees with its rules."""
    import sys

    from orchestration.cli.output import console, print_json
    from orchestration.config import Config
    from orchestration.machine import available_cpus
    from reward_server import embedded

    folder = embedded.build(
        cache_dir or Config().judge.cache_dir,
        seed=seed,
        threads=min(threads, max(int(available_cpus()), 1)),
        progress=lambda line: print(line, file=sys.stderr),  # noqa: T201  (standard output is for the result)
    )
    report = embedded.report(folder)
    if as_json:
        print_json({"folder": str(folder), **report})
        return
    overall = report["agreement"]["overall"]
    out = console()
    out.print(str(folder), soft_wrap=True)
    out.print(
        f"agrees with its rules on {overall['accuracy']:.1%} of {overall['messages']:,} messages kept from training "
        f"(balanced: {overall['balanced_accuracy']:.1%})",
        soft_wrap=True,
    )


@app.command("probe")
def probe(
    arguments: Arguments = None,
    captions: Annotated[
        list[str] | None, typer.Option("--caption", help="Ask about this; may be repeated.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Ask the judge of a configuration about captions, and print what it answers."""
    import asyncio

    from orchestration.cli.output import console, number, print_json, table
    from orchestration.configuration import load_config
    from reward_server.judge.judge import preflight

    settings = load_config(*split_arguments(arguments)).judge
    preflight(settings)
    asked = captions or list(_EXAMPLES)
    answers = asyncio.run(_ask(settings, asked))
    if as_json:
        print_json([{"caption": caption, "answer": answer} for caption, answer in zip(asked, answers, strict=True)])
        return
    labels = ["?" if answer.label is None else str(answer.label) for answer in answers]
    rows = [
        (label, number(answer.probability), f"{answer.latency_s:.3f}", caption)
        for label, answer, caption in zip(labels, answers, asked, strict=True)
    ]
    console().print(table(("label", "probability", "seconds", "caption"), rows, right=("probability", "seconds")))


async def _ask(settings: "JudgeSettings", captions: list[str]) -> list["Answer"]:
    from reward_server.judge.judge import build_judge

    judge = build_judge(settings)
    try:
        return await judge.ask(captions)
    finally:
        await judge.close()
