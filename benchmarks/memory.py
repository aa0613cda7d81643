"""A soak: every process of a run sampled for half an hour. Peak memory, and what grows after warm-up: memory, open files,
threads, and the queue of captions; bytes on the wire."""

import argparse
import json
import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.runs import Measured, train

JUDGE = "judge"
ROLES = {
    "ServeReplica:judge": JUDGE,
    "VLLM::": JUDGE,
    "EngineCore": JUDGE,
    "ray::RolloutWorker": "actors",
    "ray::LearnerWorker": "learner",
    "ray::LearnerFollower": "learner",
    "ray::RewardServerWorker": "reward server",
    "yendor train": "coordinator",
}
"""What a command line holds -> the part of the run that it is. All other processes are Ray's own."""
REST = "ray"
STORE = "object store"
"""Ray's, in shared memory: what is there now of the segment that all processes of a node map."""
RUN = ["nethack_score", "agent.network=fast", "learner.batch_size=2048", "actors.count=2", "actors.cpus=0.5"]
COUNTED = ("open_files", "threads")
WARM_SHARE = 0.2
"""Of the samples, left out of the growth: caches, buffers and the object store fill."""
_COMPARED_SHARE = 0.2
"""Of the samples after warm-up, at either end, whose medians are compared."""


@dataclass(frozen=True)
class Sample:
    """All processes of the run at one moment, by role."""

    seconds: float
    """Since the first sample."""
    memory_mb: dict[str, float]
    """Proportional set sizes: a page that k processes share counts 1/k in each of them; shared memory apart, as `STORE`."""
    cpu_s: dict[str, float]
    """Processor time since each process began; processes that ended count with their last sample."""
    open_files: dict[str, int] = field(default_factory=dict[str, int])
    """File descriptors, sockets among them."""
    threads: dict[str, int] = field(default_factory=dict[str, int])

    @property
    def total_mb(self) -> float:
        """All but the judge's."""
        return sum(size for role, size in self.memory_mb.items() if role != JUDGE)


@dataclass
class Sampler:
    """Samples this process's descendants every `period_s` seconds while its `with` block runs."""

    period_s: float
    without: Sequence[int] = ()
    """Process ids that are no part of the run."""
    samples: list[Sample] = field(default_factory=list[Sample])

    def __enter__(self) -> "Sampler":
        self._began = time.monotonic()
        self._cpu: dict[tuple[int, float], tuple[str, float]] = {}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._end.wait(self.period_s):
            self.samples.append(self._sample())

    def _sample(self) -> Sample:
        memory: dict[str, float] = {}
        files: dict[str, int] = {}
        threads: dict[str, int] = {}
        for process in psutil.Process().children(recursive=True):
            if process.pid in self.without:
                continue
            try:
                line = " ".join(process.cmdline())
                size, shared = resident_mb(process.pid)
                times = process.cpu_times()
                began = process.create_time()
                opened, running = process.num_fds(), process.num_threads()
            except (psutil.Error, OSError):  # it ended meanwhile
                continue
            role = next((role for mark, role in ROLES.items() if mark in line), REST)
            if role != JUDGE:
                size -= shared
                memory[STORE] = memory.get(STORE, 0.0) + shared
            memory[role] = memory.get(role, 0.0) + size
            files[role] = files.get(role, 0) + opened
            threads[role] = threads.get(role, 0) + running
            self._cpu[process.pid, began] = role, times.user + times.system
        cpu: dict[str, float] = {}
        for role, seconds in self._cpu.values():
            cpu[role] = cpu.get(role, 0.0) + seconds
        return Sample(time.monotonic() - self._began, memory, cpu, files, threads)


def resident_mb(pid: int) -> tuple[float, float]:
    """A process's proportional set size, and the part of it that is shared memory, in MB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    sizes = {
        name: int(rest.split()[0]) / 2**10
        for name, _, rest in (line.partition(":") for line in lines)
        if name.startswith("Pss")
    }
    return sizes.get("Pss", 0.0), sizes.get("Pss_Shmem", 0.0)


def growth(values: Sequence[float]) -> float:
    """Growth in per cent from the first to the last fifth (medians) of `values` after warm-up; 0.0 for too few."""
    settled = values[int(len(values) * WARM_SHARE) :]
    width = max(1, int(len(settled) * _COMPARED_SHARE))
    if len(settled) < 2 * width:
        return 0.0
    first, last = statistics.median(settled[:width]), statistics.median(settled[-width:])
    return 100.0 * (last / first - 1.0) if first else 0.0


def main(folder: Path, *arguments: str) -> None:
    """`--minutes M` (30), `--period SECONDS` (5), further `key=value` of the run. Prints a table, writes `memory.json`."""
    parser = argparse.ArgumentParser(prog="memory", description=main.__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--period", type=float, default=5.0)
    options, keys = parser.parse_known_args(arguments)
    seconds = options.minutes * 60.0
    with Sampler(options.period) as sampler:
        run = train(folder, "memory", *RUN, f"train.max_wall_s={seconds}", *keys, timeout_s=seconds + 300.0)
    report = figures(run, sampler.samples)
    (folder / "memory.json").write_text(json.dumps(report, indent=2))
    roles = sorted({role for sample in sampler.samples for role in sample.memory_mb})
    within = training(run, sampler.samples)
    print(f"\n{run.command}\n\n| | peak, MB | growth after warm-up, % | open files | threads |\n|---|---|---|---|---|")
    for role in roles:
        sizes = [sample.memory_mb.get(role, 0.0) for sample in within]
        counts = [first_and_last([getattr(sample, what).get(role, 0) for sample in within]) for what in COUNTED]
        print(f"| {role} | {max(sizes, default=0.0):,.0f} | {growth(sizes):+.1f} | {' | '.join(counts)} |")
    print(f"| **all, judge apart** | {report['peak_mb']:,.0f} | {report['growth_percent']:+.1f} | | |")
    queued = [line["metrics"].get("captions/queued") or 0.0 for line in run.lines]
    print(f"\ncaptions that wait: {first_and_last(queued)}")
    print(f"\nbytes a step on the wire: {report['bytes_per_step']:,.0f} of {report['env_steps']:,} steps")


def first_and_last(values: Sequence[float]) -> str:
    """The medians of the first and of the last fifth of `values` after warm-up."""
    settled = values[int(len(values) * WARM_SHARE) :]
    width = max(1, int(len(settled) * _COMPARED_SHARE))
    if not settled:
        return "-"
    return f"{statistics.median(settled[:width]):,.0f} → {statistics.median(settled[-width:]):,.0f}"


def training(run: Measured, samples: Sequence[Sample]) -> list[Sample]:
    """The samples between the first step and the last: starting and ending are no growth."""
    first = float(run.summary["first_step_s"] or 0.0)
    length = float(run.lines[-1]["time"]["wall_s"]) if run.lines else 0.0
    return [sample for sample in samples if first <= sample.seconds <= first + length]


def figures(run: Measured, samples: Sequence[Sample]) -> dict[str, object]:
    """What `memory.json` holds."""
    within = training(run, samples)
    return {
        "command": run.command,
        "env_steps": run.summary["env_steps"],
        "captions": run.summary["captions_unique"],
        "peak_mb": max((sample.total_mb for sample in samples), default=0.0),
        "growth_percent": growth([sample.total_mb for sample in within]),
        "bytes_per_step": run.median("metrics", "rollout/bytes_per_step"),
        "samples": [
            {"seconds": round(sample.seconds, 1), **{role: round(mb, 1) for role, mb in sample.memory_mb.items()}}
            for sample in samples
        ],
    }
