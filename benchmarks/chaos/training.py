"""A training under the campaign: its driver, how it stands, and what was seen of it while it went."""

import json
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.chaos.cluster import LocalCluster
from orchestration.traces.names import SUFFIX

_LOOK_S = 1.0


@dataclass
class Seen:
    """What a user saw while the run went: none of it may be gone or changed at the end."""

    labels: dict[int, int] = field(default_factory=dict[int, int])
    """Label of each caption id that had one."""
    traces: dict[str, str] = field(default_factory=dict[str, str])
    """Digest of each finished trace."""
    most: dict[str, float] = field(default_factory=dict[str, float])
    """Highest value of the counters of `summary.json` since the driver began."""
    fell: list[str] = field(default_factory=list[str])
    """Counters that went down while one driver ran."""
    stalls: list[float] = field(default_factory=list[float])
    """Seconds without a step that was counted, longer than five."""


COUNTERS = (
    "env_steps", "policy_version", "captions_labelled", "actor_restarts", "learner_restarts", "reward_server_restarts",
    "judge_restarts", "samples_lost",
)  # fmt: skip


class Training:
    """`yendor train` on a cluster; a context manager."""

    def __init__(self, cluster: LocalCluster, folder: Path, name: str, arguments: list[str]) -> None:
        self.cluster = cluster
        self.path = folder / name
        self.command = [
            str(Path(sys.executable).parent / "yendor"), "train", *arguments, f"run.dir={folder}", f"run.name={name}", "--plain",
        ]  # fmt: skip
        self.output = folder.parent / f"{name}.log"
        self.seen = Seen()
        self.process: subprocess.Popen[bytes] | None = None
        self._guard = threading.Lock()
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def start(self, *, resume: bool = False) -> None:
        """Starts the driver."""
        with self.output.open("ab") as output:
            command = [*self.command, "--resume"] if resume else self.command
            self.process = subprocess.Popen(
                command, env=self.cluster.environment(), stdout=output, stderr=subprocess.STDOUT
            )
        with self._guard:
            self.seen.most = {}
        if not self._watcher.is_alive():
            self._watcher.start()

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def text(self) -> str:
        """What the driver said so far."""
        return self.output.read_text(errors="replace") if self.output.exists() else ""

    def summary(self) -> dict[str, Any]:
        """Its summary; empty where there is none yet."""
        try:
            return json.loads((self.path / "summary.json").read_text())
        except (OSError, ValueError):
            return {}

    def until(self, true: Callable[[dict[str, Any]], bool], timeout_s: float) -> float | None:
        """Seconds until the summary is such; None where the driver ended or time ran out."""
        began = time.monotonic()
        while time.monotonic() - began < timeout_s:
            if true(self.summary()):
                return time.monotonic() - began
            if not self.running:
                return None
            time.sleep(0.1)
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops looking on, and ends a driver that still runs."""
        self._over.set()
        if self._watcher.is_alive():
            self._watcher.join()
        if self.process is not None and self.running:
            self.process.kill()
            self.process.wait()

    # What is seen.

    def _watch(self) -> None:
        steps, since = 0, time.monotonic()
        while not self._over.wait(_LOOK_S):
            told = self.summary()
            with self._guard:
                self._look_at_counters(told)
                self._look_at_labels()
                self._look_at_traces()
            if told.get("env_steps", 0) != steps or not self.running:
                gap = time.monotonic() - since
                if gap > 5.0 and self.running and steps:
                    self.seen.stalls.append(gap)
                steps, since = told.get("env_steps", 0), time.monotonic()

    def _look_at_counters(self, told: dict[str, Any]) -> None:
        if told.get("status") != "running" or told.get("started") is None:
            return
        for name in COUNTERS:
            value, most = told.get(name) or 0, self.seen.most.get(name, 0)
            if value < most and self.seen.most.get("started") == told["started"]:
                self.seen.fell.append(f"{name}: {most} -> {value}")
            self.seen.most[name] = max(value, most) if self.seen.most.get("started") == told["started"] else value
        self.seen.most["started"] = told["started"]

    def _look_at_labels(self) -> None:
        self.seen.labels.update(labels_of(self.path / "annotations.sqlite"))

    def _look_at_traces(self) -> None:
        for path in (self.path / "traces").glob(f"*{SUFFIX}"):
            if path.name not in self.seen.traces:
                self.seen.traces[path.name] = digest(path)


def digest(path: Path) -> str:
    """Of a file's bytes."""
    return blake2b(path.read_bytes(), digest_size=16).hexdigest()


def labels_of(path: Path) -> dict[int, int]:
    """Label by caption id; nothing where the file cannot be read now."""
    if not path.exists():
        return {}
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=1.0)) as store:
            return dict(store.execute("SELECT caption_id, label FROM labels WHERE state = 'labelled'"))
    except sqlite3.Error:
        return {}
