"""`yendor sft`."""

import dataclasses
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestration.cli.train import Arguments, split_arguments
from orchestration.errors import ConfigError, first_line

if TYPE_CHECKING:
    from orchestration.config import Config
    from orchestration.language.games import Progress
    from orchestration.rundir import RunDir


def add_to(app: typer.Typer) -> None:
    """Adds the command of this module."""
    app.command("sft")(sft)


def sft(
    arguments: Arguments = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Start anew where a run exists (moved to RUN_DIR/.replaced).")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Fine-tune a language model on demonstrations, before RL: walkthroughs, or a run's successful traces.

    The run is called PRESET-sft unless run.name says otherwise; `yendor train PRESET agent.model=PRESET-sft` goes on.
    """
    from orchestration.cli.output import console, print_json, progress_bars
    from orchestration.configuration import load_config
    from orchestration.rundir import RunDir

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    preset, overrides = split_arguments(arguments)
    if not any(override.startswith("run.name=") for override in overrides):
        overrides = [*overrides, f"run.name={Path(preset).stem if preset else 'train'}-sft"]
    config = load_config(preset, overrides)
    if config.agent.model is None:
        raise ConfigError("agent.model: `yendor sft` trains a language model; name one, such as agent.model=small")
    if config.checkpoint.url is not None:
        raise ConfigError("checkpoint.url: `yendor sft` keeps its checkpoint in the run's folder alone; leave it out")
    path = Path(config.run.dir) / config.run.name
    with RunDir(path).open_for_training(config, overwrite=overwrite) as rundir, progress_bars() as progress:
        done = _finetune(config, rundir, progress)
    if as_json:
        print_json(done)
        return
    handle = config.run.name if config.run.dir == "runs" else str(path)
    holdout = "" if done.holdout_loss is None else f" (held out: {done.holdout_loss:.3f})"
    passed = (
        f" ({done.passed_over} walkthroughs that do not reach the end were passed over)" if done.passed_over else ""
    )
    console().print(
        f"{done.demonstrations} demonstrations{passed} of {done.turns} turns, worth {done.episodes_worth:g} episodes of a budget; "
        f"{done.steps} steps to {done.loss:.3f} nats a token{holdout}, {done.wall_s:.0f} s\n"
        f"go on with: yendor train {preset or ''} agent.model={handle}".replace("  ", " "),
        markup=False,
    )


def _finetune(config: "Config", rundir: "RunDir", progress: "Progress"):
    from orchestration.language.sft import finetune
    from orchestration.metrics import write_summary
    from orchestration.summary import Status, Summary, read_summary

    try:
        return finetune(config, rundir, progress)
    except BaseException as error:
        interrupted = isinstance(error, KeyboardInterrupt)
        known = read_summary(rundir.summary) or Summary(rundir.name, config.env.id, runtime="serial")
        status = Status.INTERRUPTED if interrupted else Status.FAILED
        said = None if interrupted else first_line(error)
        write_summary(rundir.summary, dataclasses.replace(known, status=status, error=said), durable=True)
        raise
