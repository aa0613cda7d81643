"""One writer for a file: a lock that the kernel gives back with the death of its process."""

import fcntl
import os
import threading
from pathlib import Path

_held: set[str] = set()
"""Files that this process writes. POSIX locks do not hold within one process, so it keeps its own list."""
_guard = threading.Lock()


class LockHeldError(Exception):
    """Another writer has the file; `owner` says which process, as far as it is known."""

    def __init__(self, owner: str) -> None:
        super().__init__(f"held by process {owner}")
        self.owner = owner


class WriterLock:
    """A POSIX record lock on `<path>.lock`, held until `release` or the death of the process.

    Not `flock`: that one is handed on to forked children, and the engine of a judge that outlives a killed run must not
    hold its files. Raises `LockHeldError`, and `OSError` where the folder cannot be written.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._name = os.path.realpath(path)
        with _guard:
            if self._name in _held:
                raise LockHeldError(f"{os.getpid()} (this one)")
            self._file = os.open(f"{self._name}.lock", os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.ftruncate(self._file, 0)
                os.pwrite(self._file, str(os.getpid()).encode(), 0)
            except BlockingIOError:
                owner = os.pread(self._file, 32, 0).decode("ascii", "replace").strip() or "unknown"
                os.close(self._file)
                raise LockHeldError(owner) from None
            except OSError:
                os.close(self._file)
                raise
            _held.add(self._name)
            self._open = True

    def release(self) -> None:
        """Gives the lock back; a second time does nothing."""
        with _guard:
            if self._open:
                self._open = False
                _held.discard(self._name)
                os.close(self._file)
