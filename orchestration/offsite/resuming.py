"""Brings a run back from its URL: configuration, newest whole checkpoint, labels."""

import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

from learner.checkpoint import CheckpointError, newest_sound_checkpoint, place_checkpoint, verify_checkpoint
from orchestration.errors import RunDirError, RunExistsError, first_line
from orchestration.files import write_atomically
from orchestration.offsite.location import OffsiteError
from orchestration.offsite.runs import LABELS, DamagedError, Entry, OffsiteRun
from orchestration.rundir import RunDir
from reward_server.snapshot import snapshot_store

_ATTEMPTS = 3
_PAUSE_S = 1.0

T = TypeVar("T")


class Tell(Protocol):
    """Tells a person of something (`LiveView.event`)."""

    def __call__(self, message: str, *, warning: bool = False) -> None: ...


def check_vacant(run: OffsiteRun) -> None:
    """Raises `RunExistsError` where checkpoints of a run of this name are there, which a new one would be mixed with."""
    complete = _asked(run, run.complete)
    if complete:
        raise RunExistsError(
            f"{run.shown}: checkpoints of a run are there, the newest {complete[-1].name}; --resume goes on with it, "
            "--overwrite starts it anew, run.name=… another"
        )


def make_vacant(run: OffsiteRun) -> None:
    """Puts away what is there of a run that is overwritten. Raises `OffsiteError`."""
    _asked(run, run.move_aside)


def fetch_config(run: OffsiteRun, folder: Path, tell: Tell) -> None:
    """Makes the run's `folder`, where nothing of it is left, with the configuration of the newest checkpoint that has one.

    Raises `CheckpointError` where there is none, and `OffsiteError` where it cannot be read.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise RunDirError(f"{folder}: exists and is no run (it has no config.yaml); choose another run.name or run.dir")
    with tempfile.TemporaryDirectory(prefix="yendor-") as temporary:
        for entry in reversed(_asked(run, run.complete)):
            try:
                path = _again(run, lambda entry=entry: run.read_one(entry, "config.yaml", Path(temporary)))
            except DamagedError as error:
                _tell_damage(run, entry, error, tell)
                continue
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / "config.yaml", path.read_bytes())
            return
    raise CheckpointError(f"no run to resume: neither {folder} nor a whole checkpoint in {run.shown}")


def catch_up(run: OffsiteRun, rundir: RunDir, tell: Tell) -> None:
    """Brings the newest whole checkpoint from the URL, with its labels, where it is newer than what the run directory has.

    A damaged one is told of, is taken no more, and the one before it is tried. Raises `OffsiteError` where the URL cannot
    be read: to go on from something older is for the user to decide.
    """
    local = newest_sound_checkpoint(rundir.checkpoints, lambda told: tell(told, warning=True))
    for entry in reversed(_asked(run, run.complete)):
        if local is not None and entry.env_steps <= int(local.name):
            return
        if _bring(run, rundir, entry, tell):
            return


def _bring(run: OffsiteRun, rundir: RunDir, entry: Entry, tell: Tell) -> bool:
    """Brings one checkpoint; False where it is damaged."""
    fetched = _emptied(rundir.uploading) / "checkpoint"
    try:
        _again(run, lambda: _read(run, entry, fetched))
    except DamagedError as error:
        _tell_damage(run, entry, error, tell)
        _asked(run, lambda: run.set_aside(entry))
        return False
    _install(rundir, fetched, entry, tell)
    tell(f"checkpoint {entry.env_steps:,} was fetched from {run.shown}")
    return True


def _tell_damage(run: OffsiteRun, entry: Entry, error: DamagedError, tell: Tell) -> None:
    tell(f"checkpoint {run.shown}/{entry.name} is damaged ({error}): the one before it is taken", warning=True)


def _read(run: OffsiteRun, entry: Entry, folder: Path) -> None:
    """Downloads and checks a checkpoint, and puts its labels beside `folder`. Raises `DamagedError`."""
    run.read(entry, _emptied(folder))
    labels = folder / LABELS
    if labels.is_file():
        labels.replace(folder.with_name(LABELS))
    try:
        verify_checkpoint(folder)
    except CheckpointError as error:
        raise DamagedError(first_line(error)) from error


def _install(rundir: RunDir, fetched: Path, entry: Entry, tell: Tell) -> None:
    """Labels first: without its checkpoint they do no harm, and after a kill all this is done again."""
    labels = fetched.with_name(LABELS)
    if labels.is_file():
        own = rundir.annotations
        if own.is_file():
            kept = own.with_name(f"annotations.before-{entry.name}.sqlite")
            if not kept.exists():
                snapshot_store(own, kept)
                tell(
                    f"the labels that were here are kept as {kept.name}; annotator.reuse={kept} takes them into other runs"
                )
            for log in ("-wal", "-shm"):  # of the file that goes
                own.with_name(own.name + log).unlink(missing_ok=True)
        labels.replace(own)
    part = rundir.checkpoints / f".{entry.env_steps:012d}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.parent.mkdir(parents=True, exist_ok=True)
    fetched.rename(part)
    place_checkpoint(part, rundir.checkpoints / f"{entry.env_steps:012d}")


def _emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _again(run: OffsiteRun, read: Callable[[], T]) -> T:
    """What `read` returns; tries again after a pause, as a connection may have been cut. Raises `OffsiteError`."""
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return _asked(run, read)
        except OffsiteError as error:
            if attempt == (2 if isinstance(error, DamagedError) else _ATTEMPTS):
                raise
            time.sleep(_PAUSE_S * 2 ** (attempt - 1))
    raise AssertionError


def _asked(run: OffsiteRun, ask: Callable[[], T]) -> T:
    """What `ask` returns. Whatever a file system's client raises becomes an `OffsiteError` that names the place."""
    try:
        return ask()
    except OffsiteError:
        raise
    except Exception as error:
        raise OffsiteError(
            f"{run.shown}: cannot be read: {first_line(error)}; checkpoint.url=null goes on with what is here"
        ) from error
