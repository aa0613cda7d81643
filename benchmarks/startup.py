"""How long a user waits: `yendor --help`, and from `yendor train` to the first environment step."""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import runs

_SCRIPT = Path(sys.executable).parent / "yendor"
COMMANDS: dict[str, tuple[str, ...]] = {
    "python -c pass": (sys.executable, "-c", "pass"),
    "yendor --help": (str(_SCRIPT), "--help"),
    "yendor config show demo": (str(_SCRIPT), "config", "show", "demo"),
}
TRAINING = {
    "yendor train demo": ("demo", "log.interval_s=0.5"),
    "yendor train nethack_score reward.model=none": ("nethack_score", "reward.model=none", "log.interval_s=0.5"),
    "yendor train nethack_score reward.model=none runtime=serial": (
        "nethack_score",
        "reward.model=none",
        "runtime=serial",
    ),
}


def main(folder: Path, *options: str) -> None:
    """Prints medians and spread and writes `startup.json`. `options` as on the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks startup", description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="of each command (default 5)")
    parser.add_argument("--runs", type=int, default=3, help="of each training run (default 3)")
    given = parser.parse_args(options)
    found = {name: [seconds(command) for _ in range(given.repeats)] for name, command in COMMANDS.items()}
    for name, keys in TRAINING.items():
        found[f"{name}: first step"] = [first_step(folder, number, keys) for number in range(given.runs)]
    print("| | each, s | median, s |\n|---|---|---|")
    for name, each in found.items():
        if each:
            print(f"| `{name}` | {', '.join(f'{x:.2f}' for x in each)} | {statistics.median(each):.2f} |")
    (folder / "startup.json").write_text(json.dumps(found, indent=2))


def seconds(command: Sequence[str]) -> float:
    """Wall time of a command."""
    began = time.perf_counter()
    subprocess.run(command, capture_output=True, check=True)
    return time.perf_counter() - began


def first_step(folder: Path, number: int, keys: Sequence[str]) -> float:
    """Seconds from the start of the process to the first steps counted, of a short run."""
    run = runs.train(folder, f"startup-{keys[0]}-{number}", *keys, "train.env_steps=20000")
    return float(run.summary["first_step_s"])
