"""`yendor annotate`."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestration.errors import UsageError

if TYPE_CHECKING:
    from orchestration.annotate import Annotation
    from orchestration.config import Config
    from reward_server.annotator_status import AnnotatorStatus

_OVERRIDE = re.compile(r"(judge|annotator|run)\.[a-z_]+=")
_WITHOUT_EFFECT = {
    "annotator.backlog": "no caption may fall out of it",
    "annotator.pair_reservoir": "pairs are drawn from all captions",
    "annotator.pair_choice": "pairs are drawn once, before there is a model to be uncertain",
    "judge.replicas": "the judge runs in this process; for more, serve it apart and give judge.engine=openai judge.url=…",
}
"""Keys of a run that say nothing here, and why."""


def add_to(app: typer.Typer) -> None:
    """Adds the commands of this module."""
    app.command("annotate")(annotate)


def annotate(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SOURCE]... [KEY=VALUE]...",
            show_default=False,
            help="Runs, folders of traces, traces, annotations.sqlite, .jsonl or text files; and keys judge.…, annotator.…",
        ),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(metavar="MODEL|URL", help="Short for judge.model=…, or for judge.engine=openai judge.url=…"),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", help="The store; labels that are in it are not asked for again.")
    ] = Path("annotations.sqlite"),
    pairs: Annotated[
        bool,
        typer.Option(
            "--pairs", help="Compare pairs of them instead, for rankings: annotator.pairs_per_caption of each."
        ),
    ] = False,
    export: Annotated[
        Path | None, typer.Option("--export", help="Also write all labels into this Parquet file.")
    ] = None,
    patience: Annotated[float, typer.Option(min=0, help="Give up after so many seconds without an answer.")] = 60.0,
    root: Annotated[Path, typer.Option("--dir", help="Where runs lie.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Label captions, or pairs of them, offline, into an annotations.sqlite.

    Nothing is asked twice under one key, also not by a later call: what Ctrl-C interrupts is gone on with by the same
    command. Training takes the labels with annotator.reuse=FILE, or all of it from them with reward.model=offline.
    """
    from orchestration.cli.output import console, print_json

    words = sources or []
    places = [word for word in words if not _OVERRIDE.match(word)]
    if not places and export is None:
        raise UsageError("name what to label: runs, traces, or files of captions (or --export FILE alone)")
    done = None
    if places:
        done = _label(
            places, _judge_keys(judge) + [word for word in words if _OVERRIDE.match(word)], out, patience, root, pairs
        )
    exported = None if export is None else _export(out, export)
    if as_json:
        print_json({"store": str(out), "annotation": done, "export": str(export or ""), "exported": exported})
    else:
        for line in _lines(done, "pairs" if pairs else "captions", out, export, exported):
            console().print(line, soft_wrap=True, markup=False)
    if done is not None and done.interrupted:
        raise typer.Exit(130)


def _judge_keys(judge: str | None) -> list[str]:
    if judge is None:
        return []
    if judge.startswith(("http://", "https://")):
        return ["judge.engine=openai", f"judge.url={judge}"]
    return [f"judge.model={judge}"]


def _label(places: list[str], keys: list[str], out: Path, patience: float, root: Path, pairs: bool) -> "Annotation":
    import asyncio

    from orchestration.captions import read_captions
    from orchestration.configuration import load_config
    from reward_server.judge.judge import preflight

    for key in keys:
        name = key.partition("=")[0].strip()
        if name in _WITHOUT_EFFECT:
            raise UsageError(f"{name} has no effect on `yendor annotate`: {_WITHOUT_EFFECT[name]}")
    config = load_config(None, [*(["reward.model=ranking"] if pairs else []), *keys])
    captions = read_captions(places, root)
    if not captions:
        raise UsageError(f"{', '.join(places)}: no captions there")
    preflight(config.judge)
    return asyncio.run((_compare if pairs else _ask)(config, captions, out, patience))


async def _ask(config: "Config", captions: dict[int, str], out: Path, patience: float) -> "Annotation":
    import dataclasses

    from orchestration.annotate import annotate as label
    from reward_server.annotator import Annotator
    from reward_server.judge import build_judge
    from reward_server.reuse import labels_elsewhere
    from reward_server.store import AnnotationStore

    # None of them may fall out of the backlog, and the last one submitted is asked about first.
    settings = dataclasses.replace(config.annotator, backlog=len(captions))
    with AnnotationStore(out) as store:
        judge = build_judge(config.judge, _say)
        try:
            reuse = None if settings.reuse is None else labels_elsewhere(Path(settings.reuse), judge.key, out)
            annotator = Annotator(judge, store, settings, reuse=reuse, seed=config.run.seed)
            annotator.submit(reversed(captions.items()))
            if annotator.status().queued:
                await judge.start()
            return await label(
                annotator, len(captions), patience_s=patience, progress=_Progress(len(captions), "captions")
            )
        finally:
            await judge.close()


async def _compare(config: "Config", captions: dict[int, str], out: Path, patience: float) -> "Annotation":
    """Pairs are drawn from all captions at once, by the seed: the same command draws the same ones again."""
    import dataclasses

    from orchestration.annotate import annotate as label
    from reward_server.annotator import Annotator
    from reward_server.judge import build_judge
    from reward_server.judge.pairs import PointwiseJudge, asks_pairwise
    from reward_server.pairs import PairSource
    from reward_server.reuse import labels_elsewhere
    from reward_server.store import AnnotationStore

    source = PairSource(dataclasses.replace(config.annotator, pair_reservoir=len(captions)), seed=config.run.seed)
    source.observe(captions.items())
    drawn = source.draw(source.due)
    if not drawn:
        raise UsageError("one caption alone cannot be compared")
    settings = dataclasses.replace(config.annotator, backlog=len(drawn))
    with AnnotationStore(out) as store:
        pairwise = asks_pairwise(config.judge)
        asked = build_judge(config.judge, _say, pairwise=pairwise)
        judge = asked if pairwise else PointwiseJudge(asked)
        try:
            elsewhere = None if settings.reuse is None else Path(settings.reuse)
            reuse = None if elsewhere is None else labels_elsewhere(elsewhere, judge.key, out, pairs=True)
            annotator = Annotator(judge, store.pairs, settings, labels=(0, 1, 2), reuse=reuse, seed=config.run.seed)
            annotator.submit(reversed(drawn))
            if annotator.status().queued:
                await asked.start()
            return await label(annotator, len(drawn), patience_s=patience, progress=_Progress(len(drawn), "pairs"))
        finally:
            await asked.close()


def _say(line: str) -> None:
    import sys

    sys.stderr.write(f"{line}\n")


class _Progress:
    """One line that is written over on a terminal, and a line every ten seconds elsewhere."""

    def __init__(self, count: int, what: str) -> None:
        import sys
        import time

        self._all = f"{count:,} {what}"
        self._clock = time.monotonic
        self._stream = sys.stderr
        self._next = self._clock() + 10.0

    def __call__(self, status: "AnnotatorStatus") -> None:
        terminal = self._stream.isatty()
        if not terminal and self._clock() < self._next:
            return
        self._next = self._clock() + 10.0
        trouble = "" if status.judge_status == "ready" or status.last_error is None else f" · {status.last_error[:100]}"
        line = (
            f"{status.labelled:,} labels of {self._all} · {status.failed:,} failed · "
            f"{status.labels_per_second:,.1f} labels/s · judge {status.judge_status}{trouble}"
        )
        self._stream.write(f"\r\033[K{line}" if terminal else f"{line}\n")
        self._stream.flush()


def _export(store: Path, target: Path) -> int:
    from orchestration.errors import YendorError
    from reward_server.export import export_parquet
    from reward_server.store import AnnotationStore

    with AnnotationStore(store, read_only=True) as opened:
        try:
            return export_parquet(opened, target)
        except OSError as error:
            raise YendorError(f"{target}: cannot be written: {error.strerror or error}") from error


def _lines(done: "Annotation | None", what: str, out: Path, export: Path | None, exported: int | None) -> list[str]:
    lines: list[str] = []
    if done is not None:
        parts = [f"{done.labelled:,} labelled", f"{done.known_before:,} known before"]
        parts += [f"{done.reused:,} taken from other stores"] if done.reused else []
        parts += [f"{done.failed:,} answers could not be read"] if done.failed else []
        parts += [f"{done.left:,} left: the same command goes on with them"] if done.left else []
        lines.append(f"{done.asked_for:,} {what}: {', '.join(parts)} ({done.seconds:.1f} s) → {out}")
    if export is not None:
        lines.append(f"{exported:,} rows → {export}")
    return lines
