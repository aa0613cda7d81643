"""Exports traces into a file or folder."""

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from orchestration.errors import TraceError, UsageError
from orchestration.traces.export.episode import Episode, open_episode
from orchestration.traces.export.files import new_file, new_folder, new_member
from orchestration.traces.export.registry import Format, find_format


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export wrote."""

    format: str
    out: Path
    """The file or folder that was written."""
    files: tuple[Path, ...]
    episodes: int
    unfinished: tuple[str, ...]
    """For each episode that was not finished: its file, and where it is cut."""


def export(paths: Sequence[Path], format: str, out: Path, *, pace: float | None = None) -> Exported:
    """Writes the traces in `paths` to `out` in a format (see `FORMATS`), all or nothing.

    Formats whose file holds one episode write a file for one trace, and a new folder with a file for each of several.
    A file at `out` is replaced; a folder must not exist or be empty. `pace` is for `asciicast`: frames a second, in place
    of the episode's own times.

    Raises `UsageError` for a format that does not exist or a `pace` that it has no use for, `TraceError` for a file that
    is no trace, is damaged, or cannot be written, `ResourceError` where a package that the format needs is missing.
    """
    form = find_format(format)
    if pace is not None and form.name != "asciicast":
        raise UsageError(f"a pace is for asciicast; {form.name} has none")
    if pace is not None and not 0 < pace <= 1000:
        raise UsageError(f"a pace of {pace:g} frames a second; it must be above 0, up to 1000")
    if not paths:
        raise TraceError("no traces to export")
    if any(out.resolve() == path.resolve() for path in paths):
        raise TraceError(f"{out}: is a trace that is exported; name another file")
    job = _Job(form, {} if pace is None else {"pace": pace})
    if form.holds == "folder":
        with new_folder(out) as folder:
            job.write(_all(job, paths), folder)
            names = sorted(path.name for path in folder.iterdir())
        files = tuple(out / name for name in names)
    elif form.holds == "episodes" or len(paths) == 1:
        with new_file(out) as file:
            job.write(_all(job, paths), file)
        files = (out,)
    else:
        files = _one_each(job, paths, out)
    return Exported(form.name, out, files, len(paths), tuple(job.unfinished))


class _Job:
    """A format at work."""

    def __init__(self, form: Format, options: dict[str, Any]) -> None:
        self.suffix = form.suffix
        self.unfinished: list[str] = []
        self._module: Any = importlib.import_module(f"orchestration.traces.export.{form.module}")
        self._options = options

    def open(self, path: Path) -> Episode:
        """The episode in `path`."""
        episode = open_episode(path)
        if episode.end is None:
            self.unfinished.append(f"{path}: {episode.cut or 'has no end record'}")
        return episode

    def write(self, episodes: Iterator[Episode], target: BinaryIO | Path) -> None:
        """Writes the episodes, which are read one after the other."""
        self._module.write(episodes, target, **self._options)


def _all(job: _Job, paths: Sequence[Path]) -> Iterator[Episode]:
    for path in paths:
        yield job.open(path)


def _one_each(job: _Job, paths: Sequence[Path], out: Path) -> tuple[Path, ...]:
    names: list[str] = []
    with new_folder(out) as folder:
        for path in paths:
            episode = job.open(path)
            names.append(f"{episode.header.episode_id}{job.suffix}")
            with new_member(folder, names[-1]) as file:
                job.write(iter([episode]), file)
    return tuple(out / name for name in names)
