"""What the machine has: processors, memory, disk, GPUs. Cheap to ask; loads neither torch nor Ray."""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import psutil

GIB = 1 << 30


def available_cpus() -> int:
    """Processors that this process may use: its affinity, bounded by the quota of its control group (containers)."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_cpus()
    return affinity if quota is None else max(1, min(affinity, int(quota)))


def _cgroup_cpus() -> float | None:
    limit = _read(Path("/sys/fs/cgroup/cpu.max"))
    if limit is not None:
        quota, _, period = limit.partition(" ")
        return None if quota == "max" else int(quota) / int(period)
    quota_v1 = _read(Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"))
    period_v1 = _read(Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us"))
    if quota_v1 is None or period_v1 is None or int(quota_v1) <= 0:
        return None
    return int(quota_v1) / int(period_v1)


def available_memory() -> int:
    """Bytes of memory that can still be used, bounded by the control group."""
    free = psutil.virtual_memory().available
    limit, used = _read(Path("/sys/fs/cgroup/memory.max")), _read(Path("/sys/fs/cgroup/memory.current"))
    if limit is None or used is None or limit == "max":
        return free
    return max(0, min(free, int(limit) - int(used)))


def total_memory() -> int:
    """Bytes of memory that there are, bounded by the control group."""
    limit = _read(Path("/sys/fs/cgroup/memory.max"))
    there = psutil.virtual_memory().total
    return there if limit is None or limit == "max" else min(there, int(limit))


def free_disk(path: Path) -> int:
    """Free bytes where `path` is or will be."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def cpu_features() -> frozenset[str]:
    """Instruction sets that matter here, in the words of /proc/cpuinfo; empty where that file is not."""
    text = _read(Path("/proc/cpuinfo")) or ""
    match = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", text, re.MULTILINE)
    found = frozenset(match.group(1).split()) if match else frozenset[str]()
    return found & {"avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16", "sve"}


def cpu_name() -> str:
    """Model name of the processor."""
    match = re.search(r"^model name\s*:\s*(.*)$", _read(Path("/proc/cpuinfo")) or "", re.MULTILINE)
    return match.group(1).strip() if match else "unknown"


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU as its driver names it."""

    name: str
    memory: str


def gpus() -> list[Gpu]:
    """NVIDIA GPUs, as `nvidia-smi` lists them; none where there is no driver or it does not answer."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    command = [tool, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except subprocess.TimeoutExpired:
        return []
    if result.returncode != 0:
        return []
    rows = [line.rpartition(",") for line in result.stdout.splitlines() if "," in line]
    return [Gpu(name.strip(), memory.strip()) for name, _, memory in rows]


def gibibytes(size: int) -> str:
    """`3.2 GiB`."""
    return f"{size / GIB:.1f} GiB"


def _read(path: Path) -> str | None:
    """The stripped text of a file of the kernel, None where this kernel does not have it."""
    try:
        return path.read_text().strip()
    except OSError:
        return None
