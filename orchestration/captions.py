"""Captions from wherever they lie: runs, traces, annotation stores, text files."""

from collections.abc import Iterator
from pathlib import Path

import orjson

from envs.captions import caption_id, normalise
from orchestration.errors import UsageError
from orchestration.rundir import RunDir, find_run

_KEYS = ("caption", "text")


def read_captions(sources: list[str], root: Path) -> dict[int, str]:
    """The different captions of all `sources`, by id, in the order in which they come first; empty ones are left out.

    A source is the name or folder of a run below `root` (its store and its traces), a folder of traces, a trace
    (`.jsonl.zst`, `.part`), an `annotations.sqlite`, a `.jsonl` file (objects with `caption` or `text`, or plain strings),
    or a text file (a caption a line). Raises `UsageError`, and what reading traces and stores raises.
    """
    found: dict[int, str] = {}
    for source in sources:
        for text in _texts(source, root):
            if caption := normalise(text):
                found.setdefault(caption_id(caption), caption)
    return found


def _texts(source: str, root: Path) -> Iterator[str]:
    path = Path(source)
    if path.is_file():
        yield from _of_file(path)
        return
    if path.is_dir() and not RunDir(path).is_run():
        yield from _of_traces(path)
        return
    run = find_run(source, root)
    if run.annotations.is_file():
        yield from _of_store(run.annotations)
    yield from _of_traces(run.traces)


def _of_file(path: Path) -> Iterator[str]:
    name = path.name.removesuffix(".part")
    if name.endswith(".jsonl.zst"):
        from orchestration.traces.reader import read_trace

        yield from read_trace(path).captions.values()
    elif name.endswith((".sqlite", ".db")):
        yield from _of_store(path)
    else:
        try:
            lines = path.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{path}: cannot be read as UTF-8 text: {error}") from error
        yield from _of_jsonl(path, lines) if name.endswith(".jsonl") else iter(lines)


def _of_jsonl(path: Path, lines: list[str]) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise UsageError(f"{path}:{number}: is no JSON: {error}") from error
        if isinstance(value, dict):
            value = next((value[key] for key in _KEYS if key in value), None)
        if not isinstance(value, str):
            raise UsageError(f"{path}:{number}: expected a string, or an object with a string {' or '.join(_KEYS)}")
        yield value


def _of_traces(folder: Path) -> Iterator[str]:
    from orchestration.traces.reader import read_trace, trace_files

    for path in trace_files(folder):
        yield from read_trace(path).captions.values()


def _of_store(path: Path) -> Iterator[str]:
    from reward_server.store import AnnotationStore

    with AnnotationStore(path, read_only=True) as store:
        texts = [text for _, text in store.captions()]
    yield from texts
