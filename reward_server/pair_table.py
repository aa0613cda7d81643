"""Pairs of captions and what the judge said of them, in the file of the annotation store.

A pair has one id whatever the order of its captions, and one order in which it is shown (`Pair.of`): so under one key no
pair is asked about twice, and a label 1 always means the same caption.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from reward_server.label_rows import LabelRecord, LabelRows
from reward_server.types import JudgeKey, Pair

if TYPE_CHECKING:
    from reward_server.store import AnnotationStore

PAIR_SCHEMA = """
CREATE TABLE IF NOT EXISTS pairs (
    id INTEGER PRIMARY KEY,
    first_id INTEGER NOT NULL REFERENCES captions (id),
    second_id INTEGER NOT NULL REFERENCES captions (id),
    first_seen REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS pair_labels (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    pair_id INTEGER NOT NULL REFERENCES pairs (id),
    key_id INTEGER NOT NULL REFERENCES keys (id),
    state TEXT NOT NULL CHECK (state IN ('labelled', 'failed')),
    label INTEGER CHECK (label IN (0, 1, 2)),
    probability REAL CHECK (probability BETWEEN 0 AND 1),
    raw TEXT NOT NULL,
    latency_s REAL NOT NULL,
    attempts INTEGER NOT NULL,
    created REAL NOT NULL,
    aside INTEGER NOT NULL DEFAULT 0 CHECK (aside IN (0, 1)),
    UNIQUE (pair_id, key_id),
    CHECK ((state = 'labelled') = (label IS NOT NULL))
);
"""
"""Added to files of earlier versions when they are opened for writing."""


@dataclass(frozen=True, slots=True)
class LabelledPair:
    """A pair with its label, as the distiller reads it."""

    seq: int
    pair_id: int
    first_id: int
    second_id: int
    first: str
    second: str
    label: int
    """1 or 2: which is better; 0: neither."""
    probability: float | None
    """The preference for the first, ties as one half."""


class PairTable:
    """The pairs of a store. Has the methods of the store that annotator and distiller need, for pairs."""

    def __init__(self, store: "AnnotationStore", clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock
        self._rows = LabelRows(store, "pair_labels", "pair_id", clock)
        self.set_aside = self._rows.set_aside
        self.cursor = self._rows.cursor
        self.labelled_ids = self._rows.labelled_ids
        self.failed_ids = self._rows.failed_ids
        self.aside = self._rows.aside
        self.records = self._rows.records

    def write(self, key: JudgeKey, records: Sequence[LabelRecord], questions: Iterable[tuple[int, Pair]] = ()) -> int:
        """Writes answers, and the pairs and captions that they are about where these may be new, in one transaction.
        Returns how many answers were written."""
        pairs = [Pair(*pair) for _, pair in questions]
        with self._store.transaction() as db:
            captions = {i: text for p in pairs for i, text in ((p.first_id, p.first), (p.second_id, p.second))}
            self._store.insert_captions(db, captions.items())
            db.executemany(
                "INSERT INTO pairs VALUES (?, ?, ?, ?) ON CONFLICT (id) DO NOTHING",
                [(p.id, p.first_id, p.second_id, self._clock()) for p in pairs],
            )
            return self._rows.write(db, key, records)

    def labels_since(self, cursor: int, key: JudgeKey, limit: int = -1) -> tuple[list[LabelledPair], int]:
        """Labels written after `cursor` (0: from the first) in the order of writing, and the cursor behind them."""
        rows = self._store.query(
            "SELECT seq, pair_id, first_id, second_id, a.text, b.text, label, probability FROM pair_labels"
            " JOIN pairs ON pairs.id = pair_id JOIN captions a ON a.id = first_id JOIN captions b ON b.id = second_id"
            " WHERE seq > ? AND key_id = ? AND state = 'labelled' AND NOT aside ORDER BY seq LIMIT ?",
            (cursor, self._store.find_key(key), limit),
        )
        labels = [LabelledPair(*row) for row in rows]
        return labels, labels[-1].seq if labels else cursor

    def texts(self, ids: Iterable[int]) -> dict[int, str]:
        """Texts of those of the captions that the store knows."""
        return self._store.texts(ids)

    def counts(self, key: JudgeKey | None = None) -> tuple[int, int]:
        """Labels and failures, under `key` or over all keys; those set aside count."""
        return self._rows.counts(key)

    def question(self, state: Any) -> Pair:
        """A pair as a checkpoint holds it (a plain sequence)."""
        return Pair(int(state[0]), int(state[1]), str(state[2]), str(state[3]))
