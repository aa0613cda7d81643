"""What the judge said of the captions of a run: read from its annotation store, for the page alone."""

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from orchestration.errors import TraceError

_AT_ONCE = 500
"""SQLite takes a limited number of parameters."""

_QUERY = """
SELECT labels.caption_id, label, probability, raw, latency_s, attempts, prompt_version, goal, model, mode
FROM labels JOIN keys ON keys.id = labels.key_id WHERE labels.caption_id IN ({places}) ORDER BY labels.seq
"""


@dataclass(frozen=True, slots=True)
class JudgeAnswer:
    """One answer about one caption."""

    caption_id: str
    label: int | None
    """None: no answer could be read, after so many `attempts`. It is missing, not 0."""
    probability: float | None
    answer: str
    """As the judge gave it."""
    latency_s: float
    attempts: int
    prompt_version: str
    goal: str
    judge: str
    """Model."""
    mode: str


def read_answers(store: Path, caption_ids: Iterable[str]) -> list[JudgeAnswer]:
    """The answers about some captions in the annotation store of a run; none where there is no such file.

    Raises `TraceError` for a file that cannot be read.
    """
    if not store.is_file():
        return []
    wanted = [int(name) for name in caption_ids]
    found: list[JudgeAnswer] = []
    try:
        # Only read, also while the run writes: its log (WAL) lets both.
        with closing(sqlite3.connect(f"{store.resolve().as_uri()}?mode=ro", uri=True, timeout=10.0)) as db:
            db.text_factory = _decoded
            for at in range(0, len(wanted), _AT_ONCE):
                some = wanted[at : at + _AT_ONCE]
                rows = db.execute(_QUERY.format(places=",".join("?" * len(some))), some)
                found += [JudgeAnswer(str(row[0]), *row[1:]) for row in rows]
    except sqlite3.Error as error:
        raise TraceError(f"{store}: the labels of the run cannot be read: {error}") from error
    return found


def store_beside(trace: Path) -> Path:
    """Where the annotation store of the run lies that `trace` belongs to: beside the folder of its traces."""
    return trace.parent.parent / "annotations.sqlite"


def _decoded(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")
