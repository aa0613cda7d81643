"""A second copy of the annotation store's file, written along with it: what a damaged file is replaced from.

SQLite keeps both in step: triggers of the writing connection repeat each row that is inserted, changed, or deleted in the
attached copy, within the same transaction. Two files are not committed as one: a crash between the two, or a disk that gets
full there, leaves the copy without what the store has. So the two are compared, and the copy made anew where they differ, when the
store is opened and after each transaction that failed.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

_TABLES = {
    "meta": ("name", "value"),
    "captions": ("id", "text", "first_seen"),
    "keys": ("id", "prompt_version", "goal", "model", "mode", "sampling", "created"),
    "labels": (
        "seq", "caption_id", "key_id", "state", "label", "probability", "raw", "latency_s", "attempts", "created", "aside",
    ),
    "pairs": ("id", "first_id", "second_id", "first_seen"),
    "pair_labels": (
        "seq", "pair_id", "key_id", "state", "label", "probability", "raw", "latency_s", "attempts", "created", "aside",
    ),
}  # fmt: skip
"""The tables of a store, each with its columns; the first is the primary key."""


def mirror_path(store: Path) -> Path:
    """Where the copy of a store lies."""
    return store.with_name(store.name + ".mirror")


def damage(path: Path) -> str | None:
    """What is wrong with a file of SQLite; None where nothing is. Raises `sqlite3.Error` where it is locked or cannot be read.

    For who may write it: reading a log that a process left behind that died takes writing.
    """
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True)) as db:
            verdict = str(db.execute("PRAGMA quick_check(1)").fetchone()[0])
            return None if verdict == "ok" else verdict
    except sqlite3.DatabaseError as error:
        if is_damage(str(error)):
            return str(error)
        raise


def is_damage(cause: str) -> bool:
    """Whether an error of SQLite says that the file is not what it wrote."""
    return any(word in cause for word in ("not a database", "malformed", "damaged"))


def set_aside(store: Path) -> Path:
    """Renames a damaged store; where it lies now. What SQLite keeps beside it goes first: it must not meet another file."""
    aside = next(path for path in _names(store) if not path.exists())
    for ending in ("-wal", "-shm"):
        store.with_name(store.name + ending).unlink(missing_ok=True)
    store.rename(aside)
    return aside


def attach(db: sqlite3.Connection, store: Path) -> None:
    """Has the connection, which writes the store, keep the copy from now on.

    A label whose caption is in neither is kept, as it was paid for: its text comes when the caption is met again.
    """
    path = mirror_path(store)
    if path.exists() and damage(path) is not None:
        for ending in ("-wal", "-shm", ""):
            path.with_name(path.name + ending).unlink(missing_ok=True)
    db.execute("ATTACH DATABASE ? AS mirror", (str(path),))
    db.execute("PRAGMA mirror.journal_mode = WAL")
    db.execute("PRAGMA mirror.synchronous = NORMAL")
    db.execute("PRAGMA foreign_keys = OFF")
    db.execute("BEGIN IMMEDIATE")
    for table, (key, *others) in _TABLES.items():
        kind = "TEXT" if table == "meta" else "INTEGER"
        db.execute(f"CREATE TABLE IF NOT EXISTS mirror.copy_of_{table} ({key} {kind} PRIMARY KEY, {', '.join(others)})")
    level(db)
    db.execute("COMMIT")
    db.execute("PRAGMA foreign_keys = ON")
    for statement in _triggers():
        db.execute(statement)


def level(db: sqlite3.Connection) -> None:
    """Within a transaction of the writing connection: where store and copy differ, each gets what it lacks of the other.

    The store all of the copy's rows, where it had to be made anew; the copy the last transaction, where that was committed in
    the store alone. So whatever dies when, nothing is gone from both.
    """
    for table, columns in _TABLES.items():
        names = ", ".join(columns)
        if _outline(db, f"main.{table}", columns) != _outline(db, f"mirror.copy_of_{table}", columns):
            db.execute(f"INSERT OR IGNORE INTO main.{table} ({names}) SELECT {names} FROM mirror.copy_of_{table}")
            db.execute(f"DELETE FROM mirror.copy_of_{table}")
            db.execute(f"INSERT INTO mirror.copy_of_{table} ({names}) SELECT {names} FROM main.{table}")


def _outline(db: sqlite3.Connection, table: str, columns: tuple[str, ...]) -> object:
    """Numbers of rows and the highest key: what tells a copy that lacks a transaction."""
    more = ", sum(aside), sum(state = 'labelled')" if "aside" in columns else ""
    return db.execute(f"SELECT count(*), max({columns[0]}){more} FROM {table}").fetchone()


def _names(store: Path) -> Iterator[Path]:
    number = 1
    while True:
        yield store.with_name(f"{store.name}.damaged-{number}")
        number += 1


def _triggers() -> Iterator[str]:
    for table, columns in _TABLES.items():
        # No database is named: SQLite forbids that in triggers. So the tables of the copy have names of their own.
        names, copy, key = ", ".join(columns), f"copy_of_{table}", columns[0]
        values = ", ".join(f"NEW.{column}" for column in columns)
        head = f"CREATE TEMP TRIGGER {copy}"
        insert = f"DELETE FROM {copy} WHERE {key} = NEW.{key}; INSERT INTO {copy} ({names}) VALUES ({values});"
        delete = f"DELETE FROM {copy} WHERE {key} = OLD.{key};"
        yield f"{head}_insert AFTER INSERT ON main.{table} BEGIN {insert} END"
        yield f"{head}_update AFTER UPDATE ON main.{table} BEGIN {insert} END"
        yield f"{head}_delete AFTER DELETE ON main.{table} BEGIN {delete} END"
