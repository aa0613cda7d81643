"""A copy of an annotation store that is whole, taken while its one writer goes on."""

import sqlite3
from contextlib import closing
from pathlib import Path

from reward_server.store import AnnotationStoreError


def snapshot_store(path: Path, target: Path) -> None:
    """Copies the store at `path` to `target`, one file, as it stands between two transactions.

    By SQLite's backup, in one step: readers of a file in WAL mode hold up no writer. Raises `AnnotationStoreError`.
    """
    try:
        with (
            closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as source,
            closing(sqlite3.connect(target)) as copy,
        ):
            source.backup(copy)
            # One file: with the mode of the original it would be read with a log beside it.
            copy.execute("PRAGMA journal_mode = DELETE")
    except sqlite3.Error as error:
        raise AnnotationStoreError(f"annotation store {path}: cannot be copied to {target}: {error}") from error
