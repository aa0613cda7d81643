"""The rows in which answers of one kind (about captions, or about pairs of them) stand in the annotation store.

Both kinds have a table of the same shape: one row for each question and key, numbered by `seq`, which only grows.
"""

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from reward_server.types import Answer, JudgeKey


@dataclass(frozen=True, slots=True)
class LabelRecord:
    """What is written about one question: an answer with a label, or one without after so many attempts (`failed`)."""

    caption_id: int
    """Of the caption, or of the pair."""
    answer: Answer
    attempts: int = 1


class StoreFile(Protocol):
    """The file that rows stand in: `reward_server.store.AnnotationStore`."""

    def query(self, sql: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]: ...
    def transaction(self) -> AbstractContextManager[sqlite3.Connection]: ...
    def find_key(self, key: JudgeKey) -> int: ...
    def add_key(self, db: sqlite3.Connection, key: JudgeKey) -> int: ...


class LabelRows:
    """The rows of `table`, whose questions are named by the ids in `column`."""

    def __init__(self, file: StoreFile, table: str, column: str, clock: Callable[[], float]) -> None:
        self._file = file
        self._table = table
        self._column = column
        self._clock = clock

    def write(self, db: sqlite3.Connection, key: JudgeKey, records: Sequence[LabelRecord]) -> int:
        """Writes answers inside the transaction `db`; returns how many rows.

        A label never gives way, neither to a failure nor to another label; a failure gives way to a label or a later
        failure, and a label that was set aside to one that is written again.
        """
        key_id = self._file.add_key(db, key)
        now = self._clock()
        written = 0
        for record in records:
            answer = record.answer
            state = "failed" if answer.label is None else "labelled"
            db.execute(
                f"DELETE FROM {self._table} WHERE {self._column} = ? AND key_id = ?"
                " AND (state = 'failed' OR aside AND ?)",
                (record.caption_id, key_id, answer.label is not None),
            )
            written += db.execute(
                f"INSERT INTO {self._table}"
                f" ({self._column}, key_id, state, label, probability, raw, latency_s, attempts, created)"
                f" VALUES (?, ?, ?, ?, ?, CAST(? AS TEXT), ?, ?, ?) ON CONFLICT ({self._column}, key_id) DO NOTHING",
                (
                    record.caption_id, key_id, state, answer.label, answer.probability,
                    to_bytes(answer.raw), answer.latency_s, record.attempts, now,
                ),
            ).rowcount  # fmt: skip
        return written

    def set_aside(self, key: JudgeKey, after: int) -> int:
        """Hides the labels with `seq` above `after` until they are written again; how many."""
        with self._file.transaction() as db:
            return db.execute(
                f"UPDATE {self._table} SET aside = 1 WHERE key_id = ? AND seq > ? AND state = 'labelled' AND NOT aside",
                (self._file.add_key(db, key), after),
            ).rowcount

    def cursor(self, key: JudgeKey) -> int:
        """The cursor behind the newest visible label; 0 where there is none."""
        sql = f"SELECT max(seq) FROM {self._table} WHERE key_id = ? AND state = 'labelled' AND NOT aside"
        return self._file.query(sql, (self._file.find_key(key),))[0][0] or 0

    def labelled_ids(self, key: JudgeKey) -> set[int]:
        """Questions that have a label under the key and are not set aside."""
        sql = f"SELECT {self._column} FROM {self._table} WHERE key_id = ? AND state = 'labelled' AND NOT aside"
        return {row[0] for row in self._file.query(sql, (self._file.find_key(key),))}

    def failed_ids(self, key: JudgeKey) -> set[int]:
        """Questions whose answers could not be read."""
        sql = f"SELECT {self._column} FROM {self._table} WHERE key_id = ? AND state = 'failed'"
        return {row[0] for row in self._file.query(sql, (self._file.find_key(key),))}

    def aside(self, key: JudgeKey) -> dict[int, LabelRecord]:
        """Labels that were set aside, by question."""
        return self._records(key, "aside")

    def records(self, key: JudgeKey) -> dict[int, LabelRecord]:
        """All labels under the key by question, those set aside included."""
        return self._records(key, "state = 'labelled'")

    def _records(self, key: JudgeKey, where: str) -> dict[int, LabelRecord]:
        sql = (
            f"SELECT {self._column}, label, probability, raw, latency_s, attempts FROM {self._table}"
            f" WHERE key_id = ? AND {where}"
        )
        return {
            row[0]: LabelRecord(row[0], Answer(row[1], row[2], row[3], row[4]), row[5])
            for row in self._file.query(sql, (self._file.find_key(key),))
        }

    def counts(self, key: JudgeKey | None) -> tuple[int, int]:
        """Labels and failures, under `key` or over all keys. Labels that are set aside count: they were paid for."""
        where, parameters = ("", ()) if key is None else ("WHERE key_id = ?", (self._file.find_key(key),))
        sql = f"SELECT state, count(*) FROM {self._table} {where} GROUP BY state"
        by_state = dict(self._file.query(sql, parameters))
        return by_state.get("labelled", 0), by_state.get("failed", 0)


def to_bytes(text: str) -> bytes:
    """UTF-8 that also holds the lone surrogates of text decoded from broken bytes."""
    return text.encode("utf-8", "surrogatepass")
