"""Runs of the `yendor` command as a user makes them, each with a Ray of its own, and a look at what they leave behind."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psutil

from benchmarks.chaos.cluster import marked

YENDOR = str(Path(sys.executable).parent / "yendor")
_MARK = "YENDOR_TEST_MARK"


class Command:
    """One running `yendor` command; a context manager that ends what it started."""

    def __init__(
        self, *arguments: str, cwd: Path | None = None, started: str | None = None, address: str | None = None
    ) -> None:
        """`started`: the address of a cluster that `ray start` seems to have made on this machine; `address`: of one that
        the command is told to join."""
        self.mark = uuid.uuid4().hex
        # Ray's sockets lie below it, and their paths may have 107 characters.
        self.ray_dir = tempfile.mkdtemp(prefix="yr-")
        if started is not None:
            note = Path(self.ray_dir) / "ray" / "ray_current_cluster"
            note.parent.mkdir()
            note.write_text(started)
        environment = {**os.environ, _MARK: self.mark, "RAY_TMPDIR": self.ray_dir}
        # A run that goes on until its test has seen enough leaves the processors to tests that wait for them.
        environment.setdefault("RAY_worker_niceness", "10")
        environment.pop("RAY_ADDRESS", None)
        if address is not None:
            environment["RAY_ADDRESS"] = address
        self.output = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed with the object
        self.process = subprocess.Popen(
            [YENDOR, *arguments], stdout=self.output, stderr=subprocess.STDOUT, text=True, env=environment, cwd=cwd
        )

    def __enter__(self) -> "Command":
        return self

    def __exit__(self, *_: object) -> None:
        for process in [self.process, *self.left_behind()]:
            try:
                process.kill()
            except (psutil.NoSuchProcess, ProcessLookupError):
                continue
        self.process.wait()
        shutil.rmtree(self.ray_dir, ignore_errors=True)

    def text(self) -> str:
        self.output.seek(0)
        return self.output.read()

    def wait(self, timeout_s: float = 240.0) -> int:
        return self.process.wait(timeout_s)

    def until(self, true: Callable[[], bool], timeout_s: float = 240.0) -> None:
        """Waits until `true`; fails with the command's output where it ends or takes too long."""
        begun = time.monotonic()
        while not true():
            assert self.process.poll() is None, f"exited with {self.process.returncode}:\n{self.text()[-3000:]}"
            assert time.monotonic() - begun < timeout_s, f"timed out:\n{self.text()[-3000:]}"
            time.sleep(0.1)

    def processes(self) -> list[psutil.Process]:
        """All processes that descend from the command, also those that were adopted since."""
        return marked(_MARK, self.mark)

    def left_behind(self, patience_s: float = 0.0) -> list[psutil.Process]:
        """Processes that are there though the command ended; they get `patience_s` to go."""
        end = time.monotonic() + patience_s
        while True:
            left = [p for p in self.processes() if p.pid != self.process.pid]
            if not left or time.monotonic() >= end:
                return left
            time.sleep(0.2)

    def named(self, part: str) -> list[psutil.Process]:
        """The command's processes whose title holds `part`, such as `ray::RolloutWorker`."""
        return titled(self.processes(), part)


def titled(processes: Iterable[psutil.Process], part: str) -> list[psutil.Process]:
    """Those of `processes` that run and whose title holds `part`."""
    found: list[psutil.Process] = []
    for process in processes:
        try:
            if part in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:  # it ended while we looked
            continue
    return found


def engines(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """vLLM's engines among `processes`, those that are starting, too: until one has its title (and where it cannot set it) it is
    a child that `multiprocessing` spawned."""
    listed = list(processes)
    return [*titled(listed, "VLLM::EngineCore"), *titled(listed, "multiprocessing.spawn import spawn_main")]


def summary(run: Path) -> dict[str, Any]:
    """`summary.json`; empty while there is none."""
    path = run / "summary.json"
    return json.loads(path.read_text()) if path.is_file() else {}
