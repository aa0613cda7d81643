"""`python -m benchmarks [NAME] [--folder DIR] [options of the benchmark]`; without a name, those that `make bench` runs."""

import argparse
import importlib
import inspect
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
    "credit",
    "language_learner",
    "language_rollouts",
    "traces",
    "trace_view",
    "trace_index",
    "startup",
    "demo",
)
"""What `make bench` runs, one after the other: about an hour and a half."""
LONG = (
    "memory", "growth", "scale", "checkpoints", "learners", "pairs", "chaos", "resumes", "detection", "evidence_minihack",
    "evidence_score", "evidence_textworld", "evidence_credit", "attribution",
)  # fmt: skip
"""Only by name: minutes each, `memory` and `detection` half an hour, `chaos` an hour, evidence hours of training."""

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__, add_help=False)
    parser.add_argument("name", nargs="?", choices=sorted((*ROUTINE, *LONG)))
    parser.add_argument("--folder", type=Path, default=None, help="where runs and JSON go")
    arguments, options = parser.parse_known_args()
    folder: Path = arguments.folder or Path(tempfile.mkdtemp(prefix="yendor-bench-"))
    folder.mkdir(parents=True, exist_ok=True)
    for name in [arguments.name] if arguments.name else ROUTINE:
        main = importlib.import_module(f"benchmarks.{name}").main
        takes = [p.kind for p in inspect.signature(main).parameters.values()][1:] == [inspect.Parameter.VAR_POSITIONAL]
        if options and not (takes and arguments.name):
            parser.error(f"unrecognised arguments: {' '.join(options)}")
        main(folder, *options)
    print(f"all figures: {folder}")
