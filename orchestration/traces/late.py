"""What is said of captions after their episodes ended: the sidecar `traces/labels.late.zst` of a run.

A label is a property of a caption, whichever episode brought it, so there is one sidecar for a run, and traces are never
written again. It is copied from the annotation store, in which labels are safe as soon as they are given: lines of JSON
in zstd frames, one for each label, in the order of the store's `seq`, so that copying goes on where it ended.
"""

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson
import zstandard

from orchestration.errors import TraceError
from orchestration.files import write_all
from orchestration.traces.reader import read_lines
from orchestration.traces.schema import clean

FILE = "labels.late.zst"

_QUERY = """
SELECT l.seq, l.caption_id, l.state, l.label, l.probability, l.raw, l.latency_s, l.created,
       k.model, k.prompt_version, k.goal, k.mode
FROM labels AS l JOIN keys AS k ON k.id = l.key_id WHERE l.seq > ? ORDER BY l.seq
"""


@dataclass(frozen=True, slots=True)
class LateLabel:
    """What a judge said of a caption."""

    seq: int
    """Of the annotation store: later ones are higher."""
    caption_id: str
    state: str
    """`labelled`, or `failed` where no answer could be read."""
    label: int | None
    probability: float | None
    answer: str
    """As it came."""
    latency_s: float
    at: float
    """Seconds since the epoch."""
    judge: str
    """Model."""
    prompt_version: str
    goal: str
    mode: str


def copy_labels(annotations: Path, traces: Path) -> int:
    """Appends to the sidecar in `traces` the labels of a store that are not in it yet; says how many.

    What a crash left of a frame is cut off first. Raises `TraceError` where a file cannot be read or written.
    """
    path = traces / FILE
    if not annotations.is_file():
        return 0
    known, whole = _known(path)
    after = max((label.seq for label in known), default=0)
    try:
        with closing(sqlite3.connect(f"{annotations.absolute().as_uri()}?mode=ro", uri=True)) as store:
            rows = store.execute(_QUERY, (after,)).fetchall()
    except sqlite3.Error as error:
        raise TraceError(f"{annotations}: cannot be read: {error}") from error
    labels = [_label(row) for row in rows]
    if not labels:
        return 0
    frame = zstandard.compress(b"".join(orjson.dumps(asdict(label)) + b"\n" for label in labels))
    try:
        with path.open("r+b" if path.exists() else "w+b", buffering=0) as file:
            file.truncate(whole)
            file.seek(whole)
            write_all(file, frame)
    except OSError as error:
        raise TraceError(f"{path}: cannot be written: {error.strerror}") from error
    return len(labels)


def read_labels(traces: Path) -> Mapping[str, LateLabel]:
    """The newest label of each caption, by caption id, out of the sidecar in `traces`; empty where there is none."""
    return {label.caption_id: label for label in _known(traces / FILE)[0]}


def _label(row: tuple[Any, ...]) -> LateLabel:
    seq, caption, state, label, probability, raw, latency_s, created, model, prompt, goal, mode = row
    return LateLabel(
        seq=seq,
        caption_id=str(caption),
        state=state,
        label=label,
        probability=probability,
        answer=clean(raw),
        latency_s=latency_s,
        at=created,
        judge=clean(model),
        prompt_version=prompt,
        goal=clean(goal),
        mode=mode,
    )


def _known(path: Path) -> tuple[list[LateLabel], int]:
    """The labels in whole frames of the sidecar, and the bytes that those frames take."""
    if not path.exists():
        return [], 0
    labels: list[LateLabel] = []
    read = read_lines(path, frames_only=True)
    for number, line in enumerate(read.lines, start=1):
        try:
            labels.append(LateLabel(**orjson.loads(line)))
        except (TypeError, ValueError) as error:
            raise TraceError(f"{path}:{number}: no label: {error}") from error
    return labels, read.whole
