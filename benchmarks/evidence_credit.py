"""Does stepwise credit help a recurrent agent on a sparse MiniHack task? Ways of giving it beside plain V-trace, over seeds."""

import argparse
from pathlib import Path

from benchmarks.evidence_runs import Study, compare

_NOTHING = ("reward.w_prog=0", "reward.w_ground=0")
KINDS = {
    "vtrace": _NOTHING,
    "outcome": (*_NOTHING, "credit.method=outcome"),
    "spa": ("credit.method=spa", "reward.w_ground=0"),
    "spa+grounding": (),
    "potential": ("credit.method=potential", "reward.w_ground=0"),
}
"""Names as in plots, and what each changes in the preset `minihack_spa`."""
TASKS = ("minihack/KeyRoom-S5",)


def main(folder: Path, *options: str) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks evidence_credit", description=__doc__)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=("vtrace", "spa", "spa+grounding"))
    parser.add_argument("--tasks", nargs="+", default=TASKS, help="environment ids")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=700_000, help="environment steps of each run")
    parser.add_argument("--set", nargs="*", default=[], metavar="KIND:key=value", help="`all:` for all kinds")
    chosen = parser.parse_args(options)
    study = Study(
        stem="evidence_credit",
        preset="minihack_spa",
        tasks=chosen.tasks,
        models=chosen.kinds,
        seeds=chosen.seeds,
        steps=chosen.steps,
        measure="success",
        more=chosen.set,
        variants=KINDS,
    )
    compare(folder, study)
