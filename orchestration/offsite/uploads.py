"""Copies checkpoints to a URL beside the training.

Invariants: nothing here raises into the training or holds it up; at most one upload is on its way; of the checkpoints that
wait only the newest is kept. A failed one is tried again, with longer and longer pauses, until it succeeds or a newer one
takes its place.
"""

import contextlib
import shutil
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from learner.background import give_way
from learner.checkpoint import CheckpointError
from orchestration.config import Config
from orchestration.errors import first_line
from orchestration.offsite.runs import LABELS, Entry, FileSum, OffsiteRun, files_below, open_offsite, pin
from orchestration.rundir import RunDir
from reward_server.snapshot import snapshot_store

_RETRY_S = (1.0, 60.0)
"""Pauses between attempts: the first, and the longest."""


@dataclass(frozen=True, slots=True)
class News:
    """Something that a person should hear of."""

    text: str
    warning: bool


class Uploads:
    """The thread that uploads, and what it has to tell. Its methods come from one other thread."""

    def __init__(self, run: OffsiteRun, rundir: RunDir, keep: int, *, retry_s: tuple[float, float] = _RETRY_S) -> None:
        self._run = run
        self._rundir = rundir
        self._keep = keep
        self._retry_s = retry_s
        self._changed = threading.Condition()
        self._waiting: Path | None = None
        """The checkpoint to upload next."""
        self._busy = False
        self._hurry = False
        """Whether the run has ended, and waits."""
        self._thread: threading.Thread | None = None
        self._news: list[News] = []
        self._failing = False
        """Whether the last attempt was one that failed."""
        self.done = 0
        """Checkpoints that are there now, or were."""
        self.errors = 0
        """Attempts that failed."""
        self.skipped = 0
        """Checkpoints that gave way to a newer one before their upload began."""
        self.newest: str | None = None
        """URL of the newest that this process uploaded."""
        self.seconds = 0.0
        """That uploading has taken so far."""
        shutil.rmtree(rundir.uploading, ignore_errors=True)  # of a process that was killed

    def offer(self, checkpoint: Path) -> None:
        """Has a checkpoint uploaded when the one on its way is done; one that waited gives way to it."""
        with self._changed:
            if self._waiting is not None and not self._failing:
                self.skipped += 1
                if self.skipped == 1:
                    self._tell(
                        f"checkpoint {self._waiting.name} is not uploaded, as a newer one came first: uploads take longer than "
                        "checkpoint.interval_s",
                        warning=True,
                    )
            self._waiting = checkpoint
            self._changed.notify_all()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="upload", daemon=True)
            self._thread.start()

    def news(self) -> Sequence[News]:
        """What happened since the last look."""
        with self._changed:
            news, self._news = self._news, []
        return news

    @property
    def pending(self) -> bool:
        """Whether anything waits or is on its way."""
        with self._changed:
            return self._busy or self._waiting is not None

    def finish(self, timeout_s: float) -> bool:
        """Waits for what is pending, `timeout_s` at most; whether all is done. What remains is told."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            self._hurry = True
            self._changed.notify_all()
            while (self._busy or self._waiting is not None) and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(min(left, 0.2))  # so that a signal is heard
            done = not self._busy and self._waiting is None
            if not done:
                there = "none of this process is there" if self.newest is None else f"the newest there is {self.newest}"
                self._tell(
                    f"the last checkpoint was not uploaded within checkpoint.upload_wait_s={timeout_s:g}; {there}",
                    warning=True,
                )
        return done

    # In the thread.

    def _work(self) -> None:
        give_way()
        while True:
            with self._changed:
                while self._waiting is None:
                    self._changed.wait()
                checkpoint, self._waiting, self._busy = self._waiting, None, True
            try:
                self._upload(checkpoint)
            finally:
                with self._changed:
                    self._busy = False
                    self._changed.notify_all()

    def _upload(self, checkpoint: Path) -> None:
        """Uploads one, however often it takes; gives up where a newer one waits."""
        pinned = self._rundir.uploading / checkpoint.name
        entry: Entry | None = None
        done: dict[str, FileSum] = {}
        files: dict[str, Path] = {}
        pause = self._retry_s[0]
        began = time.monotonic()
        try:
            while True:
                # Whatever a file system's client raises: there is nobody to raise it to, and the next attempt may succeed.
                try:
                    files = files or self._gather(checkpoint, pinned)
                    entry = entry or self._run.place_for(int(checkpoint.name))
                    self._run.write(entry, files, done)
                    self._uploaded(entry)
                    return
                except Exception as error:
                    # Rotated away already, or damaged here: it stays as it is, and a newer one will come.
                    lasting = isinstance(error, CheckpointError) or (not files and isinstance(error, FileNotFoundError))
                    self._failed(checkpoint, error, again=not lasting)
                    if lasting:
                        return
                if self._newer_came(pause):
                    return
                pause = min(2 * pause, self._retry_s[1])
        finally:
            self.seconds += time.monotonic() - began
            shutil.rmtree(pinned, ignore_errors=True)
            with contextlib.suppress(OSError):
                self._rundir.uploading.rmdir()

    def _newer_came(self, pause: float) -> bool:
        """Waits before the next attempt; whether a newer checkpoint waits then. Pauses are short when the run has ended."""
        with self._changed:
            hurry = self._hurry
            self._changed.wait_for(
                lambda: self._waiting is not None or self._hurry != hurry, self._retry_s[0] if hurry else pause
            )
            return self._waiting is not None

    def _gather(self, checkpoint: Path, pinned: Path) -> dict[str, Path]:
        """The files to upload: the checkpoint's, and the labels that are there now, all of the checkpoint's among them."""
        pin(checkpoint, pinned)
        files = files_below(pinned)
        if self._rundir.annotations.is_file():
            labels = pinned / LABELS
            snapshot_store(self._rundir.annotations, labels)
            files = {LABELS: labels, **files}
        return files

    def _uploaded(self, entry: Entry) -> None:
        with self._changed:
            self.done += 1
            self.newest = f"{self._run.shown}/{entry.name}"
            if self._failing:
                self._tell("checkpoints are uploaded again")
            self._failing = False
        try:
            self._run.rotate(self._keep, entry)
        except Exception as error:  # as above; the next rotation finds what is left
            with self._changed:
                self.errors += 1
                self._tell(
                    f"older checkpoints in {self._run.shown} were not removed: {first_line(error)}", warning=True
                )

    def _failed(self, checkpoint: Path, error: Exception, *, again: bool) -> None:
        with self._changed:
            self.errors += 1
            if not self._failing:
                then = "it is tried again" if again else "the next is tried when it is due"
                self._tell(
                    f"checkpoint {checkpoint.name} not uploaded to {self._run.shown}: {first_line(error)}; {then}",
                    warning=True,
                )
            self._failing = True

    def _tell(self, text: str, *, warning: bool = False) -> None:
        self._news.append(News(text, warning))


def open_uploads(config: Config, rundir: RunDir) -> Uploads | None:
    """What copies the run's checkpoints to `checkpoint.url`; None where that is not set. Raises as `open_location`."""
    url = config.checkpoint.url
    return None if url is None else Uploads(open_offsite(url, rundir.name), rundir, config.checkpoint.keep)
