"""How many actors a user wishes a running run to have: a file in its folder, which the run looks at while it goes."""

from pathlib import Path

import orjson

from orchestration.files import write_atomically
from orchestration.rundir import RunDir


class ScaleWish:
    """The wish, and whether it is a new one."""

    def __init__(self, run: RunDir) -> None:
        self._path: Path = run.scale
        self._seen: int | None = None

    def make(self, actors: int) -> None:
        """Wishes for so many actors."""
        write_atomically(self._path, orjson.dumps({"actors": actors}))

    def take(self) -> int | None:
        """The wish where it is another than the one that was taken last, otherwise None."""
        try:
            changed = self._path.stat().st_mtime_ns
            if changed == self._seen:
                return None
            self._seen = changed
            return int(orjson.loads(self._path.read_bytes())["actors"])
        except FileNotFoundError:
            return None
