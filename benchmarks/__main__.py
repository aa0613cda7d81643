"""`python -m benchmarks [NAME] [--folder DIR] [options of the benchmark]`; without a name, those that `make bench` runs."""

import argparse
import importlib
import tempfile
from pathlib import Path

ROUTINE = (
    "limit",
    "versus",
    "throughput",
    "judge_cost",
    "labels",
    "alfworld",
    "text_envs",
    "language_learner",
    "language_rollouts",
    "traces",
    "startup",
    "demo",
)
"""What `make bench` runs, one after the other: about an hour and a half."""
LONG = ("memory", "growth", "evidence_textworld")
"""Half an hour of training; a thousand processes; hours of language models. Only by name."""
WITH_OPTIONS = (
    "evidence_textworld",
    "growth",
    "judge_cost",
    "labels",
    "language_learner",
    "language_rollouts",
    "limit",
    "memory",
    "startup",
    "text_envs",
    "traces",
    "versus",
)

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__, add_help=False)
    parser.add_argument("name", nargs="?", choices=sorted((*ROUTINE, *LONG)))
    parser.add_argument("--folder", type=Path, default=None, help="where runs and JSON go")
    arguments, options = parser.parse_known_args()
    if options and arguments.name not in WITH_OPTIONS:
        parser.error(f"unrecognised arguments: {' '.join(options)}; with options: {', '.join(WITH_OPTIONS)}")
    folder: Path = arguments.folder or Path(tempfile.mkdtemp(prefix="yendor-bench-"))
    folder.mkdir(parents=True, exist_ok=True)
    for name in [arguments.name] if arguments.name else ROUTINE:
        importlib.import_module(f"benchmarks.{name}").main(folder, *options)
    print(f"all figures: {folder}")
