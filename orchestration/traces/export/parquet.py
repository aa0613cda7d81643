"""Parquet: one table of transitions, a row a step."""

from collections.abc import Iterable
from typing import BinaryIO

from orchestration.traces.export import table
from orchestration.traces.export.episode import Episode


def write(episodes: Iterable[Episode], file: BinaryIO) -> None:
    """Writes the transitions of all episodes."""
    table.write_parquet(episodes, table.transition_schema(), table.transitions, file)
