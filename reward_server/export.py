"""Labels as a Parquet file, for whatever reads tables."""

from pathlib import Path

from reward_server.store import AnnotationStore


def export_parquet(store: AnnotationStore, path: Path) -> int:
    """Writes every label and failure of the store, with caption and key, one row each; returns how many.

    The file appears whole. Lone surrogates, which Parquet's texts cannot hold, are written as `\\udc..`. Raises `OSError`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    names, rows = store.table()
    columns = dict(zip(names, zip(*rows, strict=True), strict=True)) if rows else dict.fromkeys(names, ())
    types = {
        "caption_id": pa.int64(),
        "label": pa.int8(),
        "probability": pa.float64(),
        "latency_s": pa.float64(),
        "attempts": pa.int32(),
        "created": pa.float64(),
    }
    arrays = {
        name: pa.array(values, types[name])
        if name in types
        else pa.array([str(value).encode("utf-8", "backslashreplace").decode() for value in values], pa.string())
        for name, values in columns.items()
    }
    partial = path.with_name(path.name + ".part")
    try:
        pq.write_table(pa.table(arrays), partial, compression="zstd")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return len(rows)
