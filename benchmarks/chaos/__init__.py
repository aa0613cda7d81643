"""A fault campaign: a training on several Ray nodes, and a seeded schedule of what may go wrong under it.

First the same training without faults, then with them; then everything that the run left is held against what must be true.
"""

import argparse
import contextlib
import json
import shutil
import signal
import subprocess
import time
from collections.abc import Generator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.chaos.audit import Finding, audit
from benchmarks.chaos.cluster import LocalCluster
from benchmarks.chaos.faults import ACTOR, LEARNER, REWARD_SERVER, Injector, Outcome
from benchmarks.chaos.report import by_kind, curve, invariants
from benchmarks.chaos.schedule import NETWORK, Kind, schedule
from benchmarks.chaos.training import Training
from benchmarks.rule_judge import RuleServer

RUN = (
    "demo", "cluster.groups=true", "actors.count=2", "actors.cpus=0.5", "actors.envs=32", "trace.rate=1", "checkpoint.interval_s=5",
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
    """`--faults N`, `--seed S`, `--steps N` of the run, `--only KIND_NAME ...`, `--no-baseline`, further `key=value`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks chaos", description=main.__doc__)
    parser.add_argument("--faults", type=int, default=220)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--steps", type=int, default=700_000, help="of the run without faults, and at least of the other"
    )
    parser.add_argument("--only", nargs="+", choices=[kind.name for kind in Kind], help="kinds of faults")
    parser.add_argument("--no-baseline", action="store_true", help="leave the run without faults out")
    chosen, keys = parser.parse_known_args(options)
    report: dict[str, Any] = {"seed": chosen.seed, "keys": keys}
    if not chosen.no_baseline:
        report["without"] = _without_faults(folder / "without", chosen.steps, keys)
        print(f"without faults: {json.dumps(report['without'])}", flush=True)
    outcomes, findings, report["with"] = _with_faults(folder / "with", chosen, keys)
    report["faults"] = [asdict(outcome) for outcome in outcomes]
    report["invariants"] = [asdict(finding) for finding in findings]
    (folder / "chaos.json").write_text(json.dumps(report, indent=1))
    print(f"with faults: {json.dumps(report['with'])}")
    print(f"\n{by_kind(outcomes)}\n\n{invariants(findings)}")
    if not all(finding.holds for finding in findings):
        raise SystemExit(1)


def _without_faults(folder: Path, steps: int, keys: list[str]) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    with LocalCluster(2, 1.0) as cluster, RuleServer() as judge:
        training = Training(
            cluster, folder / "runs", "run", [*RUN, f"judge.url={judge.url}", f"train.env_steps={steps}", *keys]
        )
        training.path.parent.mkdir(exist_ok=True)
        training.start()
        assert training.process is not None
        code = training.process.wait()
        training.end()
        if code:
            raise RuntimeError(f"the run without faults exited with {code}:\n{training.text()[-3000:]}")
        return _told(training)


def _with_faults(
    folder: Path, chosen: argparse.Namespace, keys: list[str]
) -> tuple[list[Outcome], list[Finding], dict[str, Any]]:
    outcomes: list[Outcome] = []
    folder.mkdir(parents=True, exist_ok=True)
    with (
        small_disk(folder / "runs") as disk,
        LocalCluster(2, 1.0) as cluster,
        RuleServer() as judge,
    ):
        kinds = set(Kind) if chosen.only is None else {Kind[name] for name in chosen.only}
        if cluster.link is None:
            kinds -= NETWORK
            print("no network namespaces for this user: the network is left alone")
        if disk is None:
            kinds -= {Kind.DISK_FULL}
            print("no mounts for this user: the disk is left alone")
        training = Training(
            cluster, folder / "runs", "run", [*RUN, f"judge.url={judge.url}", "train.env_steps=1000000000", *keys]
        )
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
        training.until(lambda told: told.get("env_steps", 0) >= chosen.steps, 1800.0)
        left = _stop(training)
        training.end()
        told = _told(training)
        findings = audit(training.path, training.seen, judge.answered, left)
        told["stalls_s"] = [round(gap, 1) for gap in training.seen.stalls]
        shutil.copytree(training.path, folder / "kept", ignore=shutil.ignore_patterns("traces"), dirs_exist_ok=True)
    return outcomes, findings, told


def _stop(training: Training) -> list[Any]:
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
        "status", "env_steps", "wall_s", "episodes", "success_last_tenth", "captions_labelled", "actor_restarts",
        "learner_restarts", "samples_lost", "samples_dropped", "checkpoint_errors", "trace_errors",
    )  # fmt: skip
    return {**{name: summary.get(name) for name in names}, "success_at_tenths": curve(lines)}
