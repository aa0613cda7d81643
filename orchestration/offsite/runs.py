"""How a run's checkpoints lie at a URL.

`URL/RUN/checkpoints/<env steps>/` holds the files of a checkpoint, `annotations.sqlite` with the labels, and
`complete.json` with size and digest of each. That file is written last and removed first, so a folder without it is none
that anything was taken from or will be: invariant, whatever dies when. A folder that has it is never written into; the
same step again, after a resume that took none, becomes `<env steps>.1`.
"""

import contextlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from learner.checkpoint import CheckpointError, new_digest, stays_inside
from orchestration.offsite.location import Location, OffsiteError, open_location

COMPLETE = "complete.json"
DAMAGED = "damaged.json"
"""What `complete.json` becomes where a checkpoint turned out damaged: it is no longer taken, and can be looked at."""
LABELS = "annotations.sqlite"
REPLACED = ".replaced"
"""Below the URL: the last run of each name that `--overwrite` replaced."""
FORMAT = 1
_BLOCK = 4 << 20
_MARKER_BYTES = 16 << 20
_NAME = re.compile(r"(\d{1,18})(?:\.(\d{1,6}))?")


class DamagedError(OffsiteError):
    """A checkpoint whose files are missing or differ from what was written."""


@dataclass(frozen=True, slots=True)
class FileSum:
    """What a file has to be."""

    bytes: int
    digest: str


@dataclass(frozen=True, slots=True, order=True)
class Entry:
    """A checkpoint at the URL, in the order of training."""

    env_steps: int
    again: int
    """0, or how many checkpoints of the same step were there before."""

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.env_steps:012d}" + (f".{self.again}" if self.again else "")

    @classmethod
    def of(cls, name: str) -> "Entry | None":
        """None for a folder that is no checkpoint."""
        match = _NAME.fullmatch(name)
        return None if match is None else cls(int(match[1]), int(match[2] or 0))


class OffsiteRun:
    """The checkpoints of one run at a URL. Whatever the file system's client raises comes out of it as it is."""

    def __init__(self, location: Location, run: str) -> None:
        self.location = location
        self.run = run
        self._fs = location.fs

    @property
    def shown(self) -> str:
        return self.location.shown(self.run, "checkpoints")

    # What is there.

    def complete(self) -> list[Entry]:
        """The checkpoints that were written to the end, the oldest first."""
        return sorted(entry for entry, names in self._folders() if COMPLETE in names)

    def _folders(self) -> Iterator[tuple[Entry, set[str]]]:
        """All folders of checkpoints with the names in each."""
        self._fs.invalidate_cache()  # other machines write there too
        for name in self._names(self._path()):
            entry = Entry.of(name)
            if entry is not None:
                yield entry, self._names(self._path(name))

    def _names(self, folder: str) -> set[str]:
        try:
            found = cast(list[Any], self._fs.ls(folder, detail=False))
        except (FileNotFoundError, NotADirectoryError):
            return set()
        return {PurePosixPath(str(path)).name for path in found}

    def _path(self, *names: str) -> str:
        return self.location.path(self.run, "checkpoints", *names)

    # Writing.

    def place_for(self, env_steps: int) -> Entry:
        """Where to write a checkpoint. What an upload that was cut off left there is removed."""
        taken: set[Entry] = set()
        for entry, names in self._folders():
            if names & {COMPLETE, DAMAGED}:
                taken.add(entry)
            else:
                self._remove(entry)
        same = [entry.again for entry in taken if entry.env_steps == env_steps]
        return Entry(env_steps, max(same) + 1 if same else 0)

    def write(self, entry: Entry, files: Mapping[str, Path], done: dict[str, FileSum]) -> None:
        """Uploads `files`, by their names in the checkpoint, and at last `complete.json`.

        `done`: those that an attempt before has written; it grows. Raises `CheckpointError` for a file that differs from
        what the checkpoint's own manifest says, and `OffsiteError` for one that is not there as it was sent.
        """
        local: dict[str, str] = json.loads(files["manifest.json"].read_text())["files"]
        for name, source in files.items():
            if name in done:
                continue
            sent = self._send(source, self._path(entry.name, *name.split("/")))
            if name in local and sent.digest != local[name]:
                raise CheckpointError(f"{source} differs from what was written, so it was not uploaded")
            done[name] = sent
        sums = {name: asdict(done[name]) for name in files}
        marker = {"format": FORMAT, "env_steps": entry.env_steps, "files": sums}
        self._fs.pipe_file(self._path(entry.name, COMPLETE), json.dumps(marker, indent=2).encode())

    def _send(self, source: Path, path: str) -> FileSum:
        self.location.make_folder(path.rpartition("/")[0])
        with source.open("rb") as file, self._fs.open(path, "wb") as out:
            sent = _copy(file, out)
        there = int(self._fs.info(path)["size"])
        if there != sent.bytes:
            raise OffsiteError(f"{path}: {there:,} bytes are there, {sent.bytes:,} were sent")
        return sent

    def rotate(self, keep: int, newest: Entry) -> None:
        """Removes all but `newest`, the last that was written, and the `keep` - 1 complete ones before it. Damaged ones go
        when they are older than those."""
        complete = [entry for entry in self.complete() if entry != newest]
        kept = {newest, *(complete[len(complete) - keep + 1 :] if keep > 1 else ())}
        for entry, names in self._folders():
            if entry not in kept and not (DAMAGED in names and entry > min(kept)):
                self._remove(entry)

    def _remove(self, entry: Entry) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self._path(entry.name, COMPLETE))
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm(self._path(entry.name), recursive=True)

    def move_aside(self) -> None:
        """Puts the run's checkpoints to `URL/.replaced/RUN`, in place of those that are there, so that another of its name can
        begin."""
        aside = OffsiteRun(Location(self.location.shown(REPLACED), self._fs, self.location.path(REPLACED),
                                    self.location.has_folders), self.run)  # fmt: skip
        complete = self.complete()
        if complete:
            aside._clear()
        for entry in complete:
            try:
                names = [*self._sums(entry), COMPLETE]
            except DamagedError:
                continue
            for name in names:
                target = aside._path(entry.name, *name.split("/"))
                self.location.make_folder(target.rpartition("/")[0])
                self._fs.cp_file(self._path(entry.name, *name.split("/")), target)
        self._clear()

    def _clear(self) -> None:
        for entry, _ in list(self._folders()):
            self._remove(entry)

    def set_aside(self, entry: Entry) -> None:
        """Has a damaged checkpoint be taken no more."""
        marker, damaged = self._path(entry.name, COMPLETE), self._path(entry.name, DAMAGED)
        self._fs.pipe_file(damaged, self._fs.cat_file(marker))
        self._fs.rm_file(marker)

    # Reading.

    def read(self, entry: Entry, folder: Path) -> None:
        """Downloads a checkpoint into the empty `folder` and checks every file. Raises `DamagedError`, which says what is wrong;
        what is there may have been made by anybody, so nothing of it is written anywhere else."""
        for name, expected in self._sums(entry).items():
            self._fetch(entry, name, expected, folder)

    def read_one(self, entry: Entry, name: str, folder: Path) -> Path:
        """The same for one of its files."""
        sums = self._sums(entry)
        if name not in sums:
            raise DamagedError(f"{COMPLETE} lists no {name}")
        return self._fetch(entry, name, sums[name], folder)

    def _fetch(self, entry: Entry, name: str, expected: FileSum, folder: Path) -> Path:
        target = folder.joinpath(*name.split("/"))
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self._fs.open(self._path(entry.name, *name.split("/")), "rb") as source, target.open("wb") as out:
                got = _copy(source, out, limit=expected.bytes)
        except FileNotFoundError:
            raise DamagedError(f"{name} is missing") from None
        if got != expected:
            raise DamagedError(f"{name} differs from what was written")
        return target

    def _sums(self, entry: Entry) -> dict[str, FileSum]:
        """What `complete.json` says."""
        path = self._path(entry.name, COMPLETE)
        try:
            if int(self._fs.info(path)["size"]) > _MARKER_BYTES:
                raise DamagedError(f"{COMPLETE} is too large")
            marker = json.loads(self._fs.cat_file(path))
            if marker["format"] != FORMAT or marker["env_steps"] != entry.env_steps:
                raise DamagedError(f"{COMPLETE} is of another checkpoint or format")
            sums = {
                str(name): FileSum(int(each["bytes"]), str(each["digest"])) for name, each in marker["files"].items()
            }
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise DamagedError(f"{COMPLETE} cannot be read") from error
        for name in sums:
            if not stays_inside(name):
                raise DamagedError(f"{COMPLETE} names {name!r}, which lies outside of it")
        return sums


def open_offsite(url: str, run: str) -> OffsiteRun:
    """The place of a run at `checkpoint.url`. Raises as `open_location`."""
    return OffsiteRun(open_location(url), run)


def _copy(source: BinaryIO, out: BinaryIO, limit: int | None = None) -> FileSum:
    """Copies a file in blocks; stops where it has more than `limit` bytes."""
    digest, size = new_digest(), 0
    while block := source.read(_BLOCK):
        size += len(block)
        if limit is not None and size > limit:
            break
        digest.update(block)
        out.write(block)
    return FileSum(size, digest.hexdigest())


def files_below(folder: Path) -> dict[str, Path]:
    """All files below `folder` by their names there, the manifest last."""
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {
        **{name: path for name, path in found.items() if name != "manifest.json"},
        "manifest.json": found["manifest.json"],
    }


def pin(checkpoint: Path, target: Path) -> None:
    """Makes `target` hold the files of a checkpoint, which stay there when it is rotated away; links where the file system
    has them, otherwise copies. Raises OSError, among them FileNotFoundError where it has gone already."""
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    link: Callable[..., Any] = _link_or_copy
    try:
        shutil.copytree(checkpoint, target, copy_function=link)
    except shutil.Error as error:  # it gathers what each file raised
        raise FileNotFoundError(str(error)) from error


def _link_or_copy(source: str, target: str) -> None:
    try:
        Path(target).hardlink_to(source)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(source, target)
