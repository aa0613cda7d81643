"""Looks at every machine of a Ray cluster.

This file is sent to clusters that have Ray and nothing else, so it needs only Ray and the standard library, and tells what
it finds as plain JSON: see `orchestration.cluster_doctor.Machine` for what it means.
"""

import json
import os
import platform
import shutil
import socket
import sys
import time
import uuid
from importlib import metadata
from pathlib import Path
from typing import Any

MARK = "yendor-machines "
"""What the line of the answer begins with, in the log of a job."""
_SAMPLES = 5
_ANSWER_S = 60.0
"""So long a machine has to answer; the first time it has to start a process."""


def look(folder: str, mark: str, packages: tuple[str, ...]) -> dict[str, Any]:
    """What there is to know of this machine. `folder`: where runs will lie; `mark`: a file that another machine made there."""
    runs = Path(os.path.expandvars(folder)).expanduser()
    there = _existing(runs)
    return {
        "host": socket.gethostname(),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in packages},
        "memory_free": _memory_free(),
        "temp": str(_temp()),
        "temp_free": shutil.disk_usage(_existing(_temp())).free,
        "runs": str(runs),
        "runs_free": shutil.disk_usage(there).free,
        "runs_shared": (there / mark).exists(),
    }


def now() -> float:
    """Seconds since the epoch."""
    return time.time()


def gather(folder: str, packages: tuple[str, ...]) -> list[dict[str, Any]]:
    """Asks every machine of the cluster that this process has joined; one that does not answer has an `error`.

    `skew` is how much its clock is ahead of that of this process, in seconds, `skew_error` what that may be wrong by.
    """
    import ray
    from ray import cloudpickle

    # The machines may lack this module.
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    nodes: list[Any] = [node for node in ray.nodes() if node["Alive"]]
    nodes.sort(key=lambda node: not _is_head(node))
    mark, home = f".yendor-doctor-{uuid.uuid4().hex}", None
    found: list[dict[str, Any]] = []
    try:
        for number, node in enumerate(nodes):
            if number == 0:  # the head, where the coordinator of a run is
                home = _ask(node, _make_mark, folder, mark)
            found.append(_one(node, folder, mark, packages))
    finally:
        if isinstance(home, str):
            _ask(nodes[0], _remove, home)
    return found


def _one(node: Any, folder: str, mark: str, packages: tuple[str, ...]) -> dict[str, Any]:
    answer = _ask(node, look, folder, mark, packages)
    about = {
        "node": node["NodeID"],
        "address": node["NodeManagerAddress"],
        "head": _is_head(node),
        "resources": {k: v for k, v in node["Resources"].items() if not k.startswith("node:")},
    }
    if isinstance(answer, Exception):
        return about | {"error": f"{type(answer).__name__}: {str(answer).strip().splitlines()[0]}"}
    skew, error = _skew(node)
    return about | answer | {"skew": skew, "skew_error": error}


def _ask(node: Any, function: Any, *arguments: Any) -> Any:
    """The answer of `function` on a machine, or the error that came in its place."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    options: dict[str, Any] = {
        "num_cpus": 0,
        "max_retries": 0,
        "scheduling_strategy": NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
    }
    try:
        return ray.get(ray.remote(function).options(**options).remote(*arguments), timeout=_ANSWER_S)
    except Exception as error:  # whatever ended it is what there is to tell of that machine
        return error


def _skew(node: Any) -> tuple[float | None, float]:
    """How far the clock of a machine is ahead of this one's: of several questions that whose answer came soonest."""
    best: tuple[float, float] | None = None
    for _ in range(_SAMPLES):
        began, at = time.time(), time.monotonic()
        answer = _ask(node, now)
        took = time.monotonic() - at
        if isinstance(answer, float) and (best is None or took / 2 < best[1]):
            best = (answer - (began + took / 2), took / 2)
    return (None, 0.0) if best is None else best


def _is_head(node: Any) -> bool:
    return "node:__internal_head__" in node["Resources"]


def _make_mark(folder: str, mark: str) -> str | None:
    path = _existing(Path(os.path.expandvars(folder)).expanduser()) / mark
    try:
        path.touch()
    except OSError:
        return None
    return str(path)


def _remove(path: str) -> None:
    Path(path).unlink(missing_ok=True)


def _existing(path: Path) -> Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def _temp() -> Path:
    """Where Ray keeps its sessions on this machine."""
    import tempfile

    from ray._private import worker

    node: Any = worker._global_node  # pyright: ignore[reportPrivateUsage]
    return Path(tempfile.gettempdir(), "ray") if node is None else Path(node.get_session_dir_path()).parent


def _memory_free() -> int | None:
    """Bytes, bounded by the control group; None where this system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return None
    try:
        limit, used = (Path(f"/sys/fs/cgroup/memory.{name}").read_text().strip() for name in ("max", "current"))
    except OSError:
        return free
    return free if limit == "max" else max(0, min(free, int(limit) - int(used)))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    import ray

    ray.init(log_to_driver=False)
    print(MARK + json.dumps(gather(sys.argv[1], tuple(sys.argv[2].split(",")))), flush=True)  # noqa: T201
