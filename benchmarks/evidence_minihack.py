"""Which reward model makes an agent succeed on sparse MiniHack tasks? All of them side by side, over seeds.

`--models classification@0 classification@4 classification` asks how many labels it takes.
"""

import argparse
from pathlib import Path

from benchmarks.evidence_runs import EXTRINSIC, MODELS, Study, compare, model_of

TASKS = ("minihack/KeyRoom-S5", "minihack/KeyRoom-Dark-S5")


def main(folder: Path, *options: str) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks evidence_minihack", description=__doc__)
    parser.add_argument("--models", nargs="+", type=model_of, default=(EXTRINSIC, *MODELS[:-1]))
    parser.add_argument("--tasks", nargs="+", default=TASKS, help="environment ids")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=700_000, help="environment steps of each run")
    parser.add_argument("--reward-free", action="store_true", help="w_ext=0: the intrinsic reward alone")
    parser.add_argument("--set", nargs="*", default=[], metavar="MODEL:key=value", help="`all:` for all models")
    chosen = parser.parse_args(options)
    study = Study(
        stem="evidence_minihack" + ("-reward_free" if chosen.reward_free else ""),
        preset="demo",
        tasks=chosen.tasks,
        models=[m for m in chosen.models if not (chosen.reward_free and m == EXTRINSIC)],
        seeds=chosen.seeds,
        steps=chosen.steps,
        measure="success",
        reward_free=chosen.reward_free,
        more=chosen.set,
    )
    compare(folder, study)
