"""The annotation store: every caption that was met and every label that the judge gave, in one SQLite file.

Invariant: what `write` returned from is there after `kill -9`. The file is in WAL mode, where a commit ends in one
write into the log; the operating system holds that write whatever becomes of the process. `synchronous=NORMAL` leaves
out the fsync of each commit: a power failure may take the last transactions with it, but never damages the file.

One process writes (a lock beside the file holds that), any number read meanwhile.

A label hangs on a caption and a key (prompt, goal, model, mode, sampling). Rows are numbered by `seq`, which only
grows, so `labels_since` is a cursor that misses nothing and repeats nothing. A run that resumes from a checkpoint
sets the labels given after that checkpoint *aside*: they are invisible to the cursor until the annotator comes to
the caption again, which then costs no question, and get a new `seq`. So a resumed run meets labels in the order in
which an uninterrupted one does, and pays for none twice.

Beside the file lies a second copy of all that was written (`mirror`). A file that is damaged when it is opened for writing is
set aside and made anew from the copy; where that is damaged too, opening fails.
"""

import json
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import astuple, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from reward_server import mirror
from reward_server.label_rows import LabelRecord, LabelRows, to_bytes
from reward_server.pair_table import PAIR_SCHEMA, PairTable
from reward_server.types import Answer, JudgeKey
from reward_server.writer_lock import LockHeldError, WriterLock

SCHEMA_VERSION = 1

_CHECKED_BYTES = 256 * 1024 * 1024
"""Files up to this size are checked for damage when they are opened (about a second for the largest)."""

_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE captions (id INTEGER PRIMARY KEY, text TEXT NOT NULL, first_seen REAL NOT NULL);
CREATE TABLE keys (
    id INTEGER PRIMARY KEY,
    prompt_version TEXT NOT NULL, goal TEXT NOT NULL, model TEXT NOT NULL, mode TEXT NOT NULL, sampling TEXT NOT NULL,
    created REAL NOT NULL,
    UNIQUE (prompt_version, goal, model, mode, sampling)
);
CREATE TABLE labels (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    caption_id INTEGER NOT NULL REFERENCES captions (id),
    key_id INTEGER NOT NULL REFERENCES keys (id),
    state TEXT NOT NULL CHECK (state IN ('labelled', 'failed')),
    label INTEGER CHECK (label IN (0, 1)),
    probability REAL CHECK (probability BETWEEN 0 AND 1),
    raw TEXT NOT NULL,
    latency_s REAL NOT NULL,
    attempts INTEGER NOT NULL,
    created REAL NOT NULL,
    aside INTEGER NOT NULL DEFAULT 0 CHECK (aside IN (0, 1)),
    UNIQUE (caption_id, key_id),
    CHECK ((state = 'labelled') = (label IS NOT NULL))
);
"""


class AnnotationStoreError(Exception):
    """The store cannot be opened, read or written. The message names the file, the cause and what to do."""


class DamagedStoreError(AnnotationStoreError):
    """The file is not what was written into it. Opened again it is made anew from its copy, where that is whole."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """A caption with its label, as the distiller reads it."""

    seq: int
    caption_id: int
    text: str
    label: int
    probability: float | None


@dataclass(frozen=True, slots=True)
class GivenAnswer:
    """An answer as it was written, under whichever key."""

    seq: int
    caption_id: int
    state: str
    """`labelled`, or `failed` where none could be read."""
    answer: Answer
    attempts: int
    created: float
    """Seconds since the epoch."""
    key: JudgeKey


@dataclass(frozen=True, slots=True)
class StoreCounts:
    """Captions in the file, and labels and failures (under one key, or all)."""

    captions: int
    labelled: int
    failed: int


class AnnotationStore:
    """SQLite behind one writer. Its methods may be called from any thread; each write is one transaction.

    Raises `AnnotationStoreError` from every method where the file cannot be used.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        read_only: bool = False,
        clock: Callable[[], float] = time.time,
        timeout_s: float = 10.0,
    ) -> None:
        self.path = Path(path)
        self.read_only = read_only
        self._clock = clock
        self._guard = threading.RLock()
        self._key_ids: dict[JudgeKey, int] = {}
        self._rows = LabelRows(self, "labels", "caption_id", clock)
        self._pairs = PairTable(self, clock)
        self._lock: WriterLock | None = None
        self._copied = self._behind = False
        """Whether there is a copy, and whether it may lack what the file has."""
        self.damaged: Path | None = None
        """Where the file lies now that was found damaged, and made anew from its copy, when it was opened."""
        if not read_only:
            self._lock = self._take_lock()
        elif not self.path.is_file():
            self._refuse("there is no such file", "check the path of the run")
        try:
            with self._translated():
                if not read_only:
                    self._set_damaged_aside()
                self._db = self._connect(timeout_s)
                try:
                    self._prepare()
                    if not read_only:
                        mirror.attach(self._db, self.path)
                        self._copied = True
                except BaseException:
                    self._db.close()
                    raise
        except BaseException:
            if self._lock is not None:
                self._lock.release()
            raise

    # -- writing ------------------------------------------------------------------------------------------------

    def add_captions(self, captions: Iterable[tuple[int, str]]) -> int:
        """Adds (id, text) pairs; those already there stay as they are. Returns how many were new."""
        with self.transaction() as db:
            return self.insert_captions(db, captions)

    def write(self, key: JudgeKey, records: Sequence[LabelRecord], captions: Iterable[tuple[int, str]] = ()) -> int:
        """Writes answers (and the captions that they are about, where these may be new) in one transaction.

        A label never gives way, neither to a failure nor to another label; a failure gives way to a label or a later
        failure. Returns how many rows were written.
        """
        with self.transaction() as db:
            self.insert_captions(db, captions)
            return self._rows.write(db, key, records)

    def set_aside(self, key: JudgeKey, after: int) -> int:
        """Hides the labels with `seq` above `after` from `labels_since` until they are written again; how many."""
        return self._rows.set_aside(key, after)

    @property
    def pairs(self) -> PairTable:
        """The pairs of captions that were compared, and their labels."""
        return self._pairs

    # -- reading ------------------------------------------------------------------------------------------------

    def labels_since(self, cursor: int, key: JudgeKey, limit: int = -1) -> tuple[list[Labelled], int]:
        """Labels written after `cursor` (0: from the first) in the order of writing, and the cursor behind them."""
        rows = self.query(
            "SELECT seq, caption_id, text, label, probability FROM labels JOIN captions ON captions.id = caption_id"
            " WHERE seq > ? AND key_id = ? AND state = 'labelled' AND NOT aside ORDER BY seq LIMIT ?",
            (cursor, self.find_key(key), limit),
        )
        labels = [Labelled(*row) for row in rows]
        return labels, labels[-1].seq if labels else cursor

    def cursor(self, key: JudgeKey) -> int:
        """The cursor behind the newest visible label; 0 where there is none."""
        return self._rows.cursor(key)

    def labelled_ids(self, key: JudgeKey) -> set[int]:
        """Ids of the captions that have a label under the key and are not set aside."""
        return self._rows.labelled_ids(key)

    def failed_ids(self, key: JudgeKey) -> set[int]:
        """Ids of the captions about which no answer could be read."""
        return self._rows.failed_ids(key)

    def aside(self, key: JudgeKey) -> dict[int, LabelRecord]:
        """Labels that were set aside, by caption id."""
        return self._rows.aside(key)

    def question(self, state: Any) -> str:
        """A caption's text as a checkpoint holds it."""
        return str(state)

    def records(self, key: JudgeKey) -> dict[int, LabelRecord]:
        """All labels under the key by caption id, those set aside included."""
        return self._rows.records(key)

    def texts(self, ids: Iterable[int]) -> dict[int, str]:
        """Texts of those of the captions that the store knows."""
        wanted = json.dumps([int(i) for i in ids])
        sql = "SELECT id, text FROM captions WHERE id IN (SELECT value FROM json_each(?))"
        return dict(self.query(sql, (wanted,)))

    def unlabelled(self, key: JudgeKey, limit: int = -1) -> list[tuple[int, str]]:
        """Captions (id, text) without a label under the key, oldest first: what an offline run would ask about."""
        sql = (
            "SELECT id, text FROM captions WHERE NOT EXISTS (SELECT 1 FROM labels WHERE caption_id = captions.id"
            " AND key_id = ? AND state = 'labelled') ORDER BY first_seen, rowid LIMIT ?"
        )
        return [(row[0], row[1]) for row in self.query(sql, (self.find_key(key), limit))]

    def keys(self) -> list[JudgeKey]:
        """The keys under which anything was asked, oldest first."""
        return [JudgeKey(*row) for row in self.query(f"SELECT {_KEY_COLUMNS} FROM keys ORDER BY id", ())]

    def counts(self, key: JudgeKey | None = None) -> StoreCounts:
        """Counts under `key`, or over all keys. Labels that are set aside count: they were paid for."""
        captions = self.query("SELECT count(*) FROM captions", ())[0][0]
        return StoreCounts(captions, *self._rows.counts(key))

    def table(self) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
        """Every label and failure with its caption and key, in the order of writing: names of the columns, and rows."""
        columns = ("caption_id", "text", "state", "label", "probability", "raw", "latency_s", "attempts", "created")
        names = (*columns, *_KEY_COLUMNS.split(", "))
        selected = ", ".join("labels.created" if name == "created" else name for name in names)
        rows = self.query(
            f"SELECT {selected} FROM labels JOIN captions ON captions.id = caption_id"
            " JOIN keys ON keys.id = key_id ORDER BY seq",
            (),
        )
        return names, rows

    def export_jsonl(self, path: str | Path) -> int:
        """Writes every label and failure with its caption and key, one JSON object a line; returns how many."""
        target = Path(path)
        partial = target.with_name(target.name + ".part")
        names, rows = self.table()
        with partial.open("w", encoding="ascii") as file:
            file.writelines(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows)
        partial.replace(target)
        return len(rows)

    def captions(self) -> list[tuple[int, str]]:
        """All captions (id, text), oldest first."""
        return [(row[0], row[1]) for row in self.query("SELECT id, text FROM captions ORDER BY first_seen, rowid", ())]

    # -- the end ------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Closes the file and gives the lock back. Closing twice is no error."""
        with self._guard, self._translated():
            self._db.close()
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- inside -------------------------------------------------------------------------------------------------

    def _take_lock(self) -> WriterLock:
        try:
            return WriterLock(self.path)
        except LockHeldError as error:
            raise AnnotationStoreError(
                f"annotation store {self.path} is being written by process {error.owner}; "
                "end that run, or give this one another `run.name`"
            ) from error
        except OSError as error:
            raise AnnotationStoreError(
                f"annotation store {self.path}: {error}; make its folder writable, or choose another `run.dir`"
            ) from error

    def _connect(self, timeout_s: float) -> sqlite3.Connection:
        target: str = str(self.path)
        if self.read_only:
            target = f"{self.path.absolute().as_uri()}?mode=ro"
        db = sqlite3.connect(
            target, timeout=timeout_s, isolation_level=None, check_same_thread=False, uri=self.read_only
        )
        db.text_factory = _text
        return db

    def _set_damaged_aside(self) -> None:
        """Makes room for another file where this one is damaged and its copy is whole."""
        copy = mirror.mirror_path(self.path)
        if not copy.is_file() or not self.path.is_file() or self.path.stat().st_size > _CHECKED_BYTES:
            return
        if mirror.damage(self.path) is not None and mirror.damage(copy) is None:
            self.damaged = mirror.set_aside(self.path)

    def _prepare(self) -> None:
        db = self._db
        if self.path.stat().st_size <= _CHECKED_BYTES:
            verdict = db.execute("PRAGMA quick_check(1)").fetchone()[0]
            if verdict != "ok":
                raise sqlite3.DatabaseError(f"the file is damaged: {verdict}")
        db.execute("PRAGMA foreign_keys = ON")
        tables = {row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if not self.read_only:
            mode = db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
            # Without a log (some network file systems) only an fsync of each commit keeps the file whole.
            db.execute(f"PRAGMA synchronous = {'NORMAL' if mode == 'wal' else 'FULL'}")
            if not tables:
                with self.transaction():
                    for statement in (_SCHEMA + PAIR_SCHEMA).split(";\n"):
                        db.execute(statement)
                    db.execute("INSERT INTO meta VALUES ('schema_version', ?)", (str(SCHEMA_VERSION),))
                return
        if "meta" not in tables:
            self._refuse("it is an SQLite file, but not an annotation store", "name another file")
        version = int(db.execute("SELECT value FROM meta WHERE name = 'schema_version'").fetchone()[0])
        if version != SCHEMA_VERSION:
            self._refuse(
                f"its schema has version {version}, this program reads version {SCHEMA_VERSION}",
                "use the version of yendor that wrote it, or start a new run",
            )
        if "pair_labels" not in tables:
            self._add_pairs()

    def _add_pairs(self) -> None:
        """Gives a file of an earlier version its tables of pairs; a reader sees empty ones instead."""
        schema = PAIR_SCHEMA
        if self.read_only:
            schema = schema.replace("CREATE TABLE IF NOT EXISTS", "CREATE TEMP TABLE")
            schema = re.sub(r" REFERENCES \w+ \(id\)", "", schema)
            for statement in schema.split(";\n"):
                self._db.execute(statement)
            return
        with self.transaction() as db:
            for statement in schema.split(";\n"):
                db.execute(statement)

    def insert_captions(self, db: sqlite3.Connection, captions: Iterable[tuple[int, str]]) -> int:
        now = self._clock()
        return db.executemany(
            "INSERT INTO captions VALUES (?, CAST(? AS TEXT), ?) ON CONFLICT (id) DO NOTHING",
            ((caption_id, to_bytes(text), now) for caption_id, text in captions),
        ).rowcount

    def add_key(self, db: sqlite3.Connection, key: JudgeKey) -> int:
        if (key_id := self.find_key(key)) < 0:
            values = (*astuple(key), self._clock())
            db.execute(f"INSERT INTO keys ({_KEY_COLUMNS}, created) VALUES (?, ?, ?, ?, ?, ?)", values)
            return self.find_key(key)
        return key_id

    def find_key(self, key: JudgeKey) -> int:
        """The row of a key; -1, which no row has, where it is not known yet."""
        known = self._key_ids.get(key)
        if known is not None:
            return known
        rows = self.query(f"SELECT id FROM keys WHERE ({_KEY_COLUMNS}) = (?, ?, ?, ?, ?)", astuple(key))
        if not rows:
            return -1
        if not self._db.in_transaction:  # a row of a transaction that may be rolled back is not remembered
            self._key_ids[key] = rows[0][0]
        return rows[0][0]

    def query(self, sql: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
        with self._guard, self._translated():
            return self._db.execute(sql, tuple(parameters)).fetchall()

    @contextmanager
    def transaction(self) -> Generator[sqlite3.Connection]:
        with self._guard, self._translated():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                if self._behind:
                    mirror.level(self._db)
                yield self._db
                self._db.execute("COMMIT")
                self._behind = False
            except BaseException:
                self._behind = self._copied
                # A full disk may have rolled back already; the error to report is the first one.
                with suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _translated(self) -> Generator[None]:
        try:
            yield
        except sqlite3.Error as error:
            cause = str(error)
            kind = DamagedStoreError if mirror.is_damage(cause) else AnnotationStoreError
            raise kind(f"annotation store {self.path}: {cause}; {self._remedy(cause)}") from error

    def _remedy(self, cause: str) -> str:
        if mirror.is_damage(cause):
            copy = mirror.mirror_path(self.path)
            if self.read_only and copy.is_file():
                return "its run makes it anew from its copy when it goes on (--resume)"
            away = f"{copy.name} cannot replace it: move both away" if copy.is_file() else "move it away"
            return (
                f"{away} to begin a new one (what can be read of it: "
                f"sqlite3 {self.path} .recover | sqlite3 recovered.sqlite)"
            )
        if "full" in cause or "disk I/O" in cause:
            return "free space on that disk; labels that were not written are kept and written then"
        if "readonly" in cause:
            return "make the file and its folder writable, or choose another `run.dir`"
        if "locked" in cause:
            return "end the other program that writes into it"
        if "unable to open" in cause:
            return "check that it is a file, and that its folder may be written into"
        if "closed" in cause:
            return "it was closed before its last use"
        return "see the cause above"

    def _refuse(self, cause: str, remedy: str) -> None:
        raise AnnotationStoreError(f"annotation store {self.path}: {cause}; {remedy}")


def answers_after(path: Path, seq: int = 0, timeout_s: float = 10.0) -> list[GivenAnswer]:
    """All answers in the store at `path` that were written after number `seq`, in their order.

    Only reads, also while another process writes, and does not look the file over for damage as a store does that is
    opened: it can be asked often. Raises `AnnotationStoreError`.
    """
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=timeout_s)) as db:
            db.text_factory = _text
            rows = db.execute(
                "SELECT seq, caption_id, state, label, probability, raw, latency_s, attempts, labels.created,"
                f" {_KEY_COLUMNS} FROM labels JOIN keys ON keys.id = key_id WHERE seq > ? ORDER BY seq",
                (seq,),
            ).fetchall()
    except sqlite3.Error as error:
        raise AnnotationStoreError(f"annotation store {path}: the labels cannot be read: {error}") from error
    return [
        GivenAnswer(number, caption, state, Answer(label, probability, raw, took), attempts, created, JudgeKey(*key))
        for number, caption, state, label, probability, raw, took, attempts, created, *key in rows
    ]


_KEY_COLUMNS = "prompt_version, goal, model, mode, sampling"


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogatepass")
