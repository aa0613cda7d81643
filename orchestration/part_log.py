"""What a part of a run prints lies in the run's folder, `logs/PART.log`, and not in a file of Ray's that nobody finds."""

import faulthandler
import io
import os
import sys
import time
from pathlib import Path
from typing import Any


class _Forgiving(io.FileIO):
    """Loses what cannot be written (a full disk): who prints must not fail of it."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data) or 0
        except OSError:
            return len(memoryview(data).cast("B"))


def log_to(folder: Path, part: str) -> None:
    """Has this process write its standard output and error, those of its libraries and children included, behind what
    `folder/part.log` holds; when it crashes, the stack of each thread too. A part whose file cannot be opened (a full disk)
    goes on as it is, as logs are no reason to end a run.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = os.open(folder / f"{part}.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    except OSError as error:
        sys.stderr.write(f"{folder / part}.log: cannot be written: {error.strerror}\n")
        return
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    sys.stdout, sys.stderr = (
        io.TextIOWrapper(
            io.BufferedWriter(_Forgiving(fd, "w", closefd=False)), errors="backslashreplace", line_buffering=True
        )
        for fd in (1, 2)
    )
    faulthandler.enable(sys.stderr)
    sys.stderr.write(f"--- {part}, process {os.getpid()}, {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
