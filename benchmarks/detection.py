"""How long it takes until a part of a run that dies or stands still is noticed, and until another does its work.

A real small run: Ray, NetHack, a judge of a few thousand parameters on Ray Serve. Its parts get SIGKILL or SIGSTOP, one after
the other, again and again. Noticed: the run says so (`logs/events.log`). Replaced: the part's work goes on.
"""

import argparse
import json
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from reward_server.embedded import TrainingSettings, build

_TINY = TrainingSettings(
    steps=2, batch_size=8, hidden_size=32, layers=2, heads=2, key_value_heads=1, head_dim=32, intermediate_size=64
)
_STILL_S = 5.0
_PATIENCE_S = 300.0
_SETTINGS = (
    "nethack_score", "agent.network=fast", "actors.envs=8", "actors.rollout_length=16", "learner.batch_size=128",
    "train.env_steps=1000000000", "log.interval_s=0.2", "checkpoint.interval_s=5", "trace.rate=0.01", "judge.engine=transformers",
    "judge.max_model_len=1024", "annotator.max_labels_per_s=5", "distiller.interval_s=1", f"cluster.still_s={_STILL_S:g}",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the run: the title of its process, and what the run says of it."""

    name: str
    title: str
    died: str
    replaced: str | None
    """None: its counter of restarts has risen, and the steps that are played as well."""


PARTS = (
    Part("actor", "ray::RolloutWorker", "died and is replaced", None),
    Part("learner", "ray::LearnerWorker", "the learner (LearnerWorker) died", "the learner goes on from"),
    Part("reward server", "ray::RewardServerWorker", "the reward server died", "the reward server is there again"),
    Part("judge", "ray::ServeReplica", "a replica of the judge died", "a replica of the judge is there again"),
)


@dataclass(frozen=True, slots=True)
class Figures:
    """Seconds, of one part and one fault."""

    part: str
    fault: str
    noticed: list[float]
    replaced: list[float]
    """From the fault on; where it was stopped, those of `cluster.still_s` are among them."""


class Run:
    """A run that goes on while its parts are hurt."""

    def __init__(self, folder: Path) -> None:
        judge = build(folder / "judge", settings=_TINY, held_size=20)
        self.folder = folder / "run"
        command = [
            str(Path(sys.executable).parent / "yendor"), "train", *_SETTINGS, f"judge.model={judge}", f"run.dir={folder}",
            "run.name=run", "--overwrite", "--plain",
        ]  # fmt: skip
        self._log = (folder / "run.log").open("w")
        self.process = subprocess.Popen(command, stdout=self._log, stderr=subprocess.STDOUT)

    def events(self) -> str:
        path = self.folder / "logs" / "events.log"
        return path.read_text() if path.is_file() else ""

    def summary(self) -> dict[str, Any]:
        path = self.folder / "summary.json"
        return json.loads(path.read_text()) if path.is_file() else {}

    def until(self, true: Callable[[], bool]) -> float:
        """Waits until `true`; the seconds that it took."""
        began = time.monotonic()
        while not true():
            if self.process.poll() is not None:
                raise RuntimeError(f"the run ended: see {self._log.name}")
            if time.monotonic() - began > _PATIENCE_S:
                raise RuntimeError(f"waited for {_PATIENCE_S:g} s: see {self._log.name}")
            time.sleep(0.05)
        return time.monotonic() - began

    def settle(self) -> None:
        """Waits until all parts are at work."""
        steps = self.summary().get("env_steps", 0)
        self.until(lambda: self.summary().get("judge_status") == "ready")
        self.until(lambda: self.summary()["env_steps"] > steps + 2000 and not self.summary()["standing_still"])
        self.until(lambda: all(self.find(part) for part in PARTS))

    def find(self, part: Part) -> list[psutil.Process]:
        """Its processes."""
        found: list[psutil.Process] = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if part.title in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:  # it ended while we looked
                continue
        return found

    def hurt(self, part: Part, fault: signal.Signals) -> tuple[float, float]:
        """Seconds until the run says that something is wrong with a part, and until another does its work."""
        self.settle()
        said, before = len(self.events()), self.summary()
        (process,) = self.find(part)
        began = time.monotonic()
        process.send_signal(fault)
        words = part.died if fault is signal.SIGKILL else "stands still"
        self.until(lambda: words in self.events()[said:])
        noticed = time.monotonic() - began
        if part.replaced is not None:
            self.until(lambda: str(part.replaced) in self.events()[said:])
        else:
            self.until(lambda: self.summary()["actor_restarts"] > before["actor_restarts"])
            steps = self.summary()["env_steps"]
            self.until(lambda: self.summary()["env_steps"] > steps)
        return noticed, time.monotonic() - began

    def close(self) -> None:
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self._log.close()


def main(folder: Path, *options: str) -> None:
    """Prints a row for each part and fault, and writes `detection.json`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks detection", description=__doc__)
    parser.add_argument("--kills", type=int, default=5, help="SIGKILLs of each part")
    parser.add_argument("--stops", type=int, default=3, help="SIGSTOPs of each part")
    arguments = parser.parse_args(options)
    found: list[Figures] = []
    run = Run(folder)
    try:
        print(f"{'part':<14} {'fault':<8} {'times':>5}   noticed after (median, most)   replaced after (median, most)")
        for fault, times in ((signal.SIGKILL, arguments.kills), (signal.SIGSTOP, arguments.stops)):
            for part in PARTS:
                pairs = [run.hurt(part, fault) for _ in range(times)]
                if not pairs:
                    continue
                figures = Figures(part.name, fault.name, [p[0] for p in pairs], [p[1] for p in pairs])
                found.append(figures)
                shown = "   ".join(
                    f"{statistics.median(values):>12.1f} s {max(values):>10.1f} s    "
                    for values in (figures.noticed, figures.replaced)
                )
                print(f"{part.name:<14} {fault.name:<8} {times:>5}   {shown}", flush=True)
    finally:
        run.close()
    (folder / "detection.json").write_text(json.dumps([asdict(each) for each in found], indent=2))
