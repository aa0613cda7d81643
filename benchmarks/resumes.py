"""Is a run that is killed at random moments, and resumed each time, the run that nobody killed? Serial runs, bit for bit.

kill -9 comes at moments drawn from a seed, at starting, training and writing alike. At the end metrics and weights have to equal
those of the same run without a kill. Of runs on Ray: `python -m benchmarks chaos --only KILL_DRIVER`.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.rule_judge import RuleServer
from learner.checkpoint import checkpoints, load_policy

RUN = (
    "demo", "runtime=serial", "actors.count=2", "actors.envs=8", "actors.rollout_length=16", "learner.batch_size=256",
    "trace.rate=0.2", "judge.engine=openai", "judge.model=rules", "distiller.batch_size=16", "distiller.steps_per_update=4",
    "distiller.min_labels=4", "annotator.in_flight=1", "checkpoint.interval_s=0.5", "train.max_wall_s=null", "--plain",
)  # fmt: skip
_LIMIT_S = 3600.0


def main(folder: Path, *options: str) -> None:
    """`--kills N` (20), `--steps N` (80,000) of the run, `--seed S` of the moments; further `key=value` of the run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks resumes", description=main.__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=80_000)
    parser.add_argument("--seed", type=int, default=0)
    chosen, keys = parser.parse_known_args(options)
    with RuleServer() as judge:
        arguments = [*RUN, *keys, f"train.env_steps={chosen.steps}", f"judge.url={judge.url}", f"run.dir={folder}"]
        whole = _command(arguments, "whole")
        began = time.monotonic()
        subprocess.run(whole, check=True, stdout=subprocess.DEVNULL, timeout=_LIMIT_S)
        wall_s = time.monotonic() - began
        moments = _killed(folder, arguments, chosen.kills, random.Random(chosen.seed))
    same = {
        "metrics": metrics_of(folder / "whole") == metrics_of(folder / "killed"),
        "weights": weights_of(folder / "whole") == weights_of(folder / "killed"),
    }
    report = {"kills": len(moments), "env_steps_at_kills": moments, "whole_wall_s": wall_s, "same": same}
    (folder / "resumes.json").write_text(json.dumps(report, indent=1))
    print(
        f"{len(moments)} kills, at {min(moments):,} to {max(moments):,} steps (median {statistics.median(moments):,.0f})"
    )
    print(f"metrics equal: {same['metrics']}; weights equal bit for bit: {same['weights']}")
    if not all(same.values()):
        raise SystemExit(1)


def _killed(folder: Path, arguments: list[str], kills: int, draw: random.Random) -> list[int]:
    """Runs `killed` to its end with so many kills on the way; the steps that had been told at each."""
    moments: list[int] = []
    resume: list[str] = []
    while True:
        process = subprocess.Popen(
            [*_command(arguments, "killed"), *resume], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        # Starting takes some three seconds: some lives end there, others a few thousand steps later.
        patience_s = draw.uniform(1.5, 7.0) if len(moments) < kills else _LIMIT_S
        try:
            _, said = process.communicate(timeout=patience_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            moments.append(_steps(folder / "killed"))
            resume = ["--resume"] if checkpoints(folder / "killed" / "checkpoints") else ["--overwrite"]
            continue
        if process.returncode:
            raise RuntimeError(
                f"the run that was killed {len(moments)} times exited with {process.returncode}:\n{said}"
            )
        return moments


def _command(arguments: list[str], name: str) -> list[str]:
    return [str(Path(sys.executable).parent / "yendor"), "train", *arguments, f"run.name={name}"]


def _steps(run: Path) -> int:
    try:
        return json.loads((run / "summary.json").read_text())["env_steps"]
    except (OSError, ValueError):
        return 0


def metrics_of(run: Path) -> list[tuple[int, dict[str, float | None]]]:
    """What is told of a run and does not depend on the clock, by environment steps."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["env_steps"], line["metrics"]) for line in lines]


def weights_of(run: Path) -> dict[str, bytes]:
    """Of the policy of its newest checkpoint, by name."""
    return {name: w.numpy().tobytes() for name, w in load_policy(checkpoints(run / "checkpoints")[-1]).items()}
