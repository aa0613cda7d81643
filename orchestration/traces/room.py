"""Whether there is room for traces. On a disk that fills they give way first: checkpoints and labels need what is left."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

_LEAST = 256 << 20
_SHARE = 0.1
"""Of the disk: on a small one less than `_LEAST` is left free."""
_LOOK_S = 0.5
_MEASURE_S = 10.0


class Room:
    """Looks at the file system of `folder` now and then. It is of a run: checkpoints lie beside it."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.folder = folder
        self._checkpoint = folder.parent / "checkpoints" / "latest"
        self._clock = clock
        self._look_at = self._measure_at = clock()
        self._short: str | None = None
        self._bytes = 0
        """Of the newest checkpoint."""

    @property
    def share(self) -> int:
        """Bytes of a tenth of the disk."""
        return int(_SHARE * shutil.disk_usage(self._there()).total)

    @property
    def reserve(self) -> int:
        """Bytes that traces leave free: two checkpoints, as one is written while the one before it is there."""
        if self._clock() >= self._measure_at:
            self._measure_at = self._clock() + _MEASURE_S
            self._bytes = _size(self._checkpoint)
        return max(min(_LEAST, self.share), 2 * self._bytes)

    def short(self) -> str | None:
        """Why nothing should be recorded now; None where there is room. Cheap."""
        if self._clock() >= self._look_at:
            self._look_at = self._clock() + _LOOK_S
            free, reserve = shutil.disk_usage(self._there()).free, self.reserve
            # Not at every byte that comes free: what was given up once does not begin again at once.
            enough = reserve if self._short is None else 1.25 * reserve
            self._short = (
                None
                if free >= enough
                else f"only {free >> 20:,} MiB are free in {self.folder}, which checkpoints and labels need"
            )
        return self._short

    def _there(self) -> Path:
        path = self.folder.absolute()
        while not path.exists():
            path = path.parent
        return path


def _size(folder: Path) -> int:
    try:
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    except OSError:  # removed meanwhile
        return 0
