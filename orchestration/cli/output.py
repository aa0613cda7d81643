"""How commands print: tables for people, JSON for programs."""

import dataclasses
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table


def console() -> Console:
    """Standard output."""
    return Console(highlight=False)


def print_json(value: Any) -> None:
    """A value (dataclasses too) as JSON on standard output."""
    options = orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS
    console().out(orjson.dumps(value, option=options, default=str).decode(), highlight=False)


def table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Iterable[str] = (), whole: Iterable[str] = ()
) -> Table:
    """A plain table; the columns in `right` are aligned to the right, those in `whole` are not folded (names to be copied)."""
    made = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    aligned, unfolded = frozenset(right), frozenset(whole)
    for name in columns:
        justify = "right" if name in aligned else "left"
        made.add_column(name, justify=justify, overflow="fold", no_wrap=name in unfolded)
    for row in rows:
        made.add_row(*row)
    return made


def fields(value: Any) -> list[tuple[str, Any]]:
    """Names and values of a dataclass, in order."""
    return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]


def number(value: float | None, digits: int = 2) -> str:
    """A number for people, `-` for none."""
    return "-" if value is None else f"{value:,.{digits}f}"


def age(since: float) -> str:
    """How long ago a moment (seconds since the epoch) was: `5 s`, `3 min`, `2 h`, `4 d`; `-` for never."""
    if since <= 0:
        return "-"
    seconds = max(0.0, time.time() - since)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


@contextmanager
def progress_bars() -> "Generator[Callable[[str, int, int], None]]":
    """Progress bars on standard error, one for each thing that is done."""
    from rich.console import Console
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    bars = Bars(console=Console(stderr=True), transient=True)
    tasks: dict[str, TaskID] = {}

    def progress(what: str, done: int, total: int) -> None:
        name = what.partition(",")[0]
        if name not in tasks:
            tasks[name] = bars.add_task(what, total=total)
        bars.update(tasks[name], description=what, completed=done, total=total)

    with bars:
        yield progress
