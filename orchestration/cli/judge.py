"""`yendor judge`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestration.cli.train import Arguments, split_arguments

if TYPE_CHECKING:
    from rich.console import Console

    from orchestration.config import Config
    from reward_server.judge.probe import ProbeQuestions, ProbeReport
    from reward_server.settings import JudgeSettings
    from reward_server.types import Answer

_NUMBERS = ("found", "at most", "of", "shift")

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


@app.command("ask")
def ask(
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
    columns = ("label", "probability", "seconds", "caption")
    console().print(table(columns, rows, right=("probability", "seconds")), markup=False)


@app.command("probe")
def probe(
    arguments: Arguments = None,
    limits: Annotated[
        list[str] | None,
        typer.Option("--max", metavar="CHECK=VALUE", help="Another limit of a check, such as fooled=0.2; repeatable."),
    ] = None,
    repeats: Annotated[int, typer.Option(min=2, help="Times that each plain caption is asked about.")] = 3,
    questions: Annotated[
        Path | None, typer.Option(help="A YAML file with questions of your own; default: those about NetHack.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw the checks into this SVG file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Test whether the judge of a configuration can be trusted. Ends with 1 where a check is over its limit."""
    import asyncio

    from orchestration.cli.output import console, print_json
    from orchestration.configuration import load_config
    from reward_server.judge.judge import preflight
    from reward_server.judge.probe import ProbeQuestions, limits_with

    config = load_config(*split_arguments(arguments))
    asked, allowed = ProbeQuestions.load(questions), limits_with(limits or [])
    preflight(config.judge)
    report = asyncio.run(_probe(config, asked, allowed, repeats))
    if plot is not None:
        from orchestration.files import write_atomically
        from orchestration.report.probe import probe_plot

        write_atomically(plot, probe_plot(report).encode())
    if as_json:
        print_json(_as_tree(report))
    else:
        _show(console(), report)
    if not report.ok:
        raise typer.Exit(1)


async def _probe(
    config: "Config", questions: "ProbeQuestions", limits: dict[str, float], repeats: int
) -> "ProbeReport":
    import sys

    from reward_server.judge import build_judge, pairs_beside
    from reward_server.judge.probe import probe as run_probe

    def say(line: str) -> None:
        sys.stderr.write(f"{line}\n")

    def count(asked: int) -> None:
        if sys.stderr.isatty():
            sys.stderr.write(f"\r{asked} questions asked")

    judge = build_judge(config.judge, say)
    try:
        report = await run_probe(
            judge,
            pairs=pairs_beside(judge, config.judge),
            questions=questions,
            limits=limits,
            repeats=repeats,
            batch=config.annotator.batch,
            seed=config.run.seed,
            progress=count,
        )
    finally:
        await judge.close()
    if sys.stderr.isatty():
        sys.stderr.write("\r\033[K")
    return report


def _show(out: "Console", report: "ProbeReport") -> None:
    from rich.text import Text

    from orchestration.cli.output import number, table

    rows = table(("check", "found", "at most", "of", "shift", "", "what is counted"), [], right=_NUMBERS)
    for check in report.checks:
        verdict = Text(check.verdict, style={"ok": "green", "over": "bold red"}.get(check.verdict, "yellow"))
        shift = "" if check.shift is None else number(check.shift, 3)
        cells = (check.name, number(check.value, 3), number(check.at_most, 3), f"{check.cases:,}", shift)
        rows.add_row(*cells, verdict, check.meaning)
    out.print(rows)
    for check in report.checks:
        if not check.ok and check.examples:
            out.print(f"\n{check.name}, for example:", style="bold")
            for example in check.examples:
                said = ", ".join("?" if label is None else str(label) for label in example.labels)
                out.print(f"  {said:8} {' | '.join(dict.fromkeys(example.asked))}", markup=False, soft_wrap=True)
    key = report.key
    out.print(
        f"\n{report.questions:,} questions in {report.seconds:.1f} s to {key.model}, goal {key.goal}, mode {key.mode}, "
        f"prompt {key.prompt_version}",
        markup=False,
        soft_wrap=True,
    )


def _as_tree(report: "ProbeReport") -> dict[str, object]:
    import dataclasses

    checks = [
        {**dataclasses.asdict(check), "ok": check.ok, "verdict": check.verdict, "meaning": check.meaning}
        for check in report.checks
    ]
    return {**dataclasses.asdict(report), "checks": checks, "ok": report.ok}


async def _ask(settings: "JudgeSettings", captions: list[str]) -> list["Answer"]:
    from reward_server.judge.judge import build_judge

    judge = build_judge(settings)
    try:
        return await judge.ask(captions)
    finally:
        await judge.close()
