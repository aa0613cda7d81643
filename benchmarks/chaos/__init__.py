"""A fault campaign: a training on several Ray nodes, and a seeded schedule of what may go wrong under it.

Two trainings, each first without faults, once for each of several seeds, and then with them: one whose success shows whether it
still learns, and one that meets captions all the time, so that there is always something to annotate. Then all that they left
is held against what must be true.
"""

import argparse
import contextlib
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.chaos.audit import Finding, examine
from benchmarks.chaos.cluster import LocalCluster
from benchmarks.chaos.curves import curve, learning
from benchmarks.chaos.faults import ACTOR, LEARNER, REWARD_SERVER, Injector, Outcome
from benchmarks.chaos.report import by_kind, invariants
from benchmarks.chaos.schedule import NETWORK, Kind, schedule
from benchmarks.chaos.training import Training
from benchmarks.rule_judge import RuleServer

TRAININGS = {"demo": 400_000, "nethack_score": 250_000}
"""Presets, and the environment steps of each run without faults."""
RUN = (
    "cluster.groups=true", "actors.count=2", "actors.cpus=0.5", "actors.envs=32", "trace.rate=1", "checkpoint.interval_s=5",
    "train.max_wall_s=null", "judge.engine=openai", "judge.model=rules", "log.interval_s=0.5",
)  # fmt: skip
_DISK = "1500m"
_START_S = 120.0
_END_S = 120.0


@contextlib.contextmanager
def small_disk(folder: Path) -> Generator[Path | None]:
    """A file system of its own at `folder`, which can be filled; None where this user may not mount one."""
    folder.mkdir(parents=True, exist_ok=True)
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={_DISK}", "yendor-chaos", str(folder)], capture_output=True, check=False
    )
    if made.returncode:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def main(folder: Path, *options: str) -> None:
    """`--faults N` under each training, `--seed S`, `--presets P ...`, `--only KIND_NAME ...`, `--baselines N` runs without
    faults, further `key=value`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks chaos", description=main.__doc__)
    parser.add_argument("--faults", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--presets", nargs="+", choices=TRAININGS, default=TRAININGS)
    parser.add_argument("--only", nargs="+", choices=[kind.name for kind in Kind], help="kinds of faults")
    parser.add_argument(
        "--baselines",
        type=int,
        default=3,
        choices=[0, *range(2, 11)],
        help="runs without faults, of seeds 1, 2, ..., whose spread the learning curve is held against (default 3; 0: none)",
    )
    chosen, keys = parser.parse_known_args(options)
    # What was started and mounted goes away with a campaign that is ended, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    report: dict[str, Any] = {"seed": chosen.seed, "keys": keys, "trainings": {}}
    hold = True
    for preset in chosen.presets:
        told = _campaign(folder / preset, preset, chosen, keys)
        hold &= all(finding["holds"] for finding in told["invariants"])
        report["trainings"][preset] = told
        (folder / "chaos.json").write_text(json.dumps(report, indent=1))
    if not hold:
        raise SystemExit(1)


def _campaign(folder: Path, preset: str, chosen: argparse.Namespace, keys: list[str]) -> dict[str, Any]:
    """One training, several times without faults and once with them; prints how it came out."""
    arguments = [preset, *RUN, *keys]
    without: list[dict[str, Any]] = []
    for seed in range(1, chosen.baselines + 1):
        steps = f"train.env_steps={TRAININGS[preset]}"
        without.append(_without_faults(folder / f"without-{seed}", [*arguments, steps, f"run.seed={seed}"]))
        print(f"{preset} without faults, seed {seed}: {json.dumps(without[-1])}", flush=True)
    outcomes, findings, told = _with_faults(folder / "with", chosen, arguments)
    learnt = learning(told["curve"], [one["curve"] for one in without]) if without else "no run without faults"
    print(
        f"{preset} with faults: {json.dumps(told)}\n\n{by_kind(outcomes)}\n\n{invariants(findings)}\n\n{learnt}\n",
        flush=True,
    )
    return {
        "arguments": arguments,
        "without": without,
        "with": told,
        "faults": [asdict(outcome) for outcome in outcomes],
        "invariants": [asdict(finding) for finding in findings],
        "learning": learnt,
    }


def _without_faults(folder: Path, arguments: list[str]) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    with (
        LocalCluster(2, 1.0) as cluster,
        RuleServer() as judge,
        Training(cluster, folder / "runs", "run", [*arguments, f"judge.url={judge.url}"]) as training,
    ):
        training.path.parent.mkdir(exist_ok=True)
        training.start()
        assert training.process is not None
        code = training.process.wait()
        if code:
            raise RuntimeError(f"the run without faults exited with {code}:\n{training.text()[-3000:]}")
        return _told(training)


def _with_faults(
    folder: Path, chosen: argparse.Namespace, arguments: list[str]
) -> tuple[list[Outcome], list[Finding], dict[str, Any]]:
    outcomes: list[Outcome] = []
    folder.mkdir(parents=True, exist_ok=True)
    kinds = set(Kind) if chosen.only is None else {Kind[name] for name in chosen.only}
    endless = [*arguments, "train.env_steps=1000000000"]
    with (
        small_disk(folder / "runs") as disk,
        LocalCluster(2, 1.0) as cluster,
        RuleServer() as judge,
        Training(cluster, folder / "runs", "run", [*endless, f"judge.url={judge.url}"]) as training,
    ):
        if cluster.link is None:
            kinds -= NETWORK
            print("no network namespaces for this user: the network is left alone")
        if disk is None:
            kinds -= {Kind.DISK_FULL}
            print("no mounts for this user: the disk is left alone")
        training.start()
        if (
            training.until(lambda told: bool(told.get("checkpoint")) and told["reward_model_version"] > 0, _START_S)
            is None
        ):
            raise RuntimeError(f"the run did not start:\n{training.text()[-3000:]}")
        injector = Injector(cluster, training, judge, folder / "runs")
        for fault in schedule(chosen.seed, chosen.faults, kinds):
            outcomes.append(injector.cause(fault))
            print(json.dumps(asdict(outcomes[-1])), flush=True)
        left = stop(training)
        told = _told(training)
        findings = examine(training.path, training.seen, judge.answered, left)
        told["stalls_s"] = [round(gap, 1) for gap in training.seen.stalls]
        shutil.copytree(training.path, folder / "kept", ignore=shutil.ignore_patterns("traces"), dirs_exist_ok=True)
    return outcomes, findings, told


def stop(training: Training) -> list[Any]:
    """As a user does; returns Ray's workers of the run that are there a while later."""
    assert training.process is not None
    training.process.send_signal(signal.SIGINT)
    training.process.wait(_END_S)
    deadline = time.monotonic() + 10.0
    while True:
        left = [p for title in (ACTOR, LEARNER, REWARD_SERVER) for _, p in training.cluster.ray_processes(title)]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.2)


def _told(training: Training) -> dict[str, Any]:
    summary = training.summary()
    lines = [json.loads(line) for line in (training.path / "metrics.jsonl").read_text().splitlines()]
    names = (
        "status", "env_steps", "wall_s", "episodes", "success_last_tenth", "return_last_tenth", "captions_labelled",
        "actor_restarts", "learner_restarts", "reward_server_restarts", "samples_lost", "samples_dropped",
        "checkpoint_errors", "trace_errors",
    )  # fmt: skip
    return {**{name: summary.get(name) for name in names}, "curve": curve(lines)}
