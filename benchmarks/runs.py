"""Runs `yendor train` as a user would and reads off what it did."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

_SAMPLE_S = 5.0
"""Adding up proportional set sizes takes a tenth of a second of the processor that the run needs."""


@dataclass(frozen=True)
class Measured:
    """One finished run."""

    command: str
    summary: dict[str, Any]
    lines: list[dict[str, Any]]
    """`metrics.jsonl`."""
    peak_mb: float
    """Largest sum over the run's processes (the judge's apart) of proportional set sizes."""
    peak_judge_mb: float

    def median(self, group: str, name: str, skip: float = 0.3) -> float | None:
        """Median of a metric over the run, its first share `skip` left out."""
        values = [line[group].get(name) for line in self.lines]
        values = [v for v in values[int(len(values) * skip) :] if v is not None]
        return statistics.median(values) if values else None

    def share(self, name: str, skip: float = 0.3) -> float:
        """Mean share of wall time that a part spent on something (`part/what`), the first share `skip` of the run left out.
        Not a median: what comes in bursts would vanish in it."""
        values = [line["time"].get(name) or 0.0 for line in self.lines]
        values = values[int(len(values) * skip) :]
        return statistics.fmean(values) if values else 0.0


def train(folder: Path, name: str, *arguments: str, timeout_s: float = 3600.0) -> Measured:
    """Runs `yendor train ARGUMENTS` to its end in `folder`. Raises RuntimeError with its output where it fails."""
    command = [
        str(Path(sys.executable).parent / "yendor"), "train", *arguments,
        f"run.dir={folder}", f"run.name={name}", "--overwrite", "--plain",
    ]  # fmt: skip
    began = time.monotonic()
    log = folder / f"{name}.log"
    folder.mkdir(parents=True, exist_ok=True)
    peak = peak_judge = 0.0
    before = {p.pid for p in psutil.process_iter()}
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        while process.poll() is None:
            memory, judge = _memory(before)
            peak, peak_judge = max(peak, memory), max(peak_judge, judge)
            with suppress(subprocess.TimeoutExpired):
                process.wait(_SAMPLE_S)
            if time.monotonic() - began > timeout_s:
                process.terminate()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} exited with {process.returncode}:\n{log.read_text()[-3000:]}")
    return measured(folder / name, arguments, peak, peak_judge)


def measured(run: Path, arguments: Sequence[str], peak_mb: float = 0.0, peak_judge_mb: float = 0.0) -> Measured:
    """What a run's folder says of it, which `yendor train ARGUMENTS` made."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    shown = " ".join(["yendor", "train", *arguments])
    return Measured(shown, json.loads((run / "summary.json").read_text()), lines, peak_mb, peak_judge_mb)


def _memory(before: set[int]) -> tuple[float, float]:
    """MB of the processes that were not there before: those of the judge's engine apart from all others."""
    rest = judge = 0.0
    for process in psutil.process_iter(["name", "cmdline"]):
        if process.pid in before:
            continue
        try:
            line = " ".join(process.info["cmdline"] or [])
            size = process.memory_full_info().pss / 2**20
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if "ServeReplica:judge" in line or "VLLM::" in line or "EngineCore" in line:
            judge += size
        else:
            rest += size
    return rest, judge
