"""The index of a run: one row for every traced episode, as Parquet beside the traces (`traces/index.parquet`).

It is made from the traces, never the other way round: traces that are not in it yet are read when it is asked
for, and a damaged index is made anew.
"""

import importlib
import os
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestration.errors import TraceError
from orchestration.files import write_atomically
from orchestration.traces.names import RUN_PREFIX, SCORES, SUFFIX, WAITING
from orchestration.traces.where import column_named, parse_where

if TYPE_CHECKING:
    from orchestration.traces.reader import Outline

FILE = "index.parquet"
_PART = ".part"
_FEW = 500
"""So many rows are made Python values one by one."""

COLUMNS: Mapping[str, str] = {
    "episode_id": "string",
    "run": "string",
    "env_id": "string",
    "recorded_at": "float64",
    "seconds": "float64",
    "complete": "bool_",
    "length": "int64",
    "episode_return": "float64",
    "success": "bool_",
    "terminated": "bool_",
    "truncated": "bool_",
    "error": "string",
    "kept": "string",
    "policy_version": "int64",
    "reward_model_version": "int64",
    "events": "int64",
    "forked_from": "string",
    "bytes": "int64",
    "file": "string",
    "unrewarded": "string",
}
"""Name and Arrow type of the columns that every index has; `component_NAME`, `metric_NAME` and `cost_NAME` (double) are
there as far as episodes have them. `unrewarded`: why the components of a finished episode are not known."""

ALIASES: Mapping[str, str] = {"return": "episode_return", "policy": "policy_version", "steps": "length"}
"""What a question may call a column besides."""


def row_of(outline: "Outline") -> dict[str, Any]:
    """The row of one episode."""
    header, end = outline.header, outline.end
    row: dict[str, Any] = {
        "episode_id": header.episode_id,
        "run": header.run,
        "env_id": header.env_id,
        "recorded_at": header.recorded_at,
        "complete": end is not None,
        "policy_version": header.policy_version,
        "reward_model_version": header.reward_model_version,
        "forked_from": header.forked_from,
        "bytes": outline.bytes,
        "file": outline.path.name,
    }
    if end is None:
        return row
    row |= {name: getattr(end, name) for name in ("length", "episode_return", "success", "terminated", "truncated")}
    row |= {"error": end.error, "kept": end.kept, "events": end.events, "seconds": end.t}
    for kind, values in (("component", end.components), ("metric", end.metrics), ("cost", end.costs)):
        row |= {f"{kind}_{name}": float(value) for name, value in values.items()}
    return row


@dataclass(slots=True)
class _At:
    """One row of an index, which looks up what it is asked for."""

    index: "Index"
    at: int = 0

    def __getitem__(self, name: str, /) -> Any:
        return self.index.column(name)[self.at]


class Index:
    """The rows of an index. Columns become Python values when they are asked for: a question needs two of thirty."""

    def __init__(self, table: Any) -> None:
        """`table`: of Arrow, with at least `COLUMNS`."""
        self.table = table
        self._columns: dict[str, list[Any]] = {}

    def __len__(self) -> int:
        return self.table.num_rows

    @property
    def names(self) -> list[str]:
        """Of the columns."""
        return self.table.column_names

    def column(self, name: str) -> list[Any]:
        """The values of a column, None where one is missing. Raises `KeyError` for a name that there is not."""
        found = self._columns.get(name)
        if found is None:
            found = self._columns[name] = self.table.column(name).to_pylist()
        return found

    def select(self, where: str | None = None, sort: str | None = None, *, descending: bool = False) -> list[int]:
        """Numbers of the rows that fit to `where`, in the order of the column `sort`; missing values come last.

        Raises `UsageError` for a question or a column that cannot be understood.
        """
        chosen = list(range(len(self)))
        if where is not None:
            question, row = parse_where(where, self.names, ALIASES), _At(self)
            chosen = []
            for row.at in range(len(self)):
                if question(row):
                    chosen.append(row.at)
        if sort is not None:
            values = self.column(column_named(sort, self.names, ALIASES))
            missing = [at for at in chosen if values[at] is None]
            chosen = sorted((at for at in chosen if values[at] is not None), key=values.__getitem__, reverse=descending)
            chosen += missing
        return chosen

    def rows(self, chosen: Sequence[int]) -> list[dict[str, Any]]:
        """These rows, as they are."""
        if len(chosen) > _FEW:
            return self.table.take(list(chosen)).to_pylist()
        # Of a page of a table not: `take` loads all of Arrow's functions first.
        columns = [self.table.column(name) for name in self.names]
        return [{name: column[at].as_py() for name, column in zip(self.names, columns, strict=True)} for at in chosen]


def load_index(folder: Path, *, write: bool = True) -> Index:
    """The index of the traces in `folder` (or in its `traces/`), brought up to date, by episode id.

    Only traces that are not in it yet are read: a finished one never changes. Those that are not finished are read each
    time. `write`: the index is written where it changed. Raises `TraceError` for a folder or a trace that cannot be read.
    """
    if (folder / "traces").is_dir():
        folder = folder / "traces"
    known = _read(folder / FILE)
    where = {name: at for at, name in enumerate(known.column("file"))}
    present = _names(folder, where)
    unfinished = {name for name in present if name.endswith(_PART)}
    again = _unrewarded(folder, known)
    read = _rows(folder, (present - unfinished - where.keys()) | (again & present))
    gone = [at for name, at in where.items() if name not in present or name in again or name in unfinished]
    if read or gone:
        known = _merged(known, gone, read)
        if write:
            write_index(folder / FILE, known)
    running = _rows(folder, unfinished)
    return _merged(known, [], running) if running else known


def _rows(folder: Path, names: Iterable[str]) -> list[dict[str, Any]]:
    return [row for name in sorted(names) if (row := _row(folder / name)) is not None]


def _merged(known: Index, gone: Sequence[int], rows: Sequence[Mapping[str, Any]]) -> Index:
    """`known` without the rows numbered `gone`, and with `rows`, by episode id."""
    if len(gone) + len(rows) > _FEW:
        left = set(range(len(known))) - set(gone)
        return Index(table_of([*known.rows(sorted(left)), *rows]))
    # The rest are not made Python values, which for a hundred thousand takes most of a second: slices are put together.
    pa, _ = _arrow()
    ids, fresh = known.column("episode_id"), table_of(rows)
    places = [(bisect_left(ids, name), number) for number, name in enumerate(fresh.column("episode_id").to_pylist())]
    parts: list[Any] = []
    at = 0
    for place, number in sorted([*((place, (0, number)) for place, number in places), *((at, (1, 0)) for at in gone)]):
        parts.append(known.table.slice(at, place - at))
        at = place
        if number[0]:
            at += 1
        else:
            parts.append(fresh.slice(number[1], 1))
    parts.append(known.table.slice(at))
    return Index(pa.concat_tables(parts, promote_options="default"))


def _names(folder: Path, known: Mapping[str, int]) -> set[str]:
    """Names of the traces of episodes in `folder`; those that are `known` are names of such."""
    try:
        entries = os.listdir(folder)  # noqa: PTH208 - a hundred thousand paths would take a second to make
    except OSError as error:
        raise TraceError(f"{folder}: cannot be read: {error.strerror}") from error
    present = set(entries)
    endings = (SUFFIX, SUFFIX + _PART)
    others = {name for name in present - known.keys() if not name.endswith(endings) or name.startswith(RUN_PREFIX)}
    return present - others if others else present


def _unrewarded(folder: Path, known: Index) -> set[str]:
    """Files whose rewards were not known yet when they were read, and may be now."""
    scores, index = folder / SCORES, folder / FILE
    if not scores.exists() or (index.exists() and index.stat().st_mtime_ns > scores.stat().st_mtime_ns):
        return set()
    return {name for name, why in zip(known.column("file"), known.column("unrewarded"), strict=True) if why == WAITING}


def _row(path: Path) -> dict[str, Any] | None:
    """None for a file that has nothing in it yet, or that was finished (renamed) meanwhile."""
    # What reads a trace takes longer to load than an index that is complete takes to be asked.
    from orchestration.traces.complete import Late
    from orchestration.traces.reader import read_outline

    try:
        outline = read_outline(path)
        if outline.end is None or outline.end.components:
            return row_of(outline)
        done, why = Late.beside(path.parent).complete_path(path)
        return row_of(outline if done is None else replace(outline, end=done.end)) | {"unrewarded": why}
    except TraceError:
        if path.suffix == ".part" or not path.exists():
            return None
        raise


def table_of(rows: Sequence[Mapping[str, Any]]) -> Any:
    """The Arrow table of rows, by episode id."""
    pa, _ = _arrow()
    extra = sorted({name for row in rows for name in row} - COLUMNS.keys())
    ordered = sorted(rows, key=lambda row: str(row["episode_id"]))
    kinds = {**COLUMNS, **dict.fromkeys(extra, "float64")}
    return pa.table(
        {name: pa.array([row.get(name) for row in ordered], getattr(pa, kind)()) for name, kind in kinds.items()}
    )


def write_index(path: Path, index: Index) -> None:
    """Writes an index, whole or not at all."""
    pa, pq = _arrow()
    sink = pa.BufferOutputStream()
    pq.write_table(index.table, sink, compression="zstd")
    write_atomically(path, sink.getvalue().to_pybytes(), durable=False)


def _read(path: Path) -> Index:
    """What the file has; no rows where there is none or it cannot be read (it is then made anew)."""
    pa, pq = _arrow()
    if path.is_file():
        try:
            # Not by `read_table`, for which it is a dataset, and not by threads: both take longer to begin than this to end.
            with pq.ParquetFile(path, memory_map=True) as file:
                table = file.read(use_threads=False)
        except (pa.ArrowException, OSError):
            return Index(table_of([]))
        if COLUMNS.keys() <= set(table.column_names):
            return Index(table)
    return Index(table_of([]))


def _arrow() -> tuple[Any, Any]:
    """pyarrow and its Parquet, loaded when an index is asked for; they bring no types."""
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ModuleNotFoundError as error:
        raise TraceError("the index of traces needs pyarrow: pip install pyarrow") from error
